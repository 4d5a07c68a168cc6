"""ONNX models: read, planned, written."""
