"""Golden vectors: a few images with every code of the integer graph, to compare any runtime with.

They are computed by the integer reference from the exported file itself; `golden_file` says what the file is like.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from qil_deploy.errors import ConfigError, DataError, ModelFileError
from qil_deploy.reference import IntegerReference

from .affordable import require_affordable
from .backends import GOLDEN, REFERENCE, CodeReader, ExecutedGraph, code_reader, onnx_backend_name, tensors_of_images
from .differences import CodeComparison, Comparison
from .exported_model import ExportedModel, read_exported_model
from .golden_file import read_vectors, write_vectors
from .kernel_library import KernelLibrary
from .sessions import OPTIMIZATION_LEVELS

_PIXELS_AT_ONCE: Final = 1 << 18
_IMAGES_AT_ONCE: Final = 50


def golden_path(model: Path) -> Path:
    """Return the path of a model's golden vectors, beside the model."""
    return model.with_suffix(".golden.npz")


def write_golden(model: Path, images: NDArray[np.uint8], images_from: str, path: Path) -> None:
    """Compute and write the golden vectors of an exported model, whole or not at all.

    Args:
        model: the ONNX file, `qlinear` or `qdq`.
        images: uint8 [N, C, H, W].
        images_from: the name of their data set, or how they were made.
        path: the .npz file.

    Raises:
        DataError: no images, or images that do not fit the model.
        ModelFileError: the integer reference cannot compute the model.
        OutputError: `path` cannot be written.
    """
    exported, reference = _reference_for(model, images)
    found = exported.in_batches(reference.run_all, images)
    in_file = tensors_of_images(exported)
    outputs = {name: found[name] for name in exported.output_names}
    tensors = {name: tensor for name, tensor in found.items() if name in in_file and name not in outputs}
    write_vectors(path, exported, images, images_from, tensors | outputs)


def write_golden_logits(model: Path, images: NDArray[np.uint8], images_from: str, path: Path) -> None:
    """Write golden vectors of outputs alone, for more images than one would keep the codes of.

    Arguments and errors are those of `write_golden`.
    """
    exported, reference = _reference_for(model, images)
    tensors = exported.in_batches(reference.run_outputs, images, _IMAGES_AT_ONCE)
    write_vectors(path, exported, images, images_from, tensors)


def _reference_for(model: Path, images: NDArray[np.uint8]) -> tuple[ExportedModel, IntegerReference]:
    """Return a model, and a function that computes its golden vectors from images."""
    exported = read_exported_model(model)
    if exported.float_parts:
        raise ModelFileError(
            f"{model} has float parts, whose values depend on the kernel; golden vectors are for integer models."
        )
    if len(images) == 0:
        raise DataError(f"there are no images to make golden vectors of {model} from.")
    return exported, IntegerReference(exported.graph)


def check_golden(
    model: Path,
    path: Path,
    *,
    against: str = onnx_backend_name("all"),
    threads: int = 1,
    others: Mapping[str, CodeReader] | None = None,
    kernels: KernelLibrary | None = None,
) -> Comparison:
    """Compare a backend with golden vectors, code by code.

    Args:
        model: the ONNX file.
        path: its golden vectors.
        against: the backend: ONNX Runtime at some level, the integer reference, or one of `others`.
        threads: threads of ONNX Runtime.
        others: what computes every code of further backends, by their names.
        kernels: the library of backends with kernels; None if there are none.

    Raises:
        ModelFileError: the model cannot be read or run.
        DataError: the golden vectors are missing, damaged, or of another model.
        ConfigError: no such backend, or no threads.
    """
    exported = read_exported_model(model)
    own = [onnx_backend_name(level) for level in OPTIMIZATION_LEVELS]
    if kernels is not None:
        own += [onnx_backend_name(level, kernels=True) for level in OPTIMIZATION_LEVELS]
    known = (REFERENCE, *own, *(others or {}))
    if against not in known:
        raise ConfigError(
            f"there is no backend {against!r} to compare with golden vectors; there are {', '.join(known)}."
        )
    graph = ExecutedGraph.of(exported)
    with tempfile.TemporaryDirectory() as folder:
        golden = read_vectors(path, exported, Path(folder))
        at_once = require_affordable(exported)
        read = code_reader(exported, graph, against, threads=threads, others=others or {}, kernels=kernels)
        comparison = CodeComparison(graph, (GOLDEN, against))
        for images in _portions(len(golden.images), exported, at_once):
            expected = {name: tensor[images.start : images.stop] for name, tensor in golden.tensors.items()}
            comparison.add(expected, read(np.array(golden.images[images.start : images.stop])), images)
        return comparison.result()


def _portions(images: int, model: ExportedModel, at_once: int | None) -> Iterator[range]:
    """Yield the indices of images in whole batches, as many at a time as fit in memory with all their codes."""
    batch = model.batch or 1
    size = max(_PIXELS_AT_ONCE // (model.preprocessing.height * model.preprocessing.width * batch), 1) * batch
    size = size if at_once is None else min(size, at_once)
    for start in range(0, images, size):
        yield range(start, min(start + size, images))


def read_golden(path: Path, model: ExportedModel) -> None:
    """Read golden vectors completely.

    Raises:
        DataError: they are missing, damaged, of another model, or too large.
    """
    with tempfile.TemporaryDirectory() as folder:
        read_vectors(path, model, Path(folder))
