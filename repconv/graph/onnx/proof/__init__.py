"""Proof that a fused ONNX model is the one it was made of."""
