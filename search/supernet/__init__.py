"""Spaces, architectures, and the network that holds them all."""
