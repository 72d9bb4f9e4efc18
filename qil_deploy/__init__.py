"""Quantization Interval Learning for low-bit CNNs: train, export to integer-only ONNX, run bit-exactly."""
