"""The report of a tiny run: its figures against NumPy, its page as a parser and a picture reader see it."""

from __future__ import annotations

import base64
import io
import json
import re
import shutil
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from qil_deploy.checkpoint import load_model, read_checkpoint, save_checkpoint
from qil_deploy.datasets import ImageBatches, ImageSet, load_images
from qil_deploy.errors import ConfigError, DataError
from qil_deploy.integers.freezing_report import predictions
from qil_deploy.network.layers import QuantConv2d
from qil_deploy.quantizers import IntervalQuantizer
from qil_deploy.reports import read_report
from qil_deploy.training.models.build import build_model
from qil_deploy.training.pictures.html_report import write_html_report
from qil_deploy.training.pictures.report_page import Histograms, render
from qil_deploy.training.pictures.run_report import RunReport, spread_images
from qil_deploy.training.recipe import recipe_from_dict
from qil_deploy.training.train import train

VOID = {"meta", "img"}
NAMES = tuple(f"<b>&{digit}\"'" for digit in range(10))


def recipe(**changes: object) -> dict[str, Any]:
    stage = {"epochs": 1, "batch_size": 64}
    content: dict[str, Any] = {
        "name": "tiny",
        "data": "digits",
        "model": {"name": "resnet8", "width": 4},
        "float_training": stage,
        "stages": [
            stage | {"weight_bits": 4, "activation_bits": 4, "oscillation": "freeze", "oscillation_momentum": 0.2},
            stage | {"weight_bits": 2, "activation_bits": 3, "frozen_epochs": 1},
        ],
    }
    return content | changes


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, RunReport]:
    folder = tmp_path_factory.mktemp("runs") / "tiny"
    train(recipe_from_dict(recipe(), "test"), folder)
    return folder, write_html_report(folder)


