"""Find what slows down or falsifies any quantized ONNX model on CPUs: `diagnose` returns findings (docs/doctor.md).

The file is read as it is written (read_graphs.py), and ONNX Runtime optimizes and runs it in processes of its own
(try_runtime.py); then check_*.py look at the graph that is executed, and at the written one if it tells more.
"""

from .diagnose import diagnose
from .diagnosis import Diagnosis
from .findings import SEVERITIES, Finding
from .try_runtime import Limits

__all__ = ["SEVERITIES", "Diagnosis", "Finding", "Limits", "diagnose"]
