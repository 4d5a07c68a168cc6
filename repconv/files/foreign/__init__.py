"""What files of others hold, looked at before anything believes it."""
