"""Training: steps, accuracies, the shipped checkpoint."""
