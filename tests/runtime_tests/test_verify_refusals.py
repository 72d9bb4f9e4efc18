"""Inputs that cannot be verified: no images, unsuitable images or labels, wrong options, invalid models."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qil_deploy.errors import ConfigError, DataError, ModelFileError

from .verified_images import Images, Labels, WriteModel, verify


def test_an_empty_data_set_is_refused(write_model: WriteModel, images: Images, labels: Labels) -> None:
    with pytest.raises(DataError, match=r"no images to verify .*model\.onnx with"):
        verify(write_model(), images[:0], labels[:0])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x: x.astype(np.float32), r"images are float32 .* a NumPy array of uint8 \[N, C, H, W\]"),
        (lambda x: x[:, :1], r"images are uint8 of shape \[60, 1, 8, 8\]"),
        (lambda x: x[0], r"images are uint8 of shape \[3, 8, 8\]"),
    ],
)
def test_images_that_do_not_fit_are_refused(
    write_model: WriteModel, images: Images, labels: Labels, change: Callable[[Images], Any], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        verify(write_model(), change(images), labels)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda y: y[:-1], "labels are a ndarray of length 59, for 60 images"),
        (lambda y: y.astype(np.float64), "labels are float64"),
        (lambda y: y[:, None], r"shape \[60, 1\]"),
        (
            lambda y: np.where(y == 4, 5, y),
            r"labels run from 0 to 5, but .* has 5 classes: 0\.\.4 are allowed",
        ),
        (lambda y: y - 1, "labels run from -1 to 3"),
    ],
)
def test_labels_that_do_not_fit_are_refused(
    write_model: WriteModel, images: Images, labels: Labels, change: Callable[[Labels], Any], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        verify(write_model(), images, change(labels))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch size is 0; it must be at least 1"),
        ({"threads": 0}, "threads is 0"),
        ({"levels": ["fast"]}, "unknown optimization level 'fast'"),
        (
            {"must_equal": ["PyTorch"]},
            r"must_equal names \['PyTorch'\]; the backends are ONNX Runtime \(disabled\)",
        ),
        ({"must_equal": []}, "nothing in this verification of a qlinear model has to equal"),
        ({"levels": []}, "nothing in this verification"),
        (
            {"others": {"ONNX Runtime (all)": np.negative}},
            r"backend names \['ONNX Runtime \(all\)'\] are taken",
        ),
        ({"others": {"integer reference": np.negative}}, "are taken"),
    ],
)
def test_options_out_of_range_are_refused(
    write_model: WriteModel, images: Images, labels: Labels, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        verify(write_model(), images, labels, **options)


@pytest.mark.parametrize(
    ("predict", "message"),
    [
        (lambda x: np.zeros((len(x), 5)), r"odd returned float64 logits of shape \[60, 5\]; float32"),
        (lambda x: np.zeros((len(x), 4), np.float32), r"shape \[60, 4\]; float32 of shape \[60, 5\]"),
        (lambda x: np.zeros((len(x) - 1, 5), np.float32), r"shape \[59, 5\]"),
    ],
)
def test_logits_of_the_wrong_kind_are_refused(
    write_model: WriteModel, images: Images, labels: Labels, predict: Callable[[Images], Any], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        verify(write_model(), images, labels, others={"odd": predict})


def test_a_missing_and_a_truncated_model_are_refused(
    write_model: WriteModel, images: Images, labels: Labels, tmp_path: Path
) -> None:
    with pytest.raises(ModelFileError, match=r"absent\.onnx"):
        verify(tmp_path / "absent.onnx", images, labels)
    path = write_model()
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ModelFileError, match=r"model\.onnx"):
        verify(path, images, labels)


@pytest.mark.parametrize(
    "options",
    [
        {"others": {"frozen PyTorch": lambda batch: np.zeros((len(batch), 5), np.float32)}},
        {"must_equal": ["ONNX Runtime (all)"]},
        {"between": ("integer reference", "ONNX Runtime (all)")},
        {"first_difference": True},
    ],
)
def test_a_float_baseline_has_nothing_to_compare_with(
    write_model: WriteModel, images: Images, labels: Labels, options: dict[str, Any]
) -> None:
    with pytest.raises(ConfigError, match="is a float32 baseline: its accuracy is measured, and there is no integer"):
        verify(write_model(format="float", input="float"), images, labels, **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"metadata": None}, "carries no 'qil_deploy' metadata"),
        ({"metadata": {"format": "tflite"}}, "says format 'tflite'; known are qlinear, qdq, float"),
        ({"metadata": {"input": "float"}}, r"takes 'image' uint8\[\*, 3, 8, 8\], but its metadata promises "),
        ({"metadata": {"input": 3}}, "says input 3; known are uint8, float"),
        ({"metadata": {"class_names": ["a"]}}, r"promises 'logits' float32\[\*, 1\]"),
        ({"metadata": {"class_names": "abcde"}}, "is damaged .*not a list of names"),
        ({"metadata": {"preprocessing": {}}}, "has no entry 'channels'"),
        ({"metadata": {"preprocessing": None}}, "is damaged"),
        (
            {"batch": 1},
            r"takes 'image' uint8\[1, 3, 8, 8\], but its metadata promises 'image' uint8\[\*, 3, 8, 8\]",
        ),
    ],
)
def test_a_model_and_metadata_that_disagree_are_refused(
    write_model: WriteModel, images: Images, labels: Labels, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ModelFileError, match=message):
        verify(write_model(**options), images, labels)
