"""Training side by side uses the batches of recipes, and its table counts the trained epochs."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pytest
import torch

import equal_epochs
import row_state
import training_bench
import training_rows
from qil_deploy.checkpoint import load_model, read_info
from qil_deploy.datasets import ImageSet, load_images, preprocessing_for
from qil_deploy.integers import freeze, predictions
from qil_deploy.training import run_state
from qil_deploy.training.data import ArrayBatches
from qil_deploy.training.models import build_model
from qil_deploy.training.recipe_file import load_recipe
from qil_deploy.training.recipe_sections import StageSection
from side_by_side import Images, Order

DATA = "fashion-mnist"


def test_batches_are_those_of_a_recipe_with_the_same_seed() -> None:
    train = load_images(DATA, "train").first(70)
    preprocessing = preprocessing_for(DATA, train)
    images = Images.of(train, preprocessing, torch.device("cpu"))
    batches = ArrayBatches(train, preprocessing, batch_size=16, flip=True, shift=0, seed=3)
    order = Order.of(batches, 2, torch.device("cpu"))
    expected = [batch for epoch in range(2) for batch in batches.epoch(epoch)]
    assert len(order.rows) == len(expected) == 2 * order.batches
    for rows, mirrored, (x, labels) in zip(order.rows, order.mirrored, expected, strict=True):
        found = torch.where(mirrored[:, None, None, None], images.inputs[rows].flip(3), images.inputs[rows])
        torch.testing.assert_close(found, x, atol=0, rtol=0)
        assert torch.equal(images.labels[rows], labels)


def test_the_direct_recipe_has_the_settings_of_plain_rows() -> None:
    recipe = load_recipe(Path("fashion_mnist_resnet20_direct"))
    assert recipe.method == "qil"
    assert recipe.distillation is None
    assert (recipe.gradient_scaling, recipe.train_gamma, recipe.returning_weights) == (0.0, False, False)
    assert [stage.weight_bits for stage in recipe.stages] == [2, 3, 4]
    for stage in recipe.stages:
        plain = equal_epochs.ways(stage.weight_bits, "qil")[0]
        assert plain.name == "plain"
        assert stage == StageSection(
            epochs=recipe.float_training.epochs,
            weight_bits=plain.bits[0],
            activation_bits=plain.bits[0],
            from_float=True,
            learning_rate=plain.rate,
            weight_decay=plain.decay,
            interval_learning_rate=plain.interval_rate,
            frozen_epochs=1,
        )


@pytest.fixture
def few_images(monkeypatch: pytest.MonkeyPatch) -> None:
    """Train on 96 images in batches of 32, and test on 20."""

    def few(name: str, split: Literal["train", "test"]) -> ImageSet:
        return load_images(name, split).first(96 if split == "train" else 20)

    monkeypatch.setattr(training_bench, "load_images", few)
    monkeypatch.setattr(training_bench, "BATCH", 32)
    monkeypatch.setattr(training_rows, "CALIBRATION_BATCHES", 2)
    monkeypatch.setattr(training_rows, "COMPARED_LOGITS", 5)


@pytest.mark.usefixtures("few_images")
def test_rows_begin_with_one_float_network_and_are_not_trained_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(equal_epochs, "table", lambda seeds: rows(seeds[0]))

    def rows(seed: int) -> list[tuple[training_rows.Variant, int]]:
        progressive = next(way for way in equal_epochs.ways(2, "qil") if way.name == "progressive")
        frozen = next(way for way in equal_epochs.ways(3, "lsq") if way.oscillation == "freeze")
        return [(equal_epochs.FLOAT, seed), (progressive, seed), (frozen, seed)]

    for _ in range(2):
        equal_epochs.main(out=tmp_path, seeds="4", epochs=4, width=2)
    results = json.loads((tmp_path / "results.json").read_text())
    results.sort(key=lambda result: str(result["width"]))
    assert [(result["width"], result["method"]) for result in results] == [
        ("float", ""),
        ("w2a2", "qil"),
        ("w3a3", "lsq"),
    ]
    assert all(len(result["losses"]) == 4 for result in results)
    assert [result["differing_logits"] for result in results] == [None, 0, 0]
    assert (tmp_path / "float_4.safetensors").is_file()
    assert read_info(tmp_path / "float_trained_on.safetensors").kind == "float"
    shown = equal_epochs.table_rows(equal_epochs.read_results(tmp_path / "results.json"))
    assert [cells[:4] for cells in shown.cells] == [
        ["float", "", "trained on in float", "1"],
        ["w2a2", "qil", "progressive", "1"],
        ["w3a3", "lsq", "oscillating weights frozen", "1"],
    ]


@pytest.mark.usefixtures("few_images")
def test_a_command_that_was_killed_goes_on_after_the_last_whole_epoch_with_the_same_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ways = {way.name: way for way in equal_epochs.ways(2, "qil")}
    rows = [(ways[name], 4) for name in ("progressive", "oscillating weights frozen")]
    monkeypatch.setattr(equal_epochs, "table", lambda _seeds: rows)

    def train(out: Path) -> list[training_rows.Result]:
        equal_epochs.main(out=out, seeds="4", epochs=4, width=2)
        assert not list((out / "unfinished").iterdir())
        results = equal_epochs.read_results(out / "results.json")
        return sorted((replace(result, seconds=0.0, beside=0) for result in results), key=lambda each: each.way)

    expected = train(tmp_path / "whole")
    # Of the twelve epochs the first four are those of the float network; then both rows have theirs in turn.
    for number, calls in enumerate([(3, 3), (9,)]):
        out = tmp_path / f"killed_{number}"
        for call in calls:
            monkeypatch.setattr(row_state, "save_state", killed_in_call(call))
            with pytest.raises(KilledError):
                train(out)
        monkeypatch.setattr(row_state, "save_state", run_state.save_state)
        assert train(out) == expected


class KilledError(Exception):
    """The process ends here."""


def killed_in_call(number: int) -> Callable[..., None]:
    """Return a `save_state` that in one of its calls writes nothing and ends the process."""
    calls = iter(range(1, number))

    def save(*arguments: Any) -> None:  # noqa: ANN401 - those of `save_state`
        if next(calls, None) is None:
            raise KilledError
        run_state.save_state(*arguments)

    return save


@pytest.mark.usefixtures("few_images")
def test_rows_may_be_shorter_than_their_float_network_and_have_a_table_of_their_own(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "page.md"
    page.write_text("<!-- equal_epochs_short -->\n<!-- end -->\n")
    equal_epochs.main(out=tmp_path, seeds="4", epochs=2, short=1, only="trained on in float", page=page)
    (result,) = equal_epochs.read_results(tmp_path / "results.json")
    assert (result.epochs, len(result.losses)) == (1, 1)
    assert capsys.readouterr().out.count("\nfloat, seed 4") == 2  # the second epoch, and the accuracy
    assert f"| float |  | trained on in float | 1 | {result.accuracy:.2f} |" in page.read_text()


@pytest.mark.usefixtures("few_images")
def test_a_depthwise_network_is_trained_on_enlarged_images_and_its_oscillating_weights_are_counted(
    tmp_path: Path,
) -> None:
    page = tmp_path / "page.md"
    page.write_text("<!-- depthwise_64 -->\n<!-- end -->\n")
    equal_epochs.main(
        out=tmp_path,
        network=equal_epochs.Network.MOBILENET_V2,
        images=64,
        seeds="0",
        epochs=2,
        only="trained on in float,w4a4 together,w3a3 together with oscillating weights frozen",
        page=page,
    )
    results = {result.way: result for result in equal_epochs.read_results(tmp_path / "results.json")}
    trained_on, counted, frozen = (
        results[name] for name in ("trained on in float", "together", "together with oscillating weights frozen")
    )
    assert (trained_on.oscillating, trained_on.held) == (None, None)
    assert counted.oscillating is not None
    assert counted.oscillating > 0
    assert counted.held == 0
    assert frozen.held is not None
    assert len(counted.losses) == 2

    heading, _rule, *rows = [line.strip("| ").split(" | ") for line in page.read_text().splitlines() if "|" in line]
    assert heading[-2:] == ["oscillating", "frozen"]
    assert [row[:3] for row in rows][1:] == [
        ["w3a3", "qil", "together with oscillating weights frozen"],
        ["w4a4", "qil", "together"],
    ]
    assert rows[2][-2:] == [f"{100 * counted.oscillating:.1f} %", "0.0 %"]

    # What the checkpoint says of images is what the network was trained on.
    info, model = load_model(tmp_path / "qil_w4a4_together.safetensors", build_model)
    assert info.model_arguments == {"in_channels": 1, "num_classes": 10, "width": 8}
    assert info.preprocessing.shape == (1, 64, 64)
    test = load_images(DATA, "test", preprocessing=info.preprocessing).first(20)
    right = predictions(freeze(model), test.images, info.preprocessing) == test.labels
    assert 100 * right.mean() == pytest.approx(counted.frozen)


def test_results_of_earlier_versions_have_no_shares_of_weights(tmp_path: Path) -> None:
    result = {"way": "plain", "method": "qil", "width": "w2a2", "seed": 0, "epochs": 12, "accuracy": 90.0}
    result |= {"frozen": 89.5, "differing_logits": 0, "losses": [0.5], "seconds": 1.0, "beside": 0}
    (tmp_path / "results.json").write_text(json.dumps([result]))
    found = equal_epochs.read_results(tmp_path / "results.json")
    assert equal_epochs.table_rows(found).headings[-1] == "to float"
    assert equal_epochs.table_rows(found, oscillation=True).cells[0][-3:] == ["", "", ""]


def test_rows_of_a_depthwise_network_differ_in_what_is_done_about_oscillation() -> None:
    rows = [variant for variant, _seed in equal_epochs.depthwise_table([0])]
    assert [row.name for row in rows if not row.bits] == ["trained on in float"]
    for bits in (3, 4):
        of_width = [row for row in rows if row.bits == (bits,)]
        assert [row.oscillation for row in of_width] == 2 * ["count", "freeze", "dampen"]
        for first in (0, 3):
            alike = {replace(row, name="", oscillation=None) for row in of_width[first : first + 3]}
            assert len(alike) == 1
    assert len({row.key(0) for row in rows}) == len(rows)
    assert not any("," in row.name for row in rows), "--only takes names with commas between"


@pytest.mark.parametrize("chosen", ["together", "w3a3 together", "w3a3 lsq together"])
def test_a_row_is_chosen_by_its_way_its_width_or_its_method(chosen: str) -> None:
    rows = [variant for bits in (2, 3) for method in ("qil", "lsq") for variant in equal_epochs.ways(bits, method)]
    found = {(row.width, row.method) for row in rows if chosen in equal_epochs.names_of(row)}
    widths = {"w2a2", "w3a3"} if chosen == "together" else {"w3a3"}
    methods = {"lsq"} if "lsq" in chosen else {"qil", "lsq"}
    assert found == {(width, method) for width in widths for method in methods}
