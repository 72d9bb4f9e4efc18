"""Golden vectors: their content, equality with ONNX Runtime, and a name for every difference and defect."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qil_deploy.datasets import load_images
from qil_deploy.errors import ConfigError, DataError
from qil_deploy.onnx_io.model_file import read_model
from qil_deploy.reference import IntegerReference
from qil_deploy.runtime_tests.backends import REFERENCE, onnx_backend_name
from qil_deploy.runtime_tests.golden import check_golden, golden_path, write_golden

ZOO = Path(__file__).parents[2] / "zoo" / "fashion_mnist"
LEVELS = ("disabled", "basic", "extended", "all")


@pytest.fixture(scope="module")
def golden(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The zoo's 2-bit network and golden vectors of three images."""
    folder = tmp_path_factory.mktemp("golden")
    model = Path(shutil.copy(next(ZOO.glob("*w2a2*.onnx")), folder / "model.onnx"))
    images = np.random.default_rng(3).integers(0, 256, (3, 1, 28, 28), dtype=np.uint8)
    write_golden(model, images, "noise", golden_path(model))
    return model, golden_path(model)


def changed(path: Path, folder: Path, change: Callable[[dict[str, Any]], object]) -> Path:
    """Return a copy of golden vectors with some arrays changed."""
    with np.load(path, allow_pickle=False) as stored:
        arrays = dict(stored)
    change(arrays)
    result = folder / "changed.npz"
    np.savez(result, **arrays)
    return result


def test_they_hold_images_logits_and_every_code(golden: tuple[Path, Path]) -> None:
    model, path = golden
    assert path.name == "model.golden.npz"
    with np.load(path, allow_pickle=False) as arrays:
        about = json.loads(str(arrays["about"]))
        expected = IntegerReference(read_model(model)).run_all(arrays["images"])
        assert about["tensors"] == list(expected)
        assert about["tensors"][-1] == "logits"
        for name, tensor in expected.items():
            np.testing.assert_array_equal(arrays[name], tensor, strict=True)


@pytest.mark.parametrize("level", LEVELS)
def test_onnxruntime_computes_them(golden: tuple[Path, Path], level: str) -> None:
    comparison = check_golden(*golden, against=onnx_backend_name(level))
    assert comparison.difference is None
    assert comparison.tensors == len(IntegerReference(read_model(golden[0])).nodes)


def test_the_reference_computes_them_and_unknown_backends_are_named(golden: tuple[Path, Path]) -> None:
    assert check_golden(*golden, against=REFERENCE).difference is None
    with pytest.raises(
        ConfigError, match="no backend 'frozen PyTorch' to compare with golden vectors; there are integer"
    ):
        check_golden(*golden, against="frozen PyTorch")


@pytest.mark.parametrize("tensor", ["conv1", "layer2.0.conv1", "logits"])
def test_the_first_difference_is_named(golden: tuple[Path, Path], tensor: str, tmp_path: Path) -> None:
    def change(arrays: dict[str, Any]) -> None:
        wrong = arrays[tensor].copy()
        wrong[1].flat[2] += 3 if tensor == "logits" else np.where(wrong[1].flat[2] > 100, 253, 3).astype(np.uint8)
        arrays[tensor] = wrong
        arrays["logits"] = arrays["logits"] + 1

    model, path = golden
    difference = check_golden(model, changed(path, tmp_path, change)).difference
    assert difference is not None
    assert difference.tensor == tensor
    if tensor != "logits":
        assert (difference.differing, difference.largest_step) == (1, 3)
        assert [index[0] for index in difference.indices] == [1]


def test_another_shape_is_a_difference(golden: tuple[Path, Path], tmp_path: Path) -> None:
    model, path = golden
    wrong = changed(path, tmp_path, lambda arrays: arrays.update(conv1=arrays["conv1"][..., :-1]))
    difference = check_golden(model, wrong).difference
    assert difference is not None
    assert (difference.tensor, difference.largest_step, difference.indices) == ("conv1", None, ())


def rewrite(**about: object) -> Callable[[dict[str, Any]], None]:
    def change(arrays: dict[str, Any]) -> None:
        arrays["about"] = np.array(json.dumps({**json.loads(str(arrays["about"])), **about}))

    return change


def add_pickle(arrays: dict[str, Any]) -> None:
    arrays["conv1"] = np.array([{"a": 1}], dtype=object)


DEFECTS: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "schema": (rewrite(schema="other/1"), "has schema 'other/1'; this version reads 'qil_deploy.golden/1'"),
    "another model": (rewrite(sha256="0" * 64), "are of another file than"),
    "a tensor that is not there": (rewrite(tensors=["conv1", "absent", "logits"]), "are damaged .*hold no absent"),
    "an unknown tensor": (
        lambda arrays: (arrays.update(absent=arrays["logits"]), rewrite(tensors=["absent", "logits"])(arrays)),
        "have a tensor absent, and .* has none",
    ),
    "a tensor twice": (rewrite(tensors=["conv1", "conv1", "logits"]), "are damaged .*twice"),
    "no logits": (rewrite(tensors=["conv1"]), "hold no logits"),
    "logits in front": (rewrite(tensors=["logits", "conv1"]), "hold no logits after the other tensors"),
    "more than it should say": (rewrite(surprise=1), "are damaged .*surprise"),
    "fewer images": (lambda arrays: arrays.update(conv1=arrays["conv1"][:2]), "not of as many images as there are"),
    "nothing in a tensor": (lambda arrays: arrays.update(conv1=arrays["conv1"][:, :0]), "not of as many images"),
    "no text": (lambda arrays: arrays.update(about=np.zeros(3)), "are damaged"),
    "nothing about it": (lambda arrays: arrays.pop("about"), "are damaged"),
    "pickle": (add_pickle, "are damaged .*[Pp]ickle|are damaged .*allow_pickle"),
    "no images": (lambda arrays: arrays.update(images=arrays["images"][:0]), "hold no images"),
}


@pytest.mark.parametrize("case", DEFECTS)
def test_defects_are_refused(golden: tuple[Path, Path], case: str, tmp_path: Path) -> None:
    model, path = golden
    change, message = DEFECTS[case]
    wrong = changed(path, tmp_path, change)
    with pytest.raises(DataError, match=message):
        check_golden(model, wrong)


def test_missing_and_truncated_files_are_refused(golden: tuple[Path, Path], tmp_path: Path) -> None:
    model, path = golden
    with pytest.raises(DataError, match=re.escape(f"there are no golden vectors {tmp_path / 'a.npz'}; export")):
        check_golden(model, tmp_path / "a.npz")
    half = tmp_path / "half.npz"
    half.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(DataError, match="are damaged"):
        check_golden(model, half)


def test_no_images_make_no_golden_vectors(golden: tuple[Path, Path], tmp_path: Path) -> None:
    images = load_images("digits", "test").images[:0]
    with pytest.raises(DataError, match="there are no images"):
        write_golden(golden[0], images, "nothing", tmp_path / "golden.npz")
    assert not list(tmp_path.iterdir())
