"""Searching for blocks: the package's place in the layout; no search has landed yet."""
