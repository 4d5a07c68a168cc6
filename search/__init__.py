"""Searching for blocks; nothing here yet is public."""
