"""Strategies that train the whole supernet, or what is left of it, and choose by its gates."""
