"""NaN and infinity are found in every kind of tensor, and named."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from qil_deploy.errors import CheckpointError, UnsupportedModelError
from qil_deploy.network.finite import is_finite, require_finite

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64, torch.float8_e5m2)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_one_value_that_is_not_finite_is_found_wherever_it_is(dtype: torch.dtype, value: float) -> None:
    for index in range(7):
        values = torch.linspace(-3.0, 3.0, 7)
        assert is_finite(values.to(dtype))
        values[index] = value
        assert not is_finite(values.to(dtype))
        with pytest.raises(UnsupportedModelError, match="'a' has NaN or infinity in 1 of 7 values"):
            require_finite([("a", values.to(dtype))], "the network")


@pytest.mark.parametrize(
    "tensor",
    [
        torch.zeros(0),
        torch.tensor([2**62, -(2**62)]),
        torch.tensor([True, False]),
        torch.tensor([torch.finfo(torch.float32).max, -torch.finfo(torch.float32).max]),
        torch.tensor([1e-45, 0.0]),
        torch.ones(3, requires_grad=True),
    ],
)
def test_everything_else_is_finite(tensor: Tensor) -> None:
    assert is_finite(tensor)
    require_finite([("a", tensor)], "the network")


def test_the_sentence_names_the_tensor_and_counts() -> None:
    weight = torch.ones(2, 3)
    weight[0, 1], weight[1, 2] = float("nan"), float("-inf")
    with pytest.raises(
        UnsupportedModelError, match=r"^the network: tensor 'conv.weight' has NaN or infinity in 2 of 6 values"
    ):
        require_finite([("fine", torch.ones(2)), ("conv.weight", weight)], "the network")
    named = [("a", weight), ("b", weight), ("c", torch.zeros(1)), ("d", weight[0])]
    with pytest.raises(CheckpointError, match=r"weights w.pth: tensor 'a' .* \(so have 2 other tensors\); go back"):
        require_finite(named, "weights w.pth", error=CheckpointError)


def test_names_from_files_are_cut_and_escaped() -> None:
    with pytest.raises(CheckpointError) as caught:
        require_finite([("\x1b[31m" + "a" * 10**6, torch.tensor(float("nan")))], "weights", error=CheckpointError)
    assert len(str(caught.value)) < 500
    assert "\x1b" not in str(caught.value)
