"""Affine steps as values: forms, terms, constants, sizes, prices."""
