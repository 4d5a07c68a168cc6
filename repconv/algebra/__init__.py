"""Convolutions as values: shapes, numbers, and how they combine."""
