"""Small ONNX files from ONNX's text form and NumPy constants."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

Constants = Mapping[str, NDArray[Any] | np.generic]

X, Y = "uint8[1,2,8,8] x", "uint8[1,3,6,6] y"
# Codes x of 2 channels become codes y of 3, in a QDQ convolution that ONNX Runtime fuses.
CONVOLUTION = """
    x_value = DequantizeLinear(x, x_scale, x_zero)
    w_value = DequantizeLinear<axis = 0>(w, w_scale, w_zero)
    sum = Conv(x_value, w_value)
    y = QuantizeLinear(sum, y_scale, y_zero)
"""


def constants(**changes: Any) -> dict[str, NDArray[Any] | np.generic]:  # noqa: ANN401 - arrays of any type
    """Return the constants of `CONVOLUTION`, some of them replaced or added."""
    return {
        "x_scale": np.float32(0.1),
        "x_zero": np.uint8(0),
        "w": np.arange(-27, 27, dtype=np.int8).reshape(3, 2, 3, 3),
        "w_scale": np.array([0.1, 0.2, 0.3], np.float32),
        "w_zero": np.zeros(3, np.int8),
        "y_scale": np.float32(2),
        "y_zero": np.uint8(0),
        **changes,
    }


def build_model(
    body: str,
    values: Constants,
    x: str = X,
    y: str = Y,
    *,
    functions: str = "",
    opset: int = 21,
    ir_version: int = 10,
) -> onnx.ModelProto:
    """Build a model.

    Args:
        body: nodes, in ONNX's text form; domains `com.microsoft`, `elsewhere`, `local` and `qonnx` are there.
        values: initializers.
        x, y: inputs and outputs, with types and shapes.
        functions: model-local functions, in ONNX's text form.
        opset: version of the standard operators.
        ir_version: of the file format.
    """
    domains = f'"" : {opset}, "com.microsoft" : 1, "elsewhere" : 1, "local" : 1, "qonnx.custom_op.general" : 1'
    text = f"<ir_version: {ir_version}, opset_import: [{domains}]>\ngraph ({x}) => ({y}) {{{body}}}\n{functions}"
    model: onnx.ModelProto = onnx.parser.parse_model(text)
    model.graph.initializer.extend(numpy_helper.from_array(np.asarray(value), name) for name, value in values.items())
    return model


def write_graph(path: Path, *arguments: Any, **options: Any) -> Path:  # noqa: ANN401 - those of `build_model`
    """Write a model that `build_model` builds, and return its path."""
    path.write_bytes(build_model(*arguments, **options).SerializeToString())
    return path
