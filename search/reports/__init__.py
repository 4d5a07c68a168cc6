"""What a search shows."""
