"""ONNX models read as a graph of whitelisted operations; nothing of the file is executed."""
