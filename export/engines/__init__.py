"""Engines of TensorRT and TensorRT-RTX: built in a process of their own, and what is inside them."""
