"""The map from pixels to input: what it is made from is whole, finite and of the right type."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from qil_deploy.errors import DataError
from qil_deploy.preprocessing import Preprocessing

GOOD: dict[str, Any] = {"channels": 3, "height": 4, "width": 4, "scale": 0.01, "zero_point": 77}


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"zero_point": 77.5}, r"zero_point is 77\.5; it must be a whole number"),
        ({"zero_point": math.nan}, "zero_point is nan; it must be a whole number"),
        ({"zero_point": 256}, r"zero point is 256; it must be in 0\.\.255"),
        ({"height": 4.0}, r"height is 4\.0; it must be a whole number"),
        ({"channels": "3"}, "channels is '3'; it must be a whole number"),
        ({"width": 0}, r"shape \(3, 4, 0\) has no pixels"),
        ({"scale": math.inf}, "scale is inf; it must be positive and finite"),
        ({"scale": 0.0}, r"scale is 0\.0; it must be positive"),
    ],
)
def test_what_no_image_can_have_is_refused(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        Preprocessing(**{**GOOD, **changed})


@pytest.mark.parametrize(("mean", "std"), [(0.5, 0.0), (0.5, -1.0), (0.5, math.inf), (math.nan, 0.2), (128.0, 0.2)])
def test_statistics_are_those_of_pixels_between_0_and_1(mean: float, std: float) -> None:
    with pytest.raises(DataError, match="are no statistics of pixels"):
        Preprocessing.from_statistics((3, 4, 4), mean, std)


def test_images_are_arrays_of_uint8() -> None:
    pixels = Preprocessing(**GOOD)
    with pytest.raises(
        DataError, match=r"images are a Tensor; give a NumPy array of uint8 \(of a tensor: .numpy\(\)\)"
    ):
        pixels.normalize(torch.zeros(1, 3, 4, 4, dtype=torch.uint8))  # type: ignore[arg-type] # the point
    with pytest.raises(DataError, match=r"images are float32 of shape \[1, 3, 4, 4\]; the network takes uint8"):
        pixels.normalize(np.zeros((1, 3, 4, 4), np.float32))
