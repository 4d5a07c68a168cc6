"""Fusing as a step of other projects' pipelines, called by their conventions."""
