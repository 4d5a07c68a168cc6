"""ONNX models made ready: exported, preprocessed, in half precision."""
