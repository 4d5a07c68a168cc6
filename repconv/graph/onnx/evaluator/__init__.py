"""ONNX operations evaluated in float64."""
