"""Bilinear upsampling by powers of two: ONNX Runtime, the reference and frozen PyTorch round down the exact value."""

from __future__ import annotations

import itertools
from fractions import Fraction

import numpy as np
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from qil_deploy.integers.frozen_moves import FrozenBilinearUpsample
from qil_deploy.reference import kernels
from qil_deploy.runtime_tests.sessions import OPTIMIZATION_LEVELS

Codes = NDArray[np.uint8]
FACTORS = [*((factor, factor) for factor in (2, 4, 8, 16, 32)), (1, 2), (2, 4), (32, 1)]
SHAPES = ((1, 3, 7, 9), (2, 1, 1, 5), (1, 16, 14, 14), (3, 8, 13, 2), (1, 4, 1, 1))


def exact(codes: Codes, factors: tuple[int, int]) -> Codes:
    """Return the exact values, rounded down, in fractions: one image's pixels by the definition."""
    height, width = codes.shape[2:]

    def weights(size: int, factor: int) -> list[list[tuple[int, Fraction]]]:
        found = []
        for place in range(size * factor):
            at = min(max(Fraction(2 * place + 1, 2 * factor) - Fraction(1, 2), Fraction(0)), Fraction(size - 1))
            low = at.numerator // at.denominator
            found.append([(low, 1 - (at - low)), (min(low + 1, size - 1), at - low)])
        return found

    rows, columns = weights(height, factors[0]), weights(width, factors[1])
    scale = 4 * factors[0] * factors[1]  # makes integers of all products
    result = np.zeros((*codes.shape[:2], len(rows), len(columns)), np.int64)
    for (y, row), (x, column) in itertools.product(enumerate(rows), enumerate(columns)):
        for (top, share), (left, part) in itertools.product(row, column):
            result[:, :, y, x] += int(share * part * scale) * codes[:, :, top, left].astype(np.int64)
    return (result // scale).astype(np.uint8)


def run(codes: Codes, factors: tuple[int, int], level: str) -> Codes:
    node = helper.make_node(
        "Resize", ["x", "", "factors"], ["y"], mode="linear", coordinate_transformation_mode="half_pixel"
    )
    graph = helper.make_graph(
        [node],
        "resize",
        [helper.make_tensor_value_info("x", TensorProto.UINT8, codes.shape)],
        [helper.make_tensor_value_info("y", TensorProto.UINT8, None)],
        [numpy_helper.from_array(np.array([1, 1, *factors], np.float32), "factors")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = OPTIMIZATION_LEVELS[level]
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    (result,) = session.run(None, {"x": codes})
    return np.asarray(result)


@pytest.mark.parametrize("factors", FACTORS, ids=str)
def test_all_three_round_down_the_exact_value(factors: tuple[int, int], rng: np.random.Generator) -> None:
    for shape in SHAPES:
        codes = rng.integers(0, 256, shape, np.uint8)
        expected = exact(codes, factors)
        np.testing.assert_array_equal(kernels.upsample_bilinear(codes, *factors), expected, strict=True)
        frozen = FrozenBilinearUpsample(factors)(torch.from_numpy(codes).float()).numpy()
        np.testing.assert_array_equal(frozen, expected.astype(np.float32), strict=True)
        for level in OPTIMIZATION_LEVELS:
            np.testing.assert_array_equal(run(codes, factors, level), expected, err_msg=level, strict=True)
