"""The map from pixels to input: its parameters are whole, finite and of the right type."""

from __future__ import annotations

import dataclasses
import json
import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, strategies

from qil_deploy.errors import DataError
from qil_deploy.preprocessing import Preprocessing
from qil_deploy.quantizers import InputQuantizer

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


@pytest.mark.parametrize("shape", [(4, 4), (1, 3, 4, 4)])
def test_the_shape_is_that_of_one_image(shape: Any) -> None:  # noqa: ANN401 - the point
    with pytest.raises(DataError, match=r"shape is \(.*4, 4\); give \(channels, height, width\)"):
        Preprocessing.from_statistics(shape, 0.5, 0.2)


def test_images_are_arrays_of_uint8() -> None:
    pixels = Preprocessing(**GOOD)
    with pytest.raises(
        DataError, match=r"images are a Tensor; give a NumPy array of uint8 \(of a tensor: .numpy\(\)\)"
    ):
        pixels.normalize(torch.zeros(1, 3, 4, 4, dtype=torch.uint8))  # type: ignore[arg-type] # the point
    with pytest.raises(DataError, match=r"images are float32 of shape \[1, 3, 4, 4\]; the network takes uint8"):
        pixels.normalize(np.zeros((1, 3, 4, 4), np.float32))


STATISTICS = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}


def test_images_are_normalised_per_channel_as_torchvision_does() -> None:
    transforms = pytest.importorskip("torchvision.transforms")
    pixels = Preprocessing.from_statistics((3, 4, 4), **STATISTICS)
    images = np.random.default_rng(0).integers(0, 256, (2, 3, 4, 4), np.uint8)
    expected = transforms.Normalize(**STATISTICS)(torch.from_numpy(images) / 255)
    np.testing.assert_allclose(pixels.normalize(images), expected.numpy(), rtol=0, atol=1e-6)


def test_one_mean_for_all_channels_is_rounded_to_a_grey_level_as_ever() -> None:
    pixels = Preprocessing.from_statistics((3, 4, 4), 0.45, 0.226)
    assert (pixels.zero_point, pixels.mean, pixels.std) == (115, None, None)
    assert pixels.metadata() == {
        "channels": 3, "height": 4, "width": 4, "scale": float(np.float32(1 / (255 * 0.226))), "zero_point": 115
    }  # fmt: skip


def test_a_mean_for_each_channel_is_not_rounded() -> None:
    pixels = Preprocessing.from_statistics((1, 1, 1), (0.5,), 0.5)
    assert pixels.zero_point == 128  # of 127.5
    assert pixels.normalize(np.array([[[[255]]]], np.uint8)).item() == 1.0


