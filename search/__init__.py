"""Searching for the branches of blocks: spaces, architectures, supernets, strategies."""
