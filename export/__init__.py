"""Export of frozen models to ONNX, with proof: fold, lower, pack, certify, write."""

from .certify import CertificateLine, certify
from .export import ExportResult, export_onnx
from .float_model import export_float_onnx
from .options import ExportOptions

__all__ = ["CertificateLine", "ExportOptions", "ExportResult", "certify", "export_float_onnx", "export_onnx"]
