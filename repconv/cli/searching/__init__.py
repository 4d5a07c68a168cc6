"""The commands of `repconv search`."""
