"""Artefacts: errors, bytes, int8 accuracy."""
