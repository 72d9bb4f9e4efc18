"""Run a file once before it gets its name: ONNX Runtime may fail on a file that loads, or that the checker accepts.

One image of noise passes through ONNX Runtime with all of its optimizer and without it, and through the integer
reference. Without the optimizer ONNX Runtime computes a QDQ file in float, and what a network keeps in float depends on
the kernel: there the file has to run, and nothing more.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from qil_deploy.errors import CertificateError
from qil_deploy.onnx_io import OnnxFile, loadable, read_metadata
from qil_deploy.preprocessing import Preprocessing
from qil_deploy.reference import IntegerReference

_LEVELS = {
    "all": onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL,
    "disabled": onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL,
}
_FATAL = 4


@dataclass(frozen=True, kw_only=True)
class Trial:
    """Inputs and expected outputs of a file.

    Attributes:
        input: name of the graph's input.
        images: as many as one run of the file takes.
        outputs: of the integer reference, by name; None if only ONNX Runtime computes the file.
        exact: optimization levels at which ONNX Runtime has to return these.
    """

    input: str
    images: NDArray[Any]
    outputs: dict[str, NDArray[Any]] | None
    exact: tuple[str, ...]

    @classmethod
    def of(cls, model: OnnxFile, reference: IntegerReference | None) -> Trial:
        """Return the trial of a file.

        Args:
            model: the file.
            reference: executes it; None if only ONNX Runtime does.
        """
        images = _noise(model)
        is_qdq = read_metadata(model).get("format") == "qdq"
        return cls(
            input=model.inputs[0].name,
            images=images,
            outputs=None if reference is None else reference.run_outputs(images),
            exact=("all",) if is_qdq else tuple(_LEVELS),
        )


def differing_outputs(path: Path, trial: Trial) -> tuple[float, str]:
    """Return how many output numbers differ from the reference's at the worst optimization level, and that level.

    Raises:
        CertificateError: ONNX Runtime cannot load or run the file.
    """
    differing = dict.fromkeys(_LEVELS, 0)
    for level in _LEVELS:
        found = _run(path, trial, level)
        if trial.outputs is not None and level in trial.exact:
            differing[level] = sum(_count(found[name], expected) for name, expected in trial.outputs.items())
    worst = max(differing, key=lambda level: differing[level])
    return float(differing[worst]), f"ONNX Runtime at optimization level {worst!r}"


def _count(found: NDArray[Any], expected: NDArray[Any]) -> int:
    same_kind = found.shape == expected.shape and found.dtype == expected.dtype
    # NaN differs from everything, itself included.
    return int(np.count_nonzero(found != expected)) if same_kind else expected.size


def _noise(model: OnnxFile) -> NDArray[Any]:
    """Return random pixels in the form of the file's input, as many images as one run of it takes."""
    image = model.inputs[0]
    shape = [size if isinstance(size, int) else 1 for size in image.shape or ()]
    pixels = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    if image.dtype == "uint8":
        return pixels
    channels, height, width = shape[1:]
    any_grid = {"channels": channels, "height": height, "width": width, "scale": 1 / 64, "zero_point": 128}
    return Preprocessing.from_metadata(read_metadata(model).get("preprocessing", any_grid)).normalize(pixels)


def _run(path: Path, trial: Trial, level: str) -> dict[str, NDArray[Any]]:
    """Return the outputs by name."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = _LEVELS[level]
    options.intra_op_num_threads = 1
    options.log_severity_level = _FATAL
    options.enable_cpu_mem_arena = False  # one run: its memory is freed at once
    try:
        # Without the fallback, which prints to the screen and tries the same again.
        session = onnxruntime.InferenceSession(
            loadable(path), options, providers=["CPUExecutionProvider"], enable_fallback=0
        )
        names = [output.name for output in session.get_outputs()]
        results = session.run(names, {trial.input: trial.images})
    except Exception as error:  # ONNX Runtime's errors share no base class below Exception
        reason = " ".join(str(error).split()).rstrip(".")
        raise CertificateError(
            f"certificate line 'runs' fails: ONNX Runtime {onnxruntime.__version__} cannot run the file at "
            f"optimization level {level!r}: {reason}."
        ) from error
    return {name: np.asarray(result) for name, result in zip(names, results, strict=True)}