class Page(HTMLParser):
    """Checks that tags are balanced; collects attributes and text."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.open: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.texts: list[str] = []
        self.tags: list[str] = []
        self.feed(path.read_text(encoding="utf-8"))
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def test_the_json_is_the_report(run: tuple[Path, RunReport]) -> None:
    folder, report = run
    assert read_report(folder / "report.json", RunReport) == report


def test_accuracies_are_those_of_the_checkpoints(run: tuple[Path, RunReport]) -> None:
    folder, report = run
    metrics = {
        name: read_checkpoint(folder / f"{name}.safetensors")[0].metrics
        for name in ("float", "w4a4", "w2a3", "w2a3_frozen")
    }
    assert report.float_accuracy == metrics["float"]["accuracy"]
    first, second = report.stages
    assert (first.name, first.accuracy, first.frozen_accuracy) == ("w4a4", metrics["w4a4"]["accuracy"], None)
    assert (second.name, second.accuracy) == ("w2a3", metrics["w2a3"]["accuracy"])
    frozen = metrics["w2a3_frozen"]
    assert second.frozen_at_once == frozen["accuracy_frozen_at_once"]
    assert second.frozen_accuracy == frozen["accuracy"] == report.accuracy
    assert second.changed_at_once == frozen["changed_predictions_at_once"]
    assert second.changed == frozen["changed_predictions"]


def test_epochs_are_those_of_the_metrics(run: tuple[Path, RunReport]) -> None:
    folder, report = run
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [(each.phase, each.loss, each.test_accuracy) for each in report.epochs] == [
        (line["phase"], line["loss"], line["test_accuracy"]) for line in lines
    ]
    assert len(lines) == 4


def test_confusions_count_every_test_image(run: tuple[Path, RunReport]) -> None:
    folder, report = run
    assert report.network == "w2a3_frozen"
    test = load_images("digits", "test")
    matrix = report.matrix()
    np.testing.assert_array_equal(matrix.sum(1), np.bincount(test.labels, minlength=10))
    info, model = load_model(folder / "w2a3_frozen.safetensors", build_model)
    found = predictions(model, test.images, info.preprocessing)
    expected = [[int(((test.labels == a) & (found == b)).sum()) for b in range(10)] for a in range(10)]
    np.testing.assert_array_equal(matrix, expected)


def test_shares_of_each_layer(run: tuple[Path, RunReport]) -> None:
    folder, report = run
    for stage in report.stages:
        info, model = load_model(folder / f"{stage.name}.safetensors", build_model)
        layers = {name: module for name, module in model.named_modules() if isinstance(module, QuantConv2d)}
        rows = {row.layer: row for row in stage.layers}
        assert rows.keys() == layers.keys() | {"fc"}
        for name, layer in layers.items():
            lower, upper = np.array(layer.weight_quantizer.thresholds, np.float32)
            magnitudes = np.abs(layer.weight.detach().numpy())
            assert rows[name].weight_bits == layer.weight_quantizer.bits
            assert rows[name].pruned_weights == (magnitudes < lower).mean()
            assert rows[name].clipped_weights == (magnitudes > upper).mean()
        assert rows["layer1.0.conv2"].input_bits == (4 if stage.name == "w4a4" else 3)
        image = spread_images(digits_in_batches(), 256)
        seen: list[torch.Tensor] = []
        quantizer = model.get_submodule("intervals.layer1_0_conv2")
        quantizer.register_forward_hook(lambda _module, inputs, _out, seen=seen: seen.append(inputs[0]))
        with torch.no_grad():
            # The report's batches: another size might round a convolution's sums otherwise.
            for batch in torch.from_numpy(info.preprocessing.normalize(image)).split(32):
                model(batch)
        row, values = rows["layer1.0.conv2"], torch.cat(seen).numpy()
        lower, upper = np.array((row.input_lower, row.input_upper), np.float32)
        assert (row.pruned_inputs, row.clipped_inputs) == ((values < lower).mean(), (values > upper).mean())


def test_movements_go_from_where_a_stage_began_to_where_it_ended(run: tuple[Path, RunReport]) -> None:
    folder, report = run
    thresholds = []
    for stage in report.stages:
        _, model = load_model(folder / f"{stage.name}.safetensors", build_model)
        quantizers = [module for module in model.modules() if isinstance(module, IntervalQuantizer)]
        learned = [quantizer for quantizer in quantizers if list(quantizer.parameters())]
        thresholds.append([quantizer.thresholds for quantizer in learned])
        assert [(each.lower, each.upper) for each in stage.movements] == thresholds[-1]
        for each in stage.movements:
            distance = (each.start_upper - each.start_lower) / 2
            assert each.lower_moved == (each.lower - each.start_lower) / distance
            assert each.upper_moved == (each.upper - each.start_upper) / distance != 0
    first, second = report.stages
    assert {each.start_lower for each in first.movements} == {0.0}  # behind ReLU, and of magnitudes
    assert [(each.start_lower, each.start_upper) for each in second.movements] == thresholds[0]
    assert {each.name for each in first.movements if each.kind == "weights"} == {row.layer for row in first.layers}
    assert "layer1.0.conv2" in {each.name for each in first.movements if each.kind == "activations"}
    stays = sum(each.lower == each.start_lower for each in first.movements if each.kind == "weights")
    assert first.pruning_stays("weights") == f"{stays} of {len(first.layers)}"
    page = "".join(Page(folder / "report.html").texts)
    assert f"ended where they began: {first.pruning_stays('weights')} of weights, " in page


def test_intervals_with_a_rate_of_0_stay(tmp_path: Path) -> None:
    fixed = {"epochs": 1, "batch_size": 256, "interval_learning_rate": 0.0, "weight_bits": 3, "activation_bits": 3}
    train(recipe_from_dict(recipe(float_training={"epochs": 0}, stages=[fixed]), "test"), tmp_path)
    (stage,) = write_html_report(tmp_path).stages
    assert {(each.lower_moved, each.upper_moved) for each in stage.movements} == {(0.0, 0.0)}
    count = sum(each.kind == "weights" for each in stage.movements)
    assert stage.pruning_stays("weights") == f"{count} of {count}"


def test_oscillation_is_that_of_the_last_epoch(run: tuple[Path, RunReport]) -> None:
    folder, report = run
    (line,) = [epoch for epoch in report.epochs if epoch.phase == "w4a4"]
    first, second = report.stages
    assert first.oscillating_weights == line.oscillating_weights
    assert first.frozen_weights == line.frozen_weights
    assert 0 < (first.frozen_weights or 0) < 1
    assert second.oscillating_weights is None
    page = "".join(Page(folder / "report.html").texts)
    assert page.count("of the weights of at most 4 bits oscillated") == 1
    assert f"{100 * (first.frozen_weights or 0):.1f} % were frozen" in page.replace("\n", " ")


def test_a_stage_of_an_earlier_version_has_no_movements(run: tuple[Path, RunReport], tmp_path: Path) -> None:
    folder, report = run
    info, model = load_model(folder / "w4a4.safetensors", build_model)
    kept = {name: value for name, value in info.metrics.items() if not name.startswith("start/")}
    save_checkpoint(tmp_path / "w4a4.safetensors", info.model_copy(update={"metrics": kept}), model)
    shutil.copy(folder / "recipe.json", tmp_path)
    (stage,) = write_html_report(tmp_path).stages
    assert stage.movements == ()
    assert stage.layers == report.stages[0].layers


def digits_in_batches() -> ImageBatches:
    test = load_images("digits", "test")
    return ImageBatches(
        count=len(test),
        shape=(1, 8, 8),
        labels=test.labels,
        class_names=test.class_names,
        batch_size=100,
        read=lambda start, stop: ImageSet(
            images=test.images[start:stop], labels=test.labels[start:stop], class_names=test.class_names
        ),
    )


def test_few_images_are_spread_over_the_whole_set() -> None:
    batches, test = digits_in_batches(), load_images("digits", "test")
    spread = spread_images(batches, 64)
    assert spread.shape == (64, 1, 8, 8)
    np.testing.assert_array_equal(spread[:4], test.images[:4])
    np.testing.assert_array_equal(spread[-4:], test.images[-4:])
    np.testing.assert_array_equal(spread_images(batches, 1000), test.images)


def test_the_page_stands_alone(run: tuple[Path, RunReport]) -> None:
    folder, report = run
    page = Page(folder / "report.html")
    text = re.sub(r"base64,[\w+/=]+", "", (folder / "report.html").read_text(encoding="utf-8"))
    assert "//" not in text
    assert "http" not in text
    assert "url(" not in text
    assert not {"script", "link", "iframe"} & set(page.tags)
    sources = [value for _, name, value in page.attributes if name in ("src", "href")]
    layers = len(report.stages[0].layers)
    assert len(sources) == 1 + 2 * (layers + 6)  # the curves, and six interval quantizers of activations
    for source in sources:
        kind, _, content = source.partition(",")
        assert kind == "data:image/png;base64"
        with Image.open(io.BytesIO(base64.b64decode(content, validate=True))) as picture:
            picture.load()
            assert picture.format == "PNG"
    assert all(value for tag, name, value in page.attributes if (tag, name) == ("img", "alt"))
    for expected in ("tiny", f"{report.accuracy:.2f} %", "layer3.0.downsample.0", report.versions.torch):
        assert any(expected in piece for piece in page.texts)


def test_names_are_escaped(run: tuple[Path, RunReport], tmp_path: Path) -> None:
    """Class names and the recipe's name come from folders and files of users."""
    folder, _ = run
    info, model = load_model(folder / "w4a4.safetensors", build_model)
    save_checkpoint(tmp_path / "w4a4.safetensors", info.model_copy(update={"class_names": NAMES}), model)
    (tmp_path / "recipe.json").write_text(json.dumps(recipe(name="a & b &lt;i&gt;")))
    write_html_report(tmp_path)
    page = Page(tmp_path / "report.html")
    assert not {"b", "i"} & set(page.tags)
    joined = "".join(page.texts)
    assert all(name in joined for name in NAMES)
    assert "a & b &lt;i&gt;" in page.texts


