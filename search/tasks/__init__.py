"""What a search trains on."""
