"""A search between its start and its end: where it is, and what it found."""
