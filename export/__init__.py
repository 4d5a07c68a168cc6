"""Artefacts for runtimes."""
