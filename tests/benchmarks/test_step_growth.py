"""Growth of the cost of a step: the measured cases, and their table."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import step_growth
import step_growth_plot
import training_steps
import write_tables
from qil_deploy.quantizers import compile_quantizers
from qil_deploy.runtime_tests import read_report, write_report
from qil_deploy.runtime_tests.environment import describe_environment
from step_growth import Case, StepGrowthReport
from step_time import summarize


@pytest.fixture(autouse=True)
def _uncompiled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training_steps, "compile_quantizers", lambda _: compile_quantizers(False))


def case(batch: int, quantized: int, network: str = "resnet20", layers: int = 22) -> Case:
    samples = {"float": [10_000_000] * 3, "quantized": [quantized] * 3, "gamma": [13_000_000] * 3}
    times = summarize(samples | {"taught": [quantized + 3_000_000] * 3}, seed=0)
    return Case(network=network, layers=layers, batch=batch, steps=tuple(times))


@pytest.fixture
def report() -> StepGrowthReport:
    return StepGrowthReport(
        schema=StepGrowthReport.SCHEMA,
        size=32,
        threads=2,
        seed=0,
        load=None,
        cases=(case(32, 11_000_000), case(16, 12_500_000), case(64, 10_500_000, "resnet8", 10), case(64, 10_900_000)),
        torch="2.8.0",
        environment=describe_environment(),
    )


def test_the_table_has_a_row_for_each_case_and_goals_hold_for_the_costliest(
    report: StepGrowthReport, tmp_path: Path
) -> None:
    write_report(tmp_path / "step_growth.json", report)
    assert read_report(tmp_path / "step_growth.json", StepGrowthReport) == report
    table = write_tables.table_of("step_growth", tmp_path)
    assert "| network | layers | batch | float, ms | quantized, x float | gamma, x float | teacher |" in table
    assert "| resnet20 | 22 | 16 | 10 | 1.25 | 1.30 | +0.30 |" in table
    assert "| resnet20 | 22 | 32 | 10 | 1.10 | 1.30 | +0.30 |" in table
    assert "| quantized, the costliest case: at most 1.2 of a float step | 1.25 | MISSED |" in table
    assert "| gamma, the costliest case: at most 1.4 of a float step | 1.30 | met |" in table
    assert "images of 32x32; " in table


def test_every_model_takes_its_step_and_the_teacher_stays_what_it_is() -> None:
    steps, layers = step_growth.make_steps("resnet8", batch=4, size=16, seed=0)
    assert list(steps) == ["float", "quantized", "gamma", "taught"]
    assert layers == 10
    for step in steps.values():
        step()
    assert {network for network, _ in step_growth.CASES} >= {"resnet8", "resnet20", "resnet56"}


def test_a_taught_step_reads_the_teacher_and_moves_the_pupil() -> None:
    images = training_steps.images_of(batch=4, size=16, seed=0)
    model, teacher = (training_steps.float_model("resnet8", seed=seed) for seed in (0, 1))
    before = [{name: tensor.clone() for name, tensor in each.state_dict().items()} for each in (model, teacher)]
    training_steps.step_of(model, images.x, images.labels, compiled=False, teacher=teacher.eval())()
    assert not torch.equal(model.state_dict()["conv1.weight"], before[0]["conv1.weight"])
    assert all(torch.equal(tensor, before[1][name]) for name, tensor in teacher.state_dict().items())


def test_the_plot_has_a_panel_for_batches_and_one_for_layers_and_is_always_the_same(
    report: StepGrowthReport, tmp_path: Path
) -> None:
    by_batch = step_growth_plot.cases_by_batch(report.cases)
    assert [(each.network, each.batch) for each in by_batch] == [("resnet20", 16), ("resnet20", 32), ("resnet20", 64)]
    by_layers = step_growth_plot.cases_by_layers(report.cases)
    assert [(each.network, each.layers) for each in by_layers] == [("resnet8", 10), ("resnet20", 22)]
    write_report(tmp_path / "step_growth.json", report)
    page = tmp_path / "page.md"
    page.write_text("<!-- step_growth -->\nNot measured yet.\n<!-- end -->\n")
    write_tables.main(tmp_path, page)
    assert f"]({write_tables.GROWTH_PLOT})" in page.read_text()
    drawn = (tmp_path / write_tables.GROWTH_PLOT).read_bytes()
    assert drawn == step_growth_plot.growth_svg(report)
    for words in ("images per step (resnet20)", "layers (64 images per step)", "quantized, with a teacher", ">128<"):
        assert (words in drawn.decode()) == (words != ">128<"), words
