"""Refuse a model that exceeds its budget, before ONNX Runtime loads it in this process.

The integer reference computes one blank image (or the model's batch of them) within its budget. What it cannot
compute, float parts and float baselines, ONNX Runtime loads and runs once in a process of its own, with bounds on time
and memory.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from qil_deploy.reference import IntegerReference

from .bench.trial import TrialOptions, try_model
from .exported_model import FLOAT, ExportedModel

_SECONDS: Final = 120.0
_FLOAT_BYTES: Final = 4  # if ONNX Runtime does not fuse a QDQ file, would-be codes are floats


def require_affordable(model: ExportedModel) -> int | None:
    """Refuse a model that exceeds its budget; return how many images ONNX Runtime may be given at a time.

    That is in whole batches of the model; None for any number.

    Raises:
        ModelFileError: it does, or cannot be run.
    """
    if model.float_parts or model.format == FLOAT:
        options = TrialOptions(threads=1, batch=model.batch or 1, seed=0, processes=1, timeout=_SECONDS)
        try_model(model.path, options)
        return None
    blank = np.zeros((model.batch or 1, *model.preprocessing.shape), np.uint8)
    return IntegerReference(model.graph).images_at_once(model.prepare_input(blank), _FLOAT_BYTES)
