"""The arithmetic of gates: products of codes, and functions that are tables of 256 codes.

Both round once, ties to even, after the zero point of the result has been added. Products are what ONNX Runtime
computes to the last bit, ties included. For a table that holds if no entry lies near a tie, which the certificate
requires: a float32 function is not the same on every machine.
"""

from __future__ import annotations

import numpy as np

from qil_deploy.integers import Function, table_values

from .kernels import Array, Grid, elementwise, saturate


def qlinear_mul(a: Array, a_grid: Grid, b: Array, b_grid: Grid, y_grid: Grid) -> Array:
    """Multiply codes of two grids, broadcasting (com.microsoft QLinearMul).

    rint(float32((A - a_zero_point) * (B - b_zero_point)) * M + y_zero_point), saturated, with
    M = float32(float32(a_scale * b_scale) / y_scale).
    """
    dtype = y_grid.zero_point.dtype
    ratio = np.float32(np.float32(a_grid.scale * b_grid.scale) / y_grid.scale)

    def multiply(a: Array, b: Array) -> Array:
        product = (a.astype(np.float32) - np.float32(a_grid.zero_point)) * (
            b.astype(np.float32) - np.float32(b_grid.zero_point)
        )
        return saturate(np.rint(product * ratio + np.float32(y_grid.zero_point)), dtype)

    return elementwise(multiply, dtype, a, b)


def qlinear_table(x: Array, x_grid: Grid, y_grid: Grid, function: Function, slope: float = 0.0) -> Array:
    """Map codes by a function (com.microsoft QLinearSigmoid, QLinearLeakyRelu).

    rint(f((X - x_zero_point) * x_scale) / y_scale + y_zero_point), saturated, for every code.
    """
    first, last = np.iinfo(x.dtype).min, np.iinfo(x.dtype).max
    codes = np.arange(first, last + 1, dtype=np.float64) - float(x_grid.zero_point)
    values = table_values(function, codes * float(x_grid.scale), slope) / float(y_grid.scale)
    table = saturate(np.rint(values + float(y_grid.zero_point)), y_grid.zero_point.dtype)
    result: Array = table[x.astype(np.int64) - first]
    return result
