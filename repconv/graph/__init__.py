"""Fusing at the level of graphs: ONNX files and exported programs."""
