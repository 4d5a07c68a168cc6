"""Blocks in the places of convolutions."""
