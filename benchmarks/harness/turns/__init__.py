"""Timing in turns: samples, rounds, intervals, noise."""
