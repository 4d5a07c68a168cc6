"""The machine measured on, and its noise."""
