"""Training side by side takes the batches of recipes, and its table counts what was trained."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal

import pytest
import torch

import equal_epochs
import training_rows
from qil_deploy.checkpoint import read_info
from qil_deploy.datasets import ImageSet, load_images, preprocessing_for
from qil_deploy.training.data import ArrayBatches
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


def test_rows_begin_with_one_float_network_and_are_not_trained_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def few(name: str, split: Literal["train", "test"]) -> ImageSet:
        return load_images(name, split).first(96 if split == "train" else 20)

    monkeypatch.setattr(equal_epochs, "load_images", few)
    monkeypatch.setattr(training_rows, "BATCH", 32)
    monkeypatch.setattr(training_rows, "CALIBRATION_BATCHES", 2)
    monkeypatch.setattr(training_rows, "COMPARED_LOGITS", 5)
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


@pytest.mark.parametrize("chosen", ["together", "w3a3 together", "w3a3 lsq together"])
def test_a_row_is_chosen_by_its_way_its_width_or_its_method(chosen: str) -> None:
    rows = [variant for bits in (2, 3) for method in ("qil", "lsq") for variant in equal_epochs.ways(bits, method)]
    found = {(row.width, row.method) for row in rows if chosen in equal_epochs.names_of(row)}
    widths = {"w2a2", "w3a3"} if chosen == "together" else {"w3a3"}
    methods = {"lsq"} if "lsq" in chosen else {"qil", "lsq"}
    assert found == {(width, method) for width in widths for method in methods}
