"""Lower a frozen network to an integer-only ONNX model."""
