"""Models in their runtimes, ready to be timed."""
