"""`deliver`: files, reports and figures of a finished run agree with each other; a wrong export stops it."""

from __future__ import annotations

import io
import json
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from qil_deploy import export
from qil_deploy.checkpoint import load_model, save_checkpoint
from qil_deploy.commands.deliver import HEADINGS, Delivery, deliver, delivery_cells, delivery_table
from qil_deploy.commands.demo import plot_stage
from qil_deploy.commands.predictors import checkpoint_predictors
from qil_deploy.datasets import load_images
from qil_deploy.errors import CertificateError, ConfigError
from qil_deploy.onnx_io.model_file import read_model
from qil_deploy.reference import IntegerReference
from qil_deploy.runtime_tests import BenchReport, VerifyReport, read_report
from qil_deploy.terminal.console import Console
from qil_deploy.training.models.build import build_model
from qil_deploy.training.recipe import Recipe
from qil_deploy.training.train import RunResult, StageResult, train

if TYPE_CHECKING:
    from tests.commands.conftest import Run


@dataclass(frozen=True, kw_only=True)
class Delivered:
    folder: Path
    result: RunResult
    deliveries: list[Delivery]


@pytest.fixture(scope="module")
def delivered(run: Run, tmp_path_factory: pytest.TempPathFactory) -> Delivered:
    folder = tmp_path_factory.mktemp("delivered")
    result = train(Recipe.model_validate_json((run.folder / "recipe.json").read_text()), run.folder, resume=True)
    return Delivered(
        folder=folder, result=result, deliveries=deliver(result, folder, Console(file=io.StringIO()), repeats=3)
    )


def test_a_network_of_the_user_is_delivered_where_the_user_names_it(
    delivered: Delivered, tmp_path: Path, user_network: str
) -> None:
    def renamed(stage: StageResult) -> StageResult:
        for path in (stage.checkpoint, stage.frozen):
            if path is not None:
                info, model = load_model(path, build_model)
                save_checkpoint(tmp_path / path.name, info.model_copy(update={"model_name": user_network}), model)
        frozen = None if stage.frozen is None else tmp_path / stage.frozen.name
        return replace(stage, checkpoint=tmp_path / stage.checkpoint.name, frozen=frozen)

    result = replace(delivered.result, float_result=renamed(delivered.result.float_result))
    result = replace(result, stages=tuple(map(renamed, result.stages)))
    console, out = Console(file=io.StringIO()), tmp_path / "out"
    out.mkdir()
    with pytest.raises(ConfigError, match=user_network):
        deliver(result, out, console, repeats=1)
    deliveries = deliver(result, out, console, repeats=1, trusted_model=user_network)
    assert [each.differing_logits for each in deliveries] == [None, 0]
    with pytest.raises(ConfigError, match=user_network):
        plot_stage(result.stages[0].checkpoint, out / "intervals.png")
    assert plot_stage(result.stages[0].checkpoint, out / "intervals.png", user_network).is_file()


def test_files(delivered: Delivered) -> None:
    """Nothing is delivered for w3a3, which has no frozen stage."""
    names = ["bench.json", "float.onnx", "float_verify.json", "results.json", "w4a4.onnx", "w4a4_verify.json"]
    assert sorted(path.name for path in delivered.folder.iterdir()) == names


def test_results_repeat_what_training_verify_and_bench_say(delivered: Delivered) -> None:
    floating, four = delivered.deliveries
    stage = delivered.result.stages[0]
    report = read_report(delivered.folder / "w4a4_verify.json", VerifyReport)
    bench = read_report(delivered.folder / "bench.json", BenchReport)
    assert (four.name, four.model, four.images) == ("w4a4", delivered.folder / "w4a4.onnx", 360)
    assert (four.accuracy, four.frozen_at_once) == (stage.accuracy, stage.frozen_at_once)
    assert four.differing_logits == 0
    assert report.exact
    assert [backend.name for backend in report.backends if not backend.must_equal] == ["unfrozen PyTorch"]
    assert len(report.backends) == 6
    assert four.frozen_accuracy == four.runtime_accuracy
    assert report.reference_accuracy is not None
    assert four.runtime_accuracy == 100 * report.reference_accuracy
    assert four.changed_predictions == report.backends[-1].changed_predictions
    assert [delivery.latency_ms for delivery in delivered.deliveries] == [row.median_ms for row in bench.latencies]
    assert [delivery.size for delivery in delivered.deliveries] == [
        (delivered.folder / f"{name}.onnx").stat().st_size for name in ("float", "w4a4")
    ]
    assert (floating.frozen_accuracy, floating.frozen_at_once, floating.differing_logits) == (None, None, None)
    baseline = read_report(delivered.folder / "float_verify.json", VerifyReport)
    assert baseline.reference_accuracy is not None
    assert (baseline.exact, baseline.backends, floating.runtime_accuracy) == (
        None,
        (),
        100 * baseline.reference_accuracy,
    )
    assert floating.runtime_accuracy == pytest.approx(delivered.result.float_result.accuracy, abs=0.3)


