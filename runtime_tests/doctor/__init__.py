"""What holds a quantized ONNX model back on CPUs, whoever wrote it: `diagnose` returns findings (docs/doctor.md)."""

from .diagnose import Diagnosis, diagnose
from .findings import SEVERITIES, Finding

__all__ = ["SEVERITIES", "Diagnosis", "Finding", "diagnose"]
