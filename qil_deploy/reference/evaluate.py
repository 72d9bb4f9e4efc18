"""Execute an exported ONNX file with the integer kernels."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext

import numpy as np

from qil_deploy.errors import DataError, ModelFileError
from qil_deploy.onnx_io import KERNEL_CONVOLUTIONS, Array, Node, OnnxFile, cut_out_parts
from qil_deploy.untrusted_text import excerpt

from .budget import Budget, BudgetError, Cost
from .code_ranges import largest_codes
from .fuse_qdq import fuse_qdq
from .operator_lookup import find_operator

# Pixels of one block of images: few enough for its tensors to stay in a processor's cache.
_BLOCK_PIXELS = 1 << 15
_LONGEST_REASON = 400
_SMALLER = 4  # factor by which a block that takes too much shrinks

Tensors = dict[str, Array]


class IntegerReference:
    """An exported model, ready to run on images.

    A file in the QDQ format is evaluated as the integer operators that ONNX Runtime fuses it to (`fuse_qdq`). What a
    file keeps in float is one node each (`float_parts`), which can be inspected, but not run. Everything computed is
    paid for from one budget (`budget`).

    Attributes:
        model: the file that is executed.
        nodes: the operators that are executed for every batch, in order.
        constants: what these operators read of the initializers, and of what is computed from them alone, such as
            unpacked weights.
    """

    def __init__(self, model: OnnxFile) -> None:
        """Check every operator and compute the values that depend on no image.

        Raises:
            ModelFileError: an operator or attribute without an integer kernel, a tensor that nothing produces, a graph
                that does not have exactly one input, or constants that exceed the budget.
        """
        self.model = model
        if len(model.inputs) != 1 or not model.outputs:
            raise ModelFileError(
                f"{model.path} has {len(model.inputs)} inputs and {len(model.outputs)} outputs; "
                "an exported network has one input, the images, and one output at least."
            )
        self.constants = dict(model.initializers)
        self._outputs = [info.name for info in model.outputs]
        parts = cut_out_parts(model)
        try:
            nodes = fuse_qdq(parts, self._outputs, self.constants)
        except (ValueError, IndexError) as error:
            raise ModelFileError(f"{model.path}: {excerpt(str(error), _LONGEST_REASON)}.") from error
        self._budget = Budget.of_file(model.bytes)
        self.nodes = self._fold_constants(nodes)
        # Packed weights from the file, and their intermediate forms, are no longer read.
        needed = {*self._outputs, *(name for node in self.nodes for name in node.inputs)}
        self.constants = {name: array for name, array in self.constants.items() if name in needed}
        self._check_promises()
        self._fixed_batch = isinstance((model.inputs[0].shape or (None,))[0], int)
        self._last_uses = _last_uses(self.nodes, keep={*self.constants, *self._outputs})

    def run(self, images: Array) -> Array:
        """Return the first graph output, such as logits [N, classes], for images of the input's shape and dtype.

        Arguments and errors are those of `run_outputs`.
        """
        return self.run_outputs(images)[self._outputs[0]]

    def run_outputs(self, images: Array) -> Tensors:
        """Return every graph output by name, for images of the input's shape and dtype.

        Blocks of images are computed in parallel, and tensors are freed after their last use. (A graph with a
        fixed batch size is computed as it stands.)

        Raises:
            DataError: images of another dtype or shape than the graph's input.
            ModelFileError: an accumulator overflows int32, shapes do not match, the file keeps something in float, or
                it exceeds the budget.
        """
        return self._in_blocks(
            images, lambda tensors: {name: self._find(name, tensors) for name in self._outputs}, free=True
        )

    def run_all(self, images: Array) -> Tensors:
        """Return every tensor computed from the images, by name, in order of execution.

        Raises:
            DataError: as `run`.
            ModelFileError: as `run`.
        """
        return self._in_blocks(images, lambda tensors: tensors, free=False)

    def shapes(self, images: Array) -> dict[str, tuple[int, ...]]:
        """Return the shape of every tensor computed from the images, without keeping them all.

        Raises:
            DataError: as `run`.
            ModelFileError: as `run`.
        """
        self._check_images(images)
        self._check_batch(images)
        found: dict[str, tuple[int, ...]] = {}
        self._execute(images, free=True, note=lambda name, tensor: found.update({name: tensor.shape}))
        return found

    def images_at_once(self, image: Array, bytes_per_code: int) -> int:
        """Return how many images another runtime may compute at a time within the budget; at least one.

        Args:
            image: one image, or the batch that the graph has; it is computed.
            bytes_per_code: bytes that runtime takes for one byte here.

        Raises:
            DataError: as `run`.
            ModelFileError: as `run`.
        """
        self._check_images(image)
        self._check_batch(image)
        _, taken = self._execute(image, free=True)
        return max(1, self._budget.left // max(1, taken.peak * bytes_per_code)) * len(image)

    def _in_blocks(self, images: Array, keep: Callable[[Tensors], Tensors], *, free: bool) -> Tensors:
        """Compute images in blocks of the fastest size, or smaller ones if the budget requires it.

        Args:
            images: all of them.
            keep: picks the wanted tensors of a block.
            free: as `_execute` takes it.
        """
        self._check_images(images)
        pixels = max(1, math.prod(images.shape[2:]))
        most = len(images) if self._fixed_batch else min(len(images), max(1, _BLOCK_PIXELS // pixels))
        most, peak, first = self._first_block(images, most, keep, free=free)
        results = [first]
        blocks = [images[start : start + most] for start in range(most, len(images), max(1, most))]
        threads = min(os.cpu_count() or 1, len(blocks), self._budget.left // max(1, peak))
        if threads > 1:
            with _one_blas_thread(), ThreadPoolExecutor(threads) as pool:
                results += pool.map(lambda block: keep(self._execute(block, free=free)[0]), blocks)
        else:
            results += (keep(self._execute(block, free=free)[0]) for block in blocks)
        if len(results) == 1:
            return results[0]
        return {name: np.concatenate([result[name] for result in results]) for name in results[0]}

    def _first_block(
        self, images: Array, most: int, keep: Callable[[Tensors], Tensors], *, free: bool
    ) -> tuple[int, int, Tensors]:
        """Compute the first `most` images, or fewer; return their number, the bytes used, and the requested results."""
        self._check_batch(images)
        try:
            tensors, budget = self._execute(images[:most], free=free)
        except ModelFileError as error:
            if self._fixed_batch or most <= 1 or not isinstance(error.__cause__, BudgetError):
                raise
        else:
            return most, budget.peak, keep(tensors)
        return self._first_block(images, most // _SMALLER or 1, keep, free=free)

    def _check_batch(self, images: Array) -> None:
        """Refuse a fixed batch that exceeds the budget, judged by one of its images, before it is computed.

        Raises:
            ModelFileError: it does.
        """
        if not self._fixed_batch or len(images) <= 1:
            return
        try:
            _, one = self._execute(images[:1], free=True)
        except ModelFileError:  # it computes with the number of images
            return
        cost = Cost(bytes=one.peak * len(images), operations=one.made * len(images))
        try:
            self._budget.rest().pay(cost)
        except BudgetError as error:
            raise ModelFileError(f"{self.model.path} computes {len(images):,} images at a time: {error}.") from error

    def _execute(
        self, images: Array, *, free: bool, note: Callable[[str, Array], None] = lambda *_: None
    ) -> tuple[Tensors, Budget]:
        """Run the nodes in order; with `free`, drop every tensor that no later node reads.

        Args:
            images: a block of them.
            free: whether to.
            note: receives each tensor.

        Returns:
            The tensors that are left, without the images, and what was taken.
        """
        image = self.model.inputs[0].name
        tensors = {image: images}
        budget = self._budget.rest()
        held: dict[str, int] = {}
        for node, finished in zip(self.nodes, self._last_uses, strict=True):
            before = budget.left
            tensors[node.outputs[0]] = self._compute(node, tensors, budget)
            held[node.outputs[0]] = before - budget.left
            note(node.outputs[0], tensors[node.outputs[0]])
            for name in finished if free else ():
                tensors.pop(name, None)
                budget.give_back(held.pop(name, 0))
        if image not in self._outputs:
            tensors.pop(image, None)
        return tensors, budget

    def _check_images(self, images: Array) -> None:
        expected = self.model.inputs[0]
        shape = expected.shape if expected.shape is not None else (None,) * images.ndim
        fits = len(shape) == images.ndim and all(
            size == found for size, found in zip(shape, images.shape, strict=True) if isinstance(size, int)
        )
        if images.dtype != expected.dtype or not fits:
            raise DataError(
                f"images of type {images.dtype} and shape {list(images.shape)} do not fit the input "
                f"{excerpt(repr(expected.name))} of {self.model.path}: it takes {expected.dtype} of shape "
                f"{excerpt(str(list(shape)))}."
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
                    raise self._refuse(node, f"nothing before it produces its input {excerpt(repr(name))}")
            if known.intersection(node.outputs):
                raise self._refuse(node, f"its output {excerpt(repr(node.outputs[0]))} exists already")
            known.update(node.outputs)
            if all(not name or name in self.constants for name in node.inputs):
                self.constants[node.outputs[0]] = self._fold(node)
            else:
                remaining.append(node)
        missing = [name for name in self._outputs if name not in known]
        if missing:
            raise ModelFileError(f"{self.model.path}: no node produces the output {excerpt(repr(missing[0]))}.")
        return tuple(remaining)

    def _check_promises(self) -> None:
        """Refuse a node for kernels that may receive larger codes than its attributes state, which they cannot handle.

        Raises:
            ModelFileError: one may.
        """
        promising = [node for node in self.nodes if node.op_type in KERNEL_CONVOLUTIONS]
        if not promising:
            return
        try:
            largest = largest_codes(self.nodes, self.constants)
        except (ValueError, OverflowError) as error:
            raise self._refuse(promising[0], error) from error
        for node in promising:
            promised, proven = self.constants.get(node.inputs[-1]), largest.get(node.inputs[0], 255)
            if promised is None or promised.size != 1 or int(promised.item()) < proven:
                found = "computed" if promised is None else excerpt(str(promised.ravel()[:1]))
                raise self._refuse(node, f"its x_high is {found}, but the codes that it reads may reach {proven}")

    def _fold(self, node: Node) -> Array:
        """Compute a constant; a view of another one needs no memory."""
        before = self._budget.left
        result = self._compute(node, {}, self._budget)
        if any(name and np.may_share_memory(result, self.constants[name]) for name in node.inputs):
            self._budget.give_back(before - self._budget.left)
        return result

    def _compute(self, node: Node, tensors: Mapping[str, Array], budget: Budget) -> Array:
        inputs = [self._find(name, tensors) if name else None for name in node.inputs]
        operator = find_operator(node)
        try:
            budget.pay(operator.cost(node, inputs))
            with np.errstate(all="ignore"):  # what is no number is refused, or counted where it reaches the logits
                return operator.compute(node, inputs)
        except MemoryError as error:
            raise self._refuse(node, f"there is not enough memory for its result ({error})") from error
        except (ValueError, TypeError, IndexError, OverflowError, ZeroDivisionError) as error:
            raise self._refuse(node, error) from error

    def _find(self, name: str, tensors: Mapping[str, Array]) -> Array:
        return tensors[name] if name in tensors else self.constants[name]

    def _refuse(self, node: Node, reason: object) -> ModelFileError:
        name, operator = excerpt(repr(node.name or node.outputs[0])), excerpt(node.op_type)
        return ModelFileError(f"{self.model.path}: node {name} ({operator}): {excerpt(str(reason), _LONGEST_REASON)}.")


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
    """List, per node, the tensors that it is the last to read; unread ones stay, as in ONNX Runtime."""
    last = {name: index for index, node in enumerate(nodes) for name in node.inputs}
    finished: list[list[str]] = [[] for _ in nodes]
    for name, index in last.items():
        if name and name not in keep:
            finished[index].append(name)
    return finished
