"""Execute an exported ONNX file with the integer kernels."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext

import numpy as np

from qil_deploy.errors import DataError, ModelFileError
from qil_deploy.float_parts import cut_out_parts
from qil_deploy.onnx_file import Node, OnnxFile
from qil_deploy.onnx_tensors import Array

from .fuse_qdq import fuse_qdq
from .operators import find_operator

# Pixels of one block of images: few enough for its tensors to stay in a processor's cache.
_BLOCK_PIXELS = 1 << 15


class IntegerReference:
    """An exported model, ready to be run on images.

    A file in the QDQ format is evaluated as the integer operators that ONNX Runtime fuses it to (`fuse_qdq`). What a
    file keeps in float is one node each (`float_parts`), which can be looked at, but not run.

    Attributes:
        model: the file that is executed.
        nodes: the operators that are executed for every batch, in order.
        constants: initializers and what is computed from them alone, such as unpacked weights.
    """

    def __init__(self, model: OnnxFile) -> None:
        """Check every operator and compute what depends on no image.

        Raises:
            ModelFileError: an operator or attribute without an integer kernel, a tensor that nothing
            produces, or
                a graph that does not have exactly one input.
        """
        self.model = model
        if len(model.inputs) != 1 or not model.outputs:
            raise ModelFileError(
                f"{model.path} has {len(model.inputs)} inputs and {len(model.outputs)} outputs; "
                "an exported network has one input, the images, and its logits come first among the outputs."
            )
        self.constants = dict(model.initializers)
        self._outputs = [info.name for info in model.outputs]
        try:
            nodes = fuse_qdq(cut_out_parts(model), self._outputs, self.constants)
        except ValueError as error:
            raise ModelFileError(f"{model.path}: {error}.") from error
        self.nodes = self._fold_constants(nodes)
        self._fixed_batch = isinstance((model.inputs[0].shape or (None,))[0], int)
        self._last_uses = _last_uses(self.nodes, keep={*self.constants, self._outputs[0]})

    def run(self, images: Array) -> Array:
        """Return the first graph output, the logits [N, classes], for images of the input's shape and dtype.

        Blocks of images are computed in parallel, and tensors are freed after their last use. (A graph with a
        fixed batch size is computed as it stands.)

        Raises:
            DataError: images of another dtype or shape than the graph's input.
            ModelFileError: an accumulator overflows int32, shapes do not match, or the file keeps something in float.
        """
        self._check_images(images)
        size = max(1, _BLOCK_PIXELS // max(1, math.prod(images.shape[2:])))
        if self._fixed_batch or len(images) <= size:
            return self._logits(images)
        blocks = [images[start : start + size] for start in range(0, len(images), size)]
        with _one_blas_thread(), ThreadPoolExecutor(os.cpu_count()) as pool:
            return np.concatenate(list(pool.map(self._logits, blocks)))

    def _logits(self, images: Array) -> Array:
        return self._find(self._outputs[0], self._execute(images, free=True))

    def run_all(self, images: Array) -> dict[str, Array]:
        """Return every tensor computed from the images, by name, in order of execution.

        Raises:
            DataError: as `run`.
            ModelFileError: as `run`.
        """
        self._check_images(images)
        tensors = self._execute(images, free=False)
        del tensors[self.model.inputs[0].name]
        return tensors

    def _execute(self, images: Array, *, free: bool) -> dict[str, Array]:
        """Run the nodes in order; with `free`, drop every tensor that no later node reads."""
        tensors = {self.model.inputs[0].name: images}
        for node, finished in zip(self.nodes, self._last_uses, strict=True):
            tensors[node.outputs[0]] = self._compute(node, tensors)
            for name in finished if free else ():
                tensors.pop(name, None)
        return tensors

    def _check_images(self, images: Array) -> None:
        expected = self.model.inputs[0]
        shape = expected.shape if expected.shape is not None else (None,) * images.ndim
        fits = len(shape) == images.ndim and all(
            size == found for size, found in zip(shape, images.shape, strict=True) if isinstance(size, int)
        )
        if images.dtype != expected.dtype or not fits:
            raise DataError(
                f"images of type {images.dtype} and shape {list(images.shape)} do not fit the input "
                f"{expected.name!r} of {self.model.path}: it takes {expected.dtype} of shape {list(shape)}."
            )

    def _fold_constants(self, nodes: tuple[Node, ...]) -> tuple[Node, ...]:
        """Check the nodes in order, compute those that depend on constants alone and return the others."""
        known = {self.model.inputs[0].name, *self.constants}
        remaining: list[Node] = []
        for node in nodes:
            try:
                find_operator(node)
            except ValueError as error:
                raise self._refuse(node, error) from error
            for name in node.inputs:
                if name and name not in known:
                    raise self._refuse(node, f"nothing before it produces its input {name!r}")
            if known.intersection(node.outputs):
                raise self._refuse(node, f"its output {node.outputs[0]!r} exists already")
            known.update(node.outputs)
            if all(not name or name in self.constants for name in node.inputs):
                self.constants[node.outputs[0]] = self._compute(node, {})
            else:
                remaining.append(node)
        missing = [name for name in self._outputs if name not in known]
        if missing:
            raise ModelFileError(f"{self.model.path}: no node produces the output {missing[0]!r}.")
        return tuple(remaining)

    def _compute(self, node: Node, tensors: Mapping[str, Array]) -> Array:
        inputs = [self._find(name, tensors) if name else None for name in node.inputs]
        try:
            return find_operator(node).compute(node, inputs)
        except MemoryError as error:
            raise self._refuse(node, f"there is not enough memory for its result ({error})") from error
        except (ValueError, TypeError, IndexError, OverflowError, ZeroDivisionError) as error:
            raise self._refuse(node, error) from error

    def _find(self, name: str, tensors: Mapping[str, Array]) -> Array:
        return tensors[name] if name in tensors else self.constants[name]

    def _refuse(self, node: Node, reason: object) -> ModelFileError:
        return ModelFileError(f"{self.model.path}: node {node.name or node.outputs[0]!r} ({node.op_type}): {reason}.")


def _one_blas_thread() -> AbstractContextManager[object]:
    """Keep BLAS from starting threads of its own, which would wait for each other in many small products.

    threadpoolctl comes with scikit-learn; without it the result is the same and takes longer.
    """
    try:
        from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]  # it publishes no types
    except ImportError:
        return nullcontext()
    limits: AbstractContextManager[object] = threadpool_limits(1, user_api="blas")
    return limits


def _last_uses(nodes: tuple[Node, ...], keep: set[str]) -> list[list[str]]:
    """List, per node, the tensors that no later node reads."""
    last: dict[str, int] = {}
    for index, node in enumerate(nodes):
        for name in (*node.outputs, *node.inputs):
            last[name] = index
    finished: list[list[str]] = [[] for _ in nodes]
    for name, index in last.items():
        if name and name not in keep:
            finished[index].append(name)
    return finished
