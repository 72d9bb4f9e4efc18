"""The examples run as their READMEs describe."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import timm
import torchvision
from PIL import Image
from sklearn.datasets import load_sample_images

from qil_deploy import Preprocessing
from tests.docs.pages import ROOT, run_page

if TYPE_CHECKING:
    from tests.command_line import Outcome

EXAMPLES = ROOT / "examples"


def load(name: str) -> Any:  # noqa: ANN401 - a module
    """Import an example under another module name than its file's."""
    spec = spec_from_file_location(f"{name}_example", EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    example = module_from_spec(spec)
    sys.modules[spec.name] = example  # where its dataclasses look for their annotations
    spec.loader.exec_module(example)
    return example


def test_a_network_of_your_own_by_recipe(
    call: Callable[..., Outcome], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "own_network"
    shutil.copytree(EXAMPLES / "own_network", folder, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(folder)
    _, commands = run_page(folder / "README.md", call)
    assert commands == ["train", "export", "verify", "inspect"]


def test_a_pretrained_network_without_data(
    call: Callable[..., Outcome], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Offline, so without torchvision's weights, and with few and small images."""
    example = load("pretrained_without_data")
    images = example.smooth_noise(4, (3, 32, 32))
    assert (images.shape, images.dtype) == ((4, 3, 32, 32), np.uint8)
    monkeypatch.chdir(tmp_path)
    network = torchvision.models.resnet18(num_classes=10)
    example.quantize(network, images, [str(index) for index in range(10)], Path("model.onnx"))
    assert call("verify", "model.onnx", "--golden", "model.golden.npz").code == 0


@pytest.mark.parametrize(
    ("name", "metric", "outputs"), [("segmentation", "mean IoU", 1), ("detection", "AP at IoU 0.5", 3)]
)
def test_networks_that_return_maps(
    name: str, metric: str, outputs: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: Callable[..., Outcome]
) -> None:
    """A shortened run: its accuracy means nothing, but every number is compared, and a picture is drawn."""
    monkeypatch.syspath_prepend(EXAMPLES)
    example = load(name)
    settings = example.Settings(size=32, train=12, test=8, width=4, epochs=1, quantized_epochs=1, batch=4)
    outcome = example.run(settings, tmp_path)
    report = outcome.report
    assert (report.metric, report.exact, report.images) == (metric, True, 8)
    assert len(report.backends) == 5
    for backend in report.backends:
        assert [output.differing for output in backend.outputs] == [0] * outputs
        assert backend.accuracy == report.reference_accuracy
    with Image.open(tmp_path / f"{name}.png") as picture:
        assert picture.size[0] > 3 * 32
    assert f"{name}.onnx" in call("inspect", tmp_path / f"{name}.onnx").out


def test_scenes_are_what_their_labels_say(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(EXAMPLES)
    example = load("scenes")
    scenes, again = example.draw_scenes(20, 48, 3), example.draw_scenes(20, 48, 3)
    np.testing.assert_array_equal(scenes.images, again.images)
    assert set(np.unique(scenes.labels)) == {0, 1, 2, 3}
    for labels, boxes in zip(scenes.labels, scenes.boxes, strict=True):
        covered = np.zeros(labels.shape, bool)
        for left, top, right, bottom, cls in boxes.astype(int):
            assert (labels[top:bottom, left:right] == 1 + cls).any()
            covered[top:bottom, left:right] = True
        assert not (labels[~covered] > 0).any()


def test_a_pretrained_network_by_photographs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With random weights and small crops: the agreement means nothing, but every number is compared."""
    monkeypatch.syspath_prepend(EXAMPLES)  # where the recipe finds its network
    example = load("pretrained_photographs")
    for name, image in zip(("china", "flower"), load_sample_images().images, strict=True):
        (tmp_path / name).mkdir()
        for index in range(4):
            Image.fromarray(np.roll(image, 40 * index, axis=1)).save(tmp_path / name / f"{index}_n01440764.jpg")
    (tmp_path / "china" / "notes.txt").write_text("no photograph")
    network = timm.create_model("tf_efficientnet_lite0").eval()
    pixels = example.preprocessing_of(network, 32)
    chosen, held_out = (
        example.crops(tmp_path / "china", pixels, 1),
        example.whole_pictures(tmp_path / "flower", network, 32),
    )
    assert [chosen.shape, held_out.images.shape] == [(4, 3, 32, 32)] * 2
    assert not np.array_equal(chosen[0], chosen[1])
    assert held_out.classes.tolist() == [0] * 4
    assert [example.class_of(Path(path)) for path in ("x/n15075141/1.jpg", "n00000000.jpg", "1.jpg")] == [999, -1, -1]
    out = tmp_path / "out"
    example.write_inputs(network, chosen, held_out.images, pixels, out)
    stages = "[{weight_bits=7,activation_bits=8,from_float=true,epochs=1,batch_size=4,frozen_epochs=1}]"
    recipe = example.recipe(out, f"stages={stages}")
    calibrated = example.train(example.without_epochs(recipe), out / "calibrated")
    results = example.train(recipe, out / "trained")
    rows = example.agreements("calibrated", calibrated, pixels, out, held_out)
    rows += example.agreements("trained", results, pixels, out, held_out)
    assert results.float_result.accuracy == 100
    assert [(row.bits, row.run) for row in rows] == [("w7a8", "calibrated"), ("w7a8", "trained")]
    assert all(0 <= row.right <= 1 for row in rows)
    report = example.export_and_verify(results.stages[0].frozen, pixels, out, 4)
    assert report.exact
    assert report.images == 4
    assert (out / "w7a8.onnx").is_file()
    assert [stage.name for stage in example.recipe(out).stages] == ["w7a8", "w5a8", "w4a8", "w4a4"]
    with pytest.raises(SystemExit, match="holds no photographs"):
        example.crops(tmp_path / "absent", pixels, 4)
    with pytest.raises(SystemExit, match="holds no photographs"):
        example.whole_pictures(tmp_path / "absent", network)


def test_fine_tuning_a_network_of_torchvision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Offline, so from random weights: it learns discs and stripes of two colours, and every logit is compared."""
    monkeypatch.syspath_prepend(EXAMPLES)
    example = load("finetune_torchvision")
    rng = np.random.default_rng(0)
    for split, count in (("train", 16), ("test", 8)):
        for name in ("discs", "stripes"):
            (tmp_path / split / name).mkdir(parents=True)
            for index in range(count):
                Image.fromarray(drawn(name, rng)).save(tmp_path / split / name / f"{index}.png")
    weights = torchvision.models.MobileNet_V3_Small_Weights.DEFAULT
    pixels = Preprocessing.from_torchvision(weights, 32)
    settings = example.Settings(epochs=2, quantized_epochs=1, frozen_epochs=1, batch=8, workers=0)
    outcome = example.run(
        torchvision.models.mobilenet_v3_small(num_classes=5), pixels, tmp_path, tmp_path / "tuned.onnx", settings
    )
    assert outcome.report.exact
    assert outcome.report.images == 16
    assert [backend.differing_logits for backend in outcome.report.backends] == [0] * len(outcome.report.backends)
    assert outcome.frozen_accuracy == outcome.report.backends[0].accuracy


def drawn(name: str, rng: np.random.Generator) -> np.ndarray:
    """Draw a picture of 40x52 pixels, uint8 [H, W, 3]."""
    rows, columns = np.mgrid[:40, :52]
    shape = (rows - 20) ** 2 + (columns - 26) ** 2 < 200 if name == "discs" else (rows + columns) % 12 < 6
    ground, paint = rng.integers(0, 256, (2, 3), dtype=np.uint8)
    picture: np.ndarray = np.where(shape[..., None], paint, ground)
    return picture
