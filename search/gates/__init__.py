"""How gates learn beside the weights: on images of their own, and at a price."""
