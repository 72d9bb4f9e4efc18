"""NumPy integer reference: what an exported ONNX file computes, with no tolerance and no runtime.

It executes the file itself, so that it shares no code with the exporter whose work it checks.
"""

from .evaluate import IntegerReference

__all__ = ["IntegerReference"]
