"""What scores of a search cost and are worth."""
