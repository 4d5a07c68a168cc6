"""What batch normalisation is given, and its statistics: running, of a batch, or sampled."""
