"""Blocks of branches: what they are, train as, fold to, and how a fold is proven."""
