"""Folding and latency."""
