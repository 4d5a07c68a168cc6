"""Counts, errors and latency of fused graphs, beside other tools."""
