"""The code on the pages runs: blocks and commands in order, in one folder, as a reader would run them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torchvision
from PIL import Image
from torchvision import transforms

from qil_deploy.datasets import load_images
from qil_deploy.integers.freezing_report import predictions
from qil_deploy.preprocessing import Preprocessing
from qil_deploy.runtime_tests.exported_model import read_exported_model
from qil_deploy.runtime_tests.golden import write_golden
from tests.docs.pages import DOCS, ROOT, blocks, python_block, run_page, run_python

if TYPE_CHECKING:
    from tests.command_line import Outcome

ZOO_MODEL = ROOT / "zoo" / "fashion_mnist" / "w4a4.onnx"


def test_the_first_page(call: Callable[..., Outcome], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A reader who follows it ends with a network in ONNX."""
    monkeypatch.chdir(tmp_path)
    namespace, commands = run_page(DOCS / "index.md", call)
    assert commands == ["verify", "inspect", "bench"]
    test = load_images("digits", "test")
    found = read_exported_model(Path("model.onnx")).onnx_predictor()(test.images).argmax(1)
    assert np.mean(found == test.labels) > 0.9  # 0.99 or so; what is asked for here is that it learned
    assert namespace["data"].class_names == read_exported_model(Path("model.onnx")).class_names


def test_a_network_of_your_own(call: Callable[..., Outcome], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = DOCS / "your-own-network.md"
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    (_, module), *_ = blocks(page)
    Path("my_networks.py").write_text(module)
    namespace, commands = run_page(page, call, skip=1)
    assert commands == ["export", "verify", "sensitivity"]
    assert Path("again.onnx").read_bytes() == Path("w2a2.onnx").read_bytes()
    test = load_images("digits", "test")
    right = predictions(namespace["frozen"], test.images, namespace["pixels"]) == test.labels
    assert np.mean(right) > 0.9  # 0.98 or so; what is asked for here is that it learned


def test_the_readme_prepares_and_exports(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    ((_, source),) = [block for block in blocks(ROOT / "README.md") if block[0] == "python"]
    run_python(source, {}, ROOT / "README.md")
    exported = read_exported_model(Path("model.onnx"))
    assert (exported.format, exported.class_names[999]) == ("qlinear", "class 999")


def test_an_exported_model_runs_without_this_project(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = DOCS / "deploy.md"
    source = python_block(page, "onnxruntime.InferenceSession")
    assert "qil_deploy import" not in source
    monkeypatch.chdir(ROOT)
    run_python(source, {}, page)
    assert capsys.readouterr().out.strip() in read_exported_model(ZOO_MODEL).class_names


@pytest.mark.parametrize("size", [(640, 427), (427, 640), (300, 300), (225, 500)], ids=str)
def test_pictures_become_the_bytes_that_torchvision_makes(size: tuple[int, int]) -> None:
    page = DOCS / "deploy.md"
    namespace: dict[str, Any] = {"np": np}
    run_python(python_block(page, "def to_image"), namespace, page)
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), np.uint8))
    weights = torchvision.models.EfficientNet_B1_Weights.DEFAULT
    transform = weights.transforms()
    found = namespace["to_image"](picture, Preprocessing.from_torchvision(weights).metadata())
    steps = (
        transforms.Resize(transform.resize_size, transform.interpolation),
        transforms.CenterCrop(transform.crop_size),
    )
    expected = np.asarray(transforms.Compose(steps)(picture)).transpose(2, 0, 1)[None]
    np.testing.assert_array_equal(found, expected, strict=True)


def test_golden_vectors_are_compared_without_this_project(
    rng: np.random.Generator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("model.onnx").symlink_to(ZOO_MODEL)
    images = rng.integers(0, 256, (2, 1, 28, 28), dtype=np.uint8)
    write_golden(Path("model.onnx"), images, "noise", Path("model.golden.npz"))
    source = python_block(DOCS / "golden.md", "np.array_equal")
    assert "qil_deploy" not in source
    run_python(source, {}, DOCS / "golden.md")
    with np.load("model.golden.npz") as golden:
        changed = dict(golden)
    changed["logits"][0, 0] += 1
    np.savez("model.golden.npz", **changed)
    with pytest.raises(AssertionError, match="logits"):
        run_python(source, {}, DOCS / "golden.md")
