"""Store weight codes: packed to 4 or 2 bits with the operators that unpack them, or spread over int8.

    qil.Weight(codes, spread), int8      initializer int8 (codes * spread)
    qil.Weight(codes, spread), packed    initializer INT2 or INT4 -> Cast(int8) -> Mul(spread)

ONNX Runtime computes Cast and Mul once, when it loads the file. Packed codes take the smallest type they fit:
INT2 (-2..1) up to 2 bits, INT4 (-8..7) up to 4, int8 beyond. A Mul by 1 is left out.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from qil_deploy.export.emitter import QIL_DOMAIN, array_of, integer
from qil_deploy.export.options import Storage
from qil_deploy.onnx_io import stored_bits

from .replacement import Replacement, inputs_of, producer_of
from .rule import NodeRule


class StoreWeights(NodeRule):
    """Stores every `qil.Weight` as `storage` says."""

    domain, op_type = QIL_DOMAIN, "Weight"

    def __init__(self, storage: Storage) -> None:
        """Store packed, or as int8."""
        super().__init__()
        self._storage = storage

    def rewrite(self, op: Replacement, result: ir.Value) -> ir.Value:
        """Write the stored weights, and the operators that unpack them."""
        node = producer_of(result)
        codes, spread = (array_of(value) for value in inputs_of(node))
        factors = spread.reshape((-1,) + (1,) * (codes.ndim - 1))
        dtype = packed_dtype(integer(node, "bits"))
        if self._storage == "int8" or dtype is ir.DataType.INT8:
            # Not op.constant: it shares zeros, and weights are looked up by name even where all are zero.
            return op.tensor(_when_written(lambda: codes * factors, ir.DataType.INT8, codes.shape, str(node.name)))
        narrow = ml_dtypes.int2 if dtype is ir.DataType.INT2 else ml_dtypes.int4
        stored = op.tensor(_when_written(lambda: codes.astype(narrow), dtype, codes.shape, f"{node.name}_packed"))
        uniform = bool(np.all(spread == spread[0]))
        if uniform and spread[0] == 1:
            return op.op("Cast", [stored], str(node.name), attributes={"to": ir.DataType.INT8})
        cast = op.op("Cast", [stored], f"{node.name}_codes", attributes={"to": ir.DataType.INT8})
        factor = op.constant(spread[0], "") if uniform else op.constant(factors, f"{node.name}_spread")
        return op.op("Mul", [cast, factor], str(node.name))


def packed_dtype(bits: int) -> ir.DataType:
    """Return the smallest ONNX type for weight codes of `bits` bits."""
    return {2: ir.DataType.INT2, 4: ir.DataType.INT4, 8: ir.DataType.INT8}[stored_bits(bits)]


def _when_written(
    compute: Callable[[], NDArray[Any]], dtype: ir.DataType, shape: tuple[int, ...], name: str
) -> ir.TensorProtocol:
    """Return a tensor that is computed when it is written: otherwise all weights would be in memory twice."""
    return ir.LazyTensor(
        lambda: ir.Tensor(compute(), dtype=dtype, name=name), dtype=dtype, shape=ir.Shape(shape), name=name
    )
