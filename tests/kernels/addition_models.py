"""Files of one ResidualAdd, or of one LowBitRescale."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto, helper, numpy_helper

STANDARD, MICROSOFT = helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)
INPUTS = ["x", "A_scale", "A_zero_point", "B", "B_scale", "B_zero_point", "C_scale", "C_zero_point"]
LIMITS = ["low", "high"]
MOST_CODES = 256


@dataclass(frozen=True)
class Addition:
    """One addition of the codes `x` and others, in the form of exports.

    Attributes:
        scales, zero_points: of x, of what is added, and of the sums.
        limits: of the sums, for LowBitRescale; None for ResidualAdd.
    """

    scales: tuple[float, float, float] = (0.3, 0.7, 0.5)
    zero_points: tuple[int, int, int] = (128, 0, 3)
    limits: tuple[int, int] | None = None

    @property
    def operator(self) -> str:
        """The name of the node."""
        return "ResidualAdd" if self.limits is None else "LowBitRescale"

    def model(self, added: NDArray[np.generic] | None, **changed: NDArray[Any]) -> ModelProto:
        """Return a file with the node and the function that replaces it.

        Args:
            added: what is added, a constant; None for a second input of the file.
            changed: other constants, by the names of the inputs.
        """
        names = [*INPUTS, *(LIMITS if self.limits else [])]
        constants: dict[str, Any] = {f"{n}_scale": np.float32(s) for n, s in zip("ABC", self.scales, strict=True)}
        constants |= {f"{n}_zero_point": np.uint8(z) for n, z in zip("ABC", self.zero_points, strict=True)}
        constants |= {n: np.uint8(limit) for n, limit in zip(LIMITS, self.limits or (), strict=False)}
        constants |= ({} if added is None else {"B": added}) | changed
        inputs = ["x", *(["B"] if added is None else [])]
        graph = helper.make_graph(
            [helper.make_node(self.operator, names, ["y"], domain="qil.deploy")],
            "one",
            [helper.make_tensor_value_info(name, TensorProto.UINT8, None) for name in inputs],
            [helper.make_tensor_value_info("y", TensorProto.UINT8, None)],
            [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
        )
        nodes = [helper.make_node("QLinearAdd", INPUTS, ["sums"], domain="com.microsoft")]
        if self.limits:
            nodes.append(helper.make_node("Clip", ["sums", *LIMITS], ["codes"]))
        function = helper.make_function(
            "qil.deploy", self.operator, names, [nodes[-1].output[0]], nodes, [STANDARD, MICROSOFT]
        )
        opsets = [STANDARD, MICROSOFT, helper.make_opsetid("qil.deploy", 1)]
        return helper.make_model(graph, functions=[function], opset_imports=opsets, ir_version=10)


def every_pair() -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Return all pairs of two codes, in an order whose period is no multiple of a kernel's vector."""
    codes = np.arange(MOST_CODES, dtype=np.uint8)
    return np.repeat(codes, MOST_CODES), np.tile(codes, MOST_CODES)


def random_addition(rng: np.random.Generator, *, clipped: bool) -> Addition:
    """Return an addition in the form of exports: ratios p / q with one odd q, so that no result is near a tie."""
    q, scale = 2 * int(rng.integers(0, 500)) + 1, float(rng.uniform(0.001, 3))
    ratios = [int(rng.integers(1, 2 * q + 1)) for _ in range(2)]
    first, second, third = (int(zero_point) for zero_point in rng.choice([0, 1, 100, 128, 255], 3))
    low = int(rng.choice([0, 0, 1, 2]))
    return Addition(
        scales=(scale * ratios[0] / q, scale * ratios[1] / q, scale),
        zero_points=(first, second, third),
        limits=(low, low + int(rng.choice([1, 3, 3, 7, 15, 200]))) if clipped else None,
    )


def random_sum(rng: np.random.Generator, *, clipped: bool) -> tuple[ModelProto, NDArray[np.uint8]]:
    """Return a file of one addition of random shape, and its only input."""
    addition = random_addition(rng, clipped=clipped)
    shape = [int(size) for size in rng.integers(1, 30, int(rng.integers(1, 5)))]
    x = rng.integers(0, MOST_CODES, shape).astype(np.uint8)
    added = np.array([rng.integers(0, 2)]) if clipped else rng.integers(0, MOST_CODES, shape)
    return addition.model(added.astype(np.uint8)), x
