"""Moments of layers: the weights they determine, against least squares on the data themselves."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from qil_deploy.network.layers import QuantConv2d
from qil_deploy.network.moments import Moments, Problem

GROUPS, OUTPUTS, ROW = 2, 3, 4  # [2 * 3, 4, 1, 1]


def layer() -> QuantConv2d:
    return QuantConv2d(GROUPS * ROW, GROUPS * OUTPUTS, (1, 1), (1, 1), (0, 0), (1, 1), GROUPS, bias=False)


def problem_of(
    x: NDArray[np.float64],
    f: NDArray[np.float64] | None,
    weights: NDArray[np.float64],
    *,
    centred: bool,
    pull: float = 0.01,
) -> Problem:
    moments = Moments(layer(), with_results=f is not None)
    for part in (slice(0, 10), slice(10, None)):
        moments.add(torch.from_numpy(x[:, part]), None if f is None else torch.from_numpy(f[:, part]))
    return moments.problem(torch.from_numpy(weights), centred=centred, pull=pull)


@pytest.mark.parametrize("pull", [0.01, 0.3])
@pytest.mark.parametrize("centred", [True, False])
def test_the_target_is_the_least_squares_solution(*, centred: bool, pull: float) -> None:
    rng = np.random.default_rng(3)
    x = rng.normal(1.0, 1.0, (GROUPS, 50, ROW)) * np.array([1.0, 2.0, 0.5, 3.0])
    f = rng.normal(2.0, 1.0, (GROUPS, 50, OUTPUTS))
    weights = rng.normal(size=(GROUPS, OUTPUTS, ROW))
    found = problem_of(x, f, weights, centred=centred, pull=pull)
    for group in range(GROUPS):
        inputs, results = x[group], f[group]
        if centred:
            inputs, results = inputs - inputs.mean(0), results - results.mean(0)
        damping = pull * (inputs**2).mean()
        for output in range(OUTPUTS):  # rows of data, and one row for each weight that pulls it to where it was
            a = np.concatenate([inputs / np.sqrt(len(inputs)), np.sqrt(damping) * np.eye(ROW)])
            b = np.concatenate([results[:, output] / np.sqrt(len(inputs)), np.sqrt(damping) * weights[group, output]])
            expected, *_ = np.linalg.lstsq(a, b)
            np.testing.assert_allclose(found.target[group, output], expected, rtol=1e-9)
    np.testing.assert_allclose(found.inputs, x.mean(1))
    np.testing.assert_allclose(found.results, f.mean(1))


@pytest.mark.parametrize("centred", [True, False])
def test_without_results_weights_are_their_own_target(*, centred: bool) -> None:
    rng = np.random.default_rng(4)
    x, weights = rng.normal(1.0, 1.0, (GROUPS, 50, ROW)), rng.normal(size=(GROUPS, OUTPUTS, ROW))
    found = problem_of(x, None, weights, centred=centred)
    np.testing.assert_array_equal(found.target, weights)
    np.testing.assert_allclose(found.results, np.einsum("gok,gpk->go", weights, x) / 50)


def test_what_is_never_met_keeps_its_weights() -> None:
    weights = np.random.default_rng(5).normal(size=(GROUPS, OUTPUTS, ROW))
    x, f = np.zeros((GROUPS, 20, ROW)), np.ones((GROUPS, 20, OUTPUTS))
    found = problem_of(x, f, weights, centred=True)
    np.testing.assert_allclose(found.target, weights)
    assert torch.equal(found.matrix, 0.01 * torch.eye(ROW, dtype=torch.float64).expand(GROUPS, -1, -1))
