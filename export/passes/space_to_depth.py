"""Rewrite the stem: blocks of s x s pixels become channels, and a convolution of stride s one of stride 1.

ONNX Runtime's convolution is slow where the input has few channels, and slower still where their number is no multiple
of four. The stem of most networks has three, a large kernel and a stride. Along one axis, for kernel k, stride s and p
pixels of padding in front,

    y[o] = sum_i w[i] x[s o + i - p]            i = 0 .. k - 1

Let `f` zeros precede the kernel, so that `p + f = s P`, and let `s b + r = i + f` split a position into block
`b` and place `r` within the block:

    y[o] = sum_b sum_r w'[b, r] x[s (o + b - P) + r]        w'[b, r] = w[s b + r - f], 0 outside the kernel

a convolution of stride 1 over blocks, with `K = ceil((k + f) / s)` taps, P blocks of padding in front and the s places
of a block as channels. Where the image is no whole number of blocks, or where f would cost a tap more, the image is
padded beforehand (with the zero point, as the convolution would) and f and P are 0. The products are those of the
stem, so every accumulator is the same integer.

Blocks become channels by moves that are fast in ONNX Runtime: Reshape, Transpose, Reshape takes the rows of a block
apart; then, with channels last, neighbouring columns lie together already, and a Reshape joins them. The last Transpose
meets the one that ONNX Runtime puts before a convolution, and both vanish. (SpaceToDepth would do it in one node,
but takes longer, and ONNX Runtime 1.24 cannot load it on uint8.) Channels are filled up with planes of the zero point
until the result has a multiple of four; at s = 1 nothing else is done.

Measured over 300 stems of one to three channels, it takes 0.77 of the time on average. It would take more if the result
has only a few pixels, or if empty planes are added under a large kernel: those stems are not changed.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnxscript.rewriter import MatchContext, MatchResult

from qil_deploy.export.emitter import QIL_DOMAIN, integer

from .replacement import Replacement, inputs_of, producer_of
from .rule import NodeRule

MAX_CHANNELS = 3
MIN_RESULTS = 12
MAX_FILLED_KERNEL = 5
_ALIGNMENT = 4


class SpaceToDepth(NodeRule):
    """Rewrites convolutions that read the image, have few input channels, and become faster."""

    domain, op_type = QIL_DOMAIN, "Conv"

    def __init__(self, min_results: int | None = None) -> None:
        """Rewrite convolutions whose results have at least so many rows and columns, by default `MIN_RESULTS`."""
        super().__init__()
        self._min_results = MIN_RESULTS if min_results is None else min_results

    def check(self, op: MatchContext, result: ir.Value) -> MatchResult:
        """Skip convolutions that are no stem, cannot be cut into blocks, or would be slower."""
        del op
        stem = self._stem(producer_of(result))
        return MatchResult().fail(stem, result) if isinstance(stem, str) else MatchResult()

    def rewrite(self, op: Replacement, result: ir.Value) -> ir.Value | None:
        """Write the blocks, and the convolution over them."""
        node = producer_of(result)
        stem = self._stem(node)
        return None if isinstance(stem, str) else stem.emit(op, node, inputs_of(node))

    def _stem(self, node: ir.Node) -> _Stem | str:
        image = _image_shape(node)
        return "it reads codes, not the image" if image is None else _Stem.of(node, image, self._min_results)


def _image_shape(node: ir.Node) -> tuple[int, int, int] | None:
    """Return channels, height and width of the image that a node reads, as codes or through its quantizer."""
    source = node.inputs[0]
    producer = None if source is None else source.producer()
    if producer is not None and (producer.domain, producer.op_type) == (QIL_DOMAIN, "Quantize"):
        source = producer.inputs[0]
    if source is None or not source.is_graph_input() or source.shape is None:
        return None
    channels, height, width = (int(size) for size in source.shape[1:])  # type: ignore[arg-type]  # only the batch is free
    return channels, height, width


@dataclass(frozen=True, kw_only=True)
class _Axis:
    """One axis of the rewritten convolution (module docstring).

    Attributes:
        shift: `f`, zeros in front of the kernel.
        taps: `K`, blocks under the kernel.
        pads: blocks of padding before and after.
        image_pads: pixels by which the image is padded beforehand, before and after.
        size: pixels of the padded image.
        results: of the convolution.
    """

    shift: int
    taps: int
    pads: tuple[int, int]
    image_pads: tuple[int, int]
    size: int
    results: int

    @classmethod
    def of(cls, size: int, kernel: int, stride: int, pads: tuple[int, int]) -> _Axis | None:
        """Return the cheaper way, or None if the image would be cropped, or some taps would meet only padding."""
        before, behind = pads
        results = (size + before + behind - kernel) // stride + 1
        if size < kernel or (results - 1) * stride < before:
            return None
        shift = -before % stride
        taps, fewest = -(-(kernel + shift) // stride), -(-kernel // stride)
        padded = (results - 1 + fewest) * stride
        crops = padded < size + before
        if size % stride == 0 and (taps == fewest or crops):
            first = (before + shift) // stride
            pads = (first, results - 1 + taps - size // stride - first)
            return cls(shift=shift, taps=taps, pads=pads, image_pads=(0, 0), size=size, results=results)
        if crops:
            return None
        image_pads = (before, padded - size - before)
        return cls(shift=0, taps=fewest, pads=(0, 0), image_pads=image_pads, size=padded, results=results)


@dataclass(frozen=True, kw_only=True)
class _Stem:
    """Plan for rewriting one convolution.

    Attributes:
        block: `s`.
        channels: of the image, filled up.
        added_channels: how many of them.
        rows, columns: the two axes.
    """

    block: int
    channels: int
    added_channels: int
    rows: _Axis
    columns: _Axis

    @classmethod
    def of(cls, node: ir.Node, image: tuple[int, int, int], min_results: int) -> _Stem | str:
        """Return the plan for a convolution of an image [C, H, W], or the reason why it is impossible or useless."""
        codes = node.inputs[1]
        if codes is None or codes.shape is None:
            raise ValueError(f"{node.name} has no weight codes")
        kernel = codes.shape.numpy()[2:]
        (block, other), pads = (list(node.attributes[name].as_ints()) for name in ("strides", "pads"))
        if list(node.attributes["dilations"].as_ints()) != [1, 1] or integer(node, "group") != 1 or other != block:
            return "it is dilated, in groups, or of two strides"
        if image[0] > MAX_CHANNELS or min(kernel) <= block:
            return f"its image has more than {MAX_CHANNELS} channels, or its kernel is no larger than its stride"
        rows, columns = (
            _Axis.of(image[1 + axis], int(kernel[axis]), block, (pads[axis], pads[2 + axis])) for axis in (0, 1)
        )
        if rows is None or columns is None:
            return "its last blocks lie outside of the image, or some windows in the padding alone"
        if min(rows.results, columns.results) < min_results:
            return f"it makes fewer than {min_results} rows or columns"
        if block == 1 and max(kernel) > MAX_FILLED_KERNEL:
            return (
                f"its kernel is larger than {MAX_FILLED_KERNEL}, and planes of nothing would cost more than they save"
            )
        added = -image[0] % _ALIGNMENT if block % 2 else 0
        return cls(block=block, channels=image[0] + added, added_channels=added, rows=rows, columns=columns)

    def emit(self, new: Replacement, node: ir.Node, inputs: list[ir.Value]) -> ir.Value:
        """Emit the convolution over blocks, under the node's own name."""
        name, (x, codes, *others) = str(node.name), inputs
        if codes.const_value is None:
            raise ValueError(f"{name} has computed weights")
        weights = new.constant(self.arrange(codes.const_value.numpy()), f"{name}_block_codes")
        attributes = {attribute.name: attribute for attribute in node.attributes.values()} | {
            "strides": [1, 1],
            "pads": [*(axis.pads[0] for axis in (self.rows, self.columns)), self.rows.pads[1], self.columns.pads[1]],
        }
        blocks = self._blocks(new, name, self._padded(new, node, x))
        return new.op("Conv", [blocks, weights, *others], name, domain=QIL_DOMAIN, attributes=attributes)

    def arrange(self, codes: NDArray[np.int8]) -> NDArray[np.int8]:
        """Return the weights [C_out, s * s * C, K, K] over blocks for those [C_out, C, k, k] over pixels."""
        s, rows, columns = self.block, self.rows, self.columns
        outputs, channels, height, width = codes.shape
        spaced = np.zeros((outputs, self.channels, rows.taps * s, columns.taps * s), codes.dtype)
        spaced[:, :channels, rows.shift : rows.shift + height, columns.shift : columns.shift + width] = codes
        split = spaced.reshape(outputs, self.channels, rows.taps, s, columns.taps, s)
        return split.transpose(0, 5, 3, 1, 2, 4).reshape(outputs, -1, rows.taps, columns.taps)

    def _padded(self, new: Replacement, node: ir.Node, x: ir.Value) -> ir.Value:
        (top, bottom), (left, right) = self.rows.image_pads, self.columns.image_pads
        pads = [0, 0, top, left, 0, self.added_channels, bottom, right]
        if not any(pads):
            return x
        operands = [new.constant(np.array(pads), f"{node.name}_pads")]
        operands.append(new.constant(np.uint8(integer(node, "x_zero_point")), ""))
        return new.op("Pad", [x, *operands], f"{node.name}_padded")

    def _blocks(self, new: Replacement, name: str, x: ir.Value) -> ir.Value:
        """Move the places of a block to the channels: column within the block outermost, then row, then channel."""
        s, channels, height, width = self.block, self.channels, self.rows.size, self.columns.size
        if s == 1:
            return x

        def reshape(value: ir.Value, shape: list[int], what: str) -> ir.Value:
            # A 0 keeps the batch as it is.
            sizes = new.constant(np.array([0, *shape]), f"{name}_{what}_shape")
            return new.op("Reshape", [value, sizes], f"{name}_{what}")

        def transpose(value: ir.Value, order: list[int], what: str) -> ir.Value:
            return new.op("Transpose", [value], f"{name}_{what}", attributes={"perm": order})

        rows = reshape(x, [channels * (height // s), s, width], "split_rows")
        rows = reshape(transpose(rows, [0, 2, 1, 3], "rows"), [s * channels, height // s, width], "row_blocks")
        last = transpose(rows, [0, 2, 3, 1], "channels_last")
        last = reshape(last, [height // s, width // s, s * s * channels], "column_blocks")
        return transpose(last, [0, 3, 1, 2], "blocks")
