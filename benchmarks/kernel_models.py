"""The models that benchmarks of the kernel library compare: float, ONNX Runtime's int8, and low-bit with kernels."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from exporters import LAST_LAYER_OVERRIDES
from networks import (
    CLASS_NAMES,
    DATA,
    PREPROCESSING,
    colour_images,
    normalized_batches,
    quantized_network,
    random_network,
)
from peers import export_onnxruntime_int8
from qil_deploy.config import QuantConfig
from qil_deploy.export import ExportOptions, export_float_onnx, export_onnx
from qil_deploy.files import ensure_writable

FLOAT, INT8 = "float", "onnxruntime_int8"
CALIBRATION_IMAGES = 8


def write_models(network: str, folder: Path, bits: Sequence[int]) -> None:
    """Write a network of `training.models.MODELS` as `float.onnx`, `onnxruntime_int8.onnx` and, e.g., `w2a2.onnx`."""
    batches = normalized_batches(colour_images(CALIBRATION_IMAGES))
    model = random_network(network, batches, seed=0)
    ensure_writable(folder / f"{FLOAT}.onnx")
    export_float_onnx(model, folder / f"{FLOAT}.onnx", preprocessing=PREPROCESSING, class_names=CLASS_NAMES, data=DATA)
    export_onnxruntime_int8(folder / f"{FLOAT}.onnx", folder / f"{INT8}.onnx", batches)
    overrides = LAST_LAYER_OVERRIDES.get(network, {})
    for width in bits:
        config = QuantConfig(weight_bits=width, activation_bits=width, overrides=overrides)
        export_onnx(
            quantized_network(model, config, batches),
            folder / f"w{width}a{width}.onnx",
            preprocessing=PREPROCESSING,
            class_names=CLASS_NAMES,
            data=DATA,
            options=ExportOptions(kernels=True),
        )