def test_an_unfinished_run_is_reported_as_far_as_it_went(run: tuple[Path, RunReport], tmp_path: Path) -> None:
    folder, finished = run
    for name in ("recipe.json", "float.safetensors"):
        shutil.copy(folder / name, tmp_path)
    report = write_html_report(tmp_path)
    assert (report.network, report.stages, report.epochs) == ("float", (), ())
    assert report.accuracy == report.float_accuracy == finished.float_accuracy
    Page(tmp_path / "report.html")


def test_a_figure_that_is_no_number_leaves_a_gap(run: tuple[Path, RunReport], tmp_path: Path) -> None:
    folder, _ = run
    for name in ("recipe.json", "float.safetensors"):
        shutil.copy(folder / name, tmp_path)
    (tmp_path / "metrics.jsonl").write_text(
        '{"phase": "float", "epoch": 0, "loss": 1.5, "train_accuracy": NaN, "test_accuracy": 50.0}\n'
    )
    (line,) = write_html_report(tmp_path).epochs
    assert (line.loss, line.train_accuracy, line.test_accuracy) == (1.5, None, 50.0)


def test_many_classes_have_a_picture_instead_of_a_table(run: tuple[Path, RunReport]) -> None:
    _, report = run
    many = replace(report, class_names=tuple(f"class {index}" for index in range(200)), epochs=())
    none = Histograms(weights=(), activations=())
    text = render(many, [none] * len(report.stages), "")
    assert text.count("<img") == 1
    assert "Worst classes" in text
    assert len(text) < 200_000


def test_a_folder_without_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"holds no run to report on: recipe.json cannot be read"):
        write_html_report(tmp_path)
    (tmp_path / "recipe.json").write_text(json.dumps(recipe()))
    with pytest.raises(DataError, match="holds no finished phase"):
        write_html_report(tmp_path)


def test_damaged_metrics_are_refused(run: tuple[Path, RunReport], tmp_path: Path) -> None:
    folder, _ = run
    for name in ("recipe.json", "float.safetensors"):
        shutil.copy(folder / name, tmp_path)
    (tmp_path / "metrics.jsonl").write_text('{"phase": "float", "epo')
    with pytest.raises(DataError, match=r"line 1 of .*metrics.jsonl is damaged"):
        write_html_report(tmp_path)


def test_a_network_of_the_user_is_reported_on_where_the_user_names_it(
    run: tuple[Path, RunReport], tmp_path: Path, user_network: str
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(run[0], folder)
    for path in folder.glob("*.safetensors"):
        info, model = load_model(path, build_model)
        save_checkpoint(path, info.model_copy(update={"model_name": user_network}), model)
    with pytest.raises(ConfigError, match=user_network):
        write_html_report(folder)
    report = write_html_report(folder, trusted_model=user_network)
    assert [stage.accuracy for stage in report.stages] == [stage.accuracy for stage in run[1].stages]
