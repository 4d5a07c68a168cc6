"""What the multi-branch network of an architecture costs."""
