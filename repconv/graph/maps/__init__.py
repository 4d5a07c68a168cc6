"""Movement as maps: what moves elements and computes nothing."""