def test_results_json_holds_every_field(delivered: Delivered) -> None:
    content = json.loads((delivered.folder / "results.json").read_text())
    assert content["schema"] == "qil_deploy.results/1"
    for line, delivery in zip(content["models"], delivered.deliveries, strict=True):
        assert line == {**vars(delivery), "model": f"{delivery.name}.onnx"}


def test_changed_predictions_are_counted_over_the_whole_test_set(delivered: Delivered) -> None:
    stage = delivered.result.stages[0]
    images = load_images("digits").images
    before = checkpoint_predictors(stage.checkpoint)["unfrozen PyTorch"](images)["logits"].argmax(1)
    after = IntegerReference(read_model(delivered.folder / "w4a4.onnx")).run(images).argmax(1)
    assert delivered.deliveries[1].changed_predictions == int((before != after).sum())


def text_of(deliveries: list[Delivery], width: int = 80) -> str:
    console = Console(file=io.StringIO(), width=width)
    with console.capture() as capture:
        console.print(delivery_table(deliveries))
    return capture.get()


def delivery(**changes: object) -> Delivery:
    fields: dict[str, object] = {
        "name": "w4a4",
        "model": Path("w4a4.onnx"),
        "accuracy": 98.76,
        "frozen_at_once": 97.5,
        "frozen_accuracy": 98.0,
        "runtime_accuracy": 98.0,
        "differing_logits": 0,
        "changed_predictions": 1234,
        "images": 10000,
        "size": 50_000,
        "latency_ms": 0.5,
    }
    return Delivery(**(fields | changes))  # type: ignore[arg-type] # fields by name


def test_cells() -> None:
    first = delivery(
        name="float",
        frozen_at_once=None,
        frozen_accuracy=None,
        differing_logits=None,
        changed_predictions=None,
        size=300_000,
        latency_ms=1.0,
    )
    assert dict(zip(HEADINGS, delivery_cells(delivery(), first), strict=True)) == {
        "model": "w4a4",
        "accuracy before freezing": "98.76 %",
        "frozen at once": "97.50 %",
        "frozen, trained on": "98.00 %",
        "in ONNX Runtime": "98.00 %",
        "differing logits": "0",
        "changed predictions": "1,234",
        "file": "50,000 B (1/6.0)",
        "latency": "0.500 ms (1/2.00)",
    }
    assert delivery_cells(first, first)[2:7] == ["", "", "98.00 %", "", ""]


def test_the_table_of_three_models_fits_80_columns() -> None:
    text = text_of([delivery(name="float"), delivery(), delivery(name="w2a2")])
    assert max(map(len, text.splitlines())) <= 80
    assert "…" not in text
    assert "10,000 test images" in text
    assert text.count("50,000 B (1/1.0)") == 3


def test_an_export_that_computes_something_else_is_no_delivery(
    delivered: Delivered, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One bias step off: the certificate cannot detect it, the comparison with PyTorch must."""
    true_export = export.export_onnx

    def false_export(model: object, path: Path, **options: object) -> object:
        result = true_export(model, path, **options)  # type: ignore[arg-type] # passed on as they came
        content = path.read_bytes()
        bias = model.get_submodule("fc").bias.numpy()  # type: ignore[attr-defined] # a frozen model has it
        position = content.index(bias.tobytes())
        changed = bias + np.array([1] + [0] * 9, bias.dtype)
        path.write_bytes(content[:position] + changed.tobytes() + content[position + bias.nbytes :])
        return result

    monkeypatch.setattr(export, "export_onnx", false_export)
    with pytest.raises(
        CertificateError, match=r"w4a4\.onnx does not compute the same as the trained model; see .*w4a4_verify"
    ):
        deliver(delivered.result, tmp_path, Console(file=io.StringIO()), repeats=1)
    assert not (tmp_path / "results.json").exists()
    report = read_report(tmp_path / "w4a4_verify.json", VerifyReport)
    wrong = {backend.name: backend.differing_logits for backend in report.backends}
    assert wrong["frozen PyTorch"] == 360
    assert wrong["ONNX Runtime (all)"] == 0
    shutil.rmtree(tmp_path)
