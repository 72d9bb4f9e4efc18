"""The table of operators: one row for each that a network may consist of, with all its properties.

A row says how the operator is captured (its ATen names, and the plain modules that replace a call), what it does to
values (its kind, `operator_row`), and, for operators that only move values, how ONNX writes it. Code that needs to know
asks the row: `capture` and `sites` in this room, `qil_deploy.integers`, `qil_deploy.export`.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from .captured_call import Call, Modules
from .drop_path import DropPath
from .dropout_marks import DROPOUT, FEATURE_DROPOUT
from .float_island import FloatIsland
from .layers import Add, ChannelAffine, GlobalAveragePool, PaddedConv2d, Product, Standalone
from .moves import (
    BilinearUpsample,
    Concat,
    ConstantPad,
    EdgePad,
    Flip,
    PaddedMaxPool2d,
    Permute,
    Reshape,
    Slice,
)
from .onnx_forms import (
    write_bilinear,
    write_concat,
    write_constant_pad,
    write_edge_pad,
    write_flatten,
    write_flip,
    write_max_pool,
    write_permute,
    write_reshape,
    write_slice,
    write_upsample,
)
from .operator_row import Operator
from .rebuild_affine import divide, negate, prelu, subtract, subtract_from
from .rebuild_gates import hard_sigmoid, hard_swish, leaky_relu, multiply, sigmoid, silu
from .rebuild_layers import add, batch_norm, clamp, convolution, linear, relu, relu6
from .rebuild_moves import (
    channel_shuffle,
    concatenate,
    dropout,
    edge_pad,
    expand,
    feature_dropout,
    flip,
    interpolate,
    move_dimension,
    narrow,
    pad,
    permute,
    piece,
    pixel_shuffle,
    pixel_unshuffle,
    repeat,
    reshape,
    roll,
    same,
    select,
    stack,
    take_slice,
    transpose,
    unbind,
    upsample,
)
from .rebuild_pools import adaptive_average_pool, adaptive_max_pool, average_pool, max_pool, mean
from .rebuild_rows import of_rows
from .rebuild_transposed import transposed_convolution

aten = torch.ops.aten

OPERATORS = (
    Operator(
        title="Conv2d",
        kind="conv",
        modules=(nn.Conv2d, PaddedConv2d),
        captured={
            aten.conv2d.default: convolution,
            aten.conv2d.padding: convolution,
            aten.convolution.default: of_rows(convolution),
            aten.conv1d.default: of_rows(convolution),
            aten.conv1d.padding: of_rows(convolution),
            aten.conv_transpose2d.input: transposed_convolution,
        },
        captured_rows={aten.conv_transpose1d.default: transposed_convolution},
    ),
    Operator(title="Linear", kind="linear", modules=(nn.Linear,), captured={aten.linear.default: linear}),
    Operator(
        title="BatchNorm",
        kind="bn",
        modules=(nn.BatchNorm2d, nn.BatchNorm1d),
        captured={
            aten.batch_norm.default: batch_norm,
            aten._native_batch_norm_legit_no_training.default: batch_norm,
        },
    ),
    Operator(
        title="scales and shifts of channels",
        kind="bn",
        modules=(ChannelAffine,),
        captured={
            aten.sub.Tensor: subtract,
            aten.rsub.Scalar: subtract_from,
            aten.div.Tensor: divide,
            aten.neg.default: negate,
        },
    ),
    Operator(
        title="ReLU",
        kind="relu",
        modules=(nn.ReLU,),
        captured={
            aten.relu.default: relu,
            aten.clamp.default: clamp,
            aten.clamp_min.default: clamp,
            aten.clamp_max.default: clamp,
        },
    ),
    Operator(
        title="ReLU6 and clips to any bounds",
        kind="relu",
        modules=(nn.Hardtanh, nn.ReLU6),
        captured={aten.relu6.default: relu6, aten.hardtanh.default: clamp},
    ),
    Operator(title="addition of two tensors", kind="add", modules=(Add,), captured={aten.add.Tensor: add}),
    Operator(
        title="multiplication of two tensors",
        kind="product",
        modules=(Product,),
        captured={aten.mul.Tensor: multiply, aten.silu.default: silu, aten.hardswish.default: hard_swish},
    ),
    Operator(
        title="sigmoid, LeakyReLU and PReLU",
        kind="table",
        modules=(nn.Sigmoid, nn.LeakyReLU, nn.PReLU),
        captured={
            aten.sigmoid.default: sigmoid,
            aten.leaky_relu.default: leaky_relu,
            aten.prelu.default: prelu,
            aten._prelu_kernel.default: prelu,
        },
    ),
    Operator(
        title="hard sigmoid, SiLU and hard swish",
        kind="hard sigmoid",
        modules=(nn.Hardsigmoid,),
        captured={aten.hardsigmoid.default: hard_sigmoid},
    ),
    Operator(
        title="concatenation of channels",
        kind="concat",
        modules=(Concat,),
        captured={aten.cat.default: concatenate},
        onnx=write_concat,
    ),
    Operator(
        title="average and maximum pooling",
        kind="pool",
        modules=(GlobalAveragePool,),
        captured={aten.mean.dim: mean, aten.adaptive_avg_pool2d.default: adaptive_average_pool},
        captured_rows={aten.adaptive_avg_pool1d.default: adaptive_average_pool},
    ),
    Operator(
        title="average and maximum pooling",
        kind="average",
        modules=(nn.AvgPool2d,),
        captured={aten.avg_pool2d.default: average_pool},
        captured_rows={aten.avg_pool1d.default: average_pool},
    ),
    Operator(
        title="average and maximum pooling",
        kind="pass",
        modules=(nn.MaxPool2d, PaddedMaxPool2d),
        captured={
            aten.max_pool2d.default: max_pool,
            aten.max_pool2d_with_indices.default: max_pool,
            aten.adaptive_max_pool2d.default: adaptive_max_pool,
        },
        captured_rows={aten.max_pool1d.default: max_pool, aten.adaptive_max_pool1d.default: adaptive_max_pool},
        onnx=write_max_pool,
        chooses=True,
    ),
    Operator(
        title="nearest-neighbour Upsample",
        kind="pass",
        modules=(nn.Upsample,),
        captured={aten.expand.default: expand, aten.expand_as.default: expand}
        | dict.fromkeys((aten.upsample_nearest2d.vec, aten.upsample_nearest2d.default), upsample)
        | dict.fromkeys((aten.upsample_bilinear2d.vec, aten.upsample_bilinear2d.default), interpolate),
        captured_rows=dict.fromkeys((aten.upsample_nearest1d.vec, aten.upsample_nearest1d.default), upsample)
        | dict.fromkeys((aten.upsample_linear1d.vec, aten.upsample_linear1d.default), interpolate),
        onnx=write_upsample,
        chooses=True,
    ),
    Operator(
        title="bilinear Upsample by powers of two",
        kind="pass",
        modules=(BilinearUpsample,),
        captured={},
        onnx=write_bilinear,
        chooses=True,
        rearranges=True,
        wants_range=True,
    ),
    Operator(
        title="padding by repeated pixels",
        kind="pass",
        modules=(EdgePad,),
        captured=dict.fromkeys((aten.reflection_pad2d.default, aten.replication_pad2d.default), edge_pad),
        captured_rows=dict.fromkeys((aten.reflection_pad1d.default, aten.replication_pad1d.default), edge_pad),
        onnx=write_edge_pad,
        chooses=True,
        rearranges=True,
    ),
    Operator(
        title="padding with a constant",
        kind="pass",
        modules=(ConstantPad,),
        captured=dict.fromkeys((aten.constant_pad_nd.default, aten.pad.default), of_rows(pad)),
        onnx=write_constant_pad,
        chooses=True,
        rearranges=True,
        wants_range=True,
    ),
    Operator(
        title="Flatten",
        kind="pass",
        modules=(nn.Flatten,),
        captured=dict.fromkeys(
            (
                aten.view.default,
                aten.reshape.default,
                aten._unsafe_view.default,
                aten.flatten.using_ints,
                aten.squeeze.dim,
                aten.squeeze.dims,
                aten.squeeze.default,
            ),
            reshape,
        ),
        onnx=write_flatten,
        returns_input=True,
    ),
    Operator(
        title="other shapes",
        kind="pass",
        modules=(Reshape,),
        captured={
            aten.unflatten.int: reshape,
            aten.unsqueeze.default: reshape,
            aten.stack.default: stack,
            aten.channel_shuffle.default: channel_shuffle,
            aten.pixel_shuffle.default: pixel_shuffle,
            aten.pixel_unshuffle.default: pixel_unshuffle,
        },
        onnx=write_reshape,
        returns_input=True,
        rearranges=True,
    ),
    Operator(
        title="slices",
        kind="pass",
        modules=(Slice,),
        captured={
            aten.slice.Tensor: take_slice,
            aten.narrow.default: narrow,
            aten.select.int: select,
        },
        onnx=write_slice,
        returns_input=True,
        rearranges=True,
    ),
    Operator(
        title="reversed, rolled and repeated dimensions",
        kind="pass",
        modules=(Flip,),
        captured={aten.flip.default: flip, aten.roll.default: roll, aten.repeat.default: repeat},
        onnx=write_flip,
        rearranges=True,
    ),
    Operator(
        title="splits",
        kind="pass",
        modules=(),
        captured={
            **dict.fromkeys(
                (
                    aten.chunk.default,
                    aten.split.Tensor,
                    aten.split.sizes,
                    aten.split_with_sizes.default,
                    aten.tensor_split.sections,
                    aten.tensor_split.indices,
                ),
                piece,
            ),
            aten.unbind.int: unbind,
        },
        many_results=True,
    ),
    Operator(
        title="permuted dimensions",
        kind="pass",
        modules=(Permute,),
        captured={
            aten.permute.default: permute,
            aten.transpose.int: transpose,
            aten.swapaxes.default: transpose,
            aten.movedim.int: move_dimension,
        },
        onnx=write_permute,
        returns_input=True,
        rearranges=True,
    ),
    Operator(
        title="Dropout",
        kind="pass",
        modules=(nn.Dropout, nn.Dropout1d, nn.Dropout2d, DropPath),
        captured={
            aten.dropout.default: dropout,
            aten.feature_dropout.default: feature_dropout,
            DROPOUT: dropout,
            FEATURE_DROPOUT: feature_dropout,
        },
        returns_input=True,
        only_trains=True,
    ),
    Operator(
        title="padding with zeros in front of a convolution",
        kind="pad",
        modules=(nn.ZeroPad2d,),
        captured={},
    ),
    Operator(
        title="copies",
        kind="pass",
        modules=(nn.Identity,),
        captured=dict.fromkeys(
            (
                aten.alias.default,
                aten.clone.default,
                aten.contiguous.default,
                aten.lift_fresh_copy.default,
                aten._to_copy.default,
                aten.to.dtype,
                aten.to.dtype_layout,
                aten.type_as.default,
            ),
            same,
        ),
    ),
    Operator(title="lone BatchNorm or ReLU", kind="standalone", modules=(Standalone,), captured={}, returns_input=True),
    Operator(title="float part", kind="float", modules=(FloatIsland,), captured={}),
)
_BY_MODULE = {module: row for row in OPERATORS for module in row.modules}
_BY_CALL = {call: rebuild for row in OPERATORS for call, rebuild in row.captured.items()}
_BY_CALL |= {call: of_rows(rebuild) for row in OPERATORS for call, rebuild in row.captured_rows.items()}
_MANY_RESULTS = {call for row in OPERATORS if row.many_results for call in row.captured}
SUPPORTED = ", ".join(dict.fromkeys(row.title for row in OPERATORS if row.captured and row.title != "copies"))
"""What can be lowered, for messages."""


def operator_of(module: nn.Module) -> Operator | None:
    """Return the row of a plain module, or of the quantized layer that replaced it; None for any other module."""
    return next((_BY_MODULE[cls] for cls in type(module).__mro__ if cls in _BY_MODULE), None)


def rebuilt_by(target: object, result: int = 0) -> Callable[[Call], Modules] | None:
    """Return the function that rebuilds the calls of an ATen operator.

    Args:
        target: the ATen operator.
        result: which of its results is to be rebuilt.

    Returns:
        None for an operator that is in no row, and for results after the first of one that is taken to have one.
    """
    return None if result > 0 and target not in _MANY_RESULTS else _BY_CALL.get(target)