@pytest.mark.parametrize(
    ("mean", "std", "message"),
    [
        ((0.5, 0.5), 0.2, "mean has 2 numbers, but images have 3 channels"),
        (0.5, (0.2, 0.2, 0.2, 0.2), "std has 4 numbers, but images have 3 channels"),
        ((0.5, 0.5, math.nan), 0.2, "mean nan and std 0.2 are no statistics of pixels"),
        ((0.5, 0.5, 1.5), 0.2, "mean 1.5 and std 0.2 are no statistics"),
        ((0.5, 0.5, 0.5), (0.2, 0.0, 0.2), "mean 0.5 and std 0.0 are no statistics"),
        ((0.5, 0.5, 0.5), (0.2, math.inf, 0.2), "mean 0.5 and std inf are no statistics"),
        ((0.5, 0.5, 0.5), (1e-9, 0.2, 0.2), "deviations may differ by a factor of 65536 at most"),
        ("abc", 0.2, "mean is 'abc'; give a number, or one per channel"),
        (None, (0.2, 0.2, 0.2), "mean is None; give a number, or one per channel"),
    ],
)
def test_statistics_per_channel_are_checked(mean: Any, std: Any, message: str) -> None:  # noqa: ANN401 - the point
    with pytest.raises(DataError, match=message):
        Preprocessing.from_statistics((3, 4, 4), mean, std)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"mean": (0.5, 0.5, 0.5)}, "one of mean and std without the other"),
        ({"channel_order": "GRB"}, "channel_order is 'GRB', of images of 3 channels; known are RGB, BGR"),
        ({"channel_order": "RGB", "channels": 1}, "channel_order is 'RGB', of images of 1 channels"),
        ({"interpolation": "cubic"}, "interpolation is 'cubic'; known are nearest, box"),
        ({"resize": 3}, "resize is 3; it must be the length of the shorter side"),
        ({"resize": (4, 3)}, r"resize is \(4, 3\); it must be"),
        ({"resize": (4, 4, 4)}, r"resize is \(4, 4, 4\); it must be"),
        ({"resize": 4.5}, r"resize is 4.5; it must be"),
    ],
)
def test_what_is_said_of_pictures_is_checked(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        Preprocessing(**{**GOOD, **changed})


def test_metadata_say_all_and_are_read_back() -> None:
    pixels = Preprocessing.from_statistics((3, 4, 6), **STATISTICS)
    pixels = dataclasses.replace(pixels, channel_order="RGB", resize=(5, 6), interpolation="bicubic")
    assert Preprocessing.from_metadata(json.loads(json.dumps(pixels.metadata()))) == pixels
    assert Preprocessing.from_metadata(GOOD) == Preprocessing(**GOOD)


@given(
    mean=strategies.lists(strategies.floats(0, 1), min_size=3, max_size=3),
    std=strategies.lists(strategies.floats(1 / 512, 2), min_size=3, max_size=3),
    unit=strategies.sampled_from([1e-20, 1e-3, 1.0, 1e20]),
)
def test_every_pixel_comes_back_from_what_the_network_sees(mean: list[float], std: list[float], unit: float) -> None:
    pixels = Preprocessing.from_statistics((3, 16, 16), mean, [unit * value for value in std])
    images = np.broadcast_to(np.arange(256, dtype=np.uint8).reshape(1, 1, 16, 16), (1, 3, 16, 16))
    quantizer = InputQuantizer.of(pixels)
    x = torch.from_numpy(pixels.normalize(images))
    np.testing.assert_array_equal(quantizer.codes(x).numpy(), images)
    on_grid = (images.astype(np.float32) - pixels.zero_point) * np.float32(pixels.scale)
    np.testing.assert_array_equal(quantizer(x).numpy(), on_grid)


def test_what_timm_says_is_taken_over() -> None:
    timm = pytest.importorskip("timm")
    network = timm.create_model("resnet18", pretrained=False)
    pixels = Preprocessing.from_timm(network)
    assert (pixels.shape, pixels.mean, pixels.std) == ((3, 224, 224), *STATISTICS.values())
    config = timm.data.resolve_data_config({}, model=network)
    transform = timm.data.create_transform(**config)
    resize, crop = transform.transforms[:2]
    assert (resize.size, resize.interpolation.value, crop.size) == (pixels.resize, pixels.interpolation, (224, 224))
    assert pixels.channel_order == "RGB"
    assert Preprocessing.from_timm(network.pretrained_cfg) == pixels
    small = Preprocessing.from_timm(network, size=64)
    assert (small.shape, small.resize) == ((3, 64, 64), math.floor(64 / network.pretrained_cfg["crop_pct"]))


@pytest.mark.parametrize(
    ("changed", "size"), [({"crop_pct": None}, None), ({"crop_mode": "border"}, None), ({}, (32, 48))], ids=str
)
def test_what_timm_says_of_pictures_is_left_out_where_it_has_no_place_here(
    changed: dict[str, Any], size: tuple[int, int] | None
) -> None:
    said: dict[str, Any] = {"input_size": (3, 32, 32), **STATISTICS, "crop_pct": 0.9, "interpolation": "random"}
    pixels = Preprocessing.from_timm(said | changed, size)
    assert (pixels.resize, pixels.interpolation) == (None, None)
    assert Preprocessing.from_timm(said | {"crop_mode": "squash"}).resize == (35, 35)


def test_what_torchvision_says_is_taken_over() -> None:
    models = pytest.importorskip("torchvision.models")
    weights = models.EfficientNet_B0_Weights.DEFAULT
    pixels = Preprocessing.from_torchvision(weights)
    assert (pixels.shape, pixels.mean, pixels.std) == ((3, 224, 224), *STATISTICS.values())
    assert (pixels.resize, pixels.interpolation, pixels.channel_order) == (256, "bicubic", "RGB")
    assert Preprocessing.from_torchvision(weights.transforms()) == pixels
    assert Preprocessing.from_torchvision(weights, size=112).resize == 128
    dense = models.segmentation.FCN_ResNet50_Weights.DEFAULT
    with pytest.raises(DataError, match="these weights of torchvision take images of any size; say which"):
        Preprocessing.from_torchvision(dense)
    assert Preprocessing.from_torchvision(dense, size=(64, 96)).shape == (3, 64, 96)


@pytest.mark.parametrize(
    ("make", "source", "message"),
    [
        (
            Preprocessing.from_timm,
            {},
            "a dict has no 'input_size', unlike the descriptions of pretrained networks in timm",
        ),
        (Preprocessing.from_timm, torch.nn.ReLU(), "a ReLU has no 'input_size'"),
        (
            Preprocessing.from_torchvision,
            torch.nn.ReLU(),
            "a ReLU has no 'mean', unlike the descriptions of pretrained networks in torchvision",
        ),
    ],
)
def test_what_says_nothing_of_images_is_refused(make: Any, source: object, message: str) -> None:  # noqa: ANN401
    with pytest.raises(DataError, match=message):
        make(source)
