"""What a retraining is made of."""
