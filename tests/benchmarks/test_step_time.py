"""The benchmark of training steps: evaluation of its measurements, and one step of every model."""

from __future__ import annotations

import functools
import io
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import exporters
import step_time
import write_tables
from exporters import Skipped
from qil_deploy.errors import ConfigError
from qil_deploy.quantizers import compile_quantizers
from qil_deploy.runtime_tests import read_report, write_report
from qil_deploy.runtime_tests.environment import describe_environment
from qil_deploy.terminal.console import Console
from qil_deploy.terminal.progress import Progress
from step_time import StepTimeReport, judge, make_steps, measure, summarize
from training_steps import Step, Variant, step_of


@pytest.fixture(autouse=True)
def _uncompiled() -> Iterator[None]:
    yield
    compile_quantizers(False)


@pytest.fixture
def report() -> StepTimeReport:
    samples = {"float": [10_000_000] * 5, "paper": [18_000_000] * 4 + [90_000_000], "integer": [20_000_000] * 5}
    times = summarize(samples, seed=0)
    return StepTimeReport(
        schema=StepTimeReport.SCHEMA,
        network="resnet18",
        batch=32,
        size=64,
        threads=2,
        seed=0,
        load=0.25,
        steps=tuple(times),
        verdicts=tuple(judge(times)),
        skipped=(Skipped(model="brevitas", reason="not installed (No module named 'brevitas')"),),
        torch="2.8.0",
        environment=describe_environment(),
    )


def test_ratios_are_medians_of_rounds_and_goals_are_judged_by_them(report: StepTimeReport) -> None:
    assert [row[:4] for row in step_time.step_rows(report).cells] == [
        ["float", "10", "0", "1.00"],
        ["paper", "18", "0", "1.80"],
        ["integer", "20", "0", "2.00"],
    ]
    paper, integer = report.steps[1:]
    assert paper.ratio_low == 1.8 < paper.ratio_high == 9.0
    assert integer.ratio_low == integer.ratio == integer.ratio_high == 2.0
    assert exporters.goal_rows(report.verdicts).cells == [
        ["paper: at most 1.9 of a float step", "1.80", "met"],
        ["integer: at most 1.9 of a float step", "2.00", "MISSED"],
    ]


def test_a_slow_round_slows_both_and_leaves_the_ratio() -> None:
    (_, other) = summarize({"float": [10, 500, 10], "paper": [15, 750, 15]}, seed=0)
    assert other.ratio == other.ratio_low == other.ratio_high == 1.5


def test_the_report_becomes_a_table(report: StepTimeReport, tmp_path: Path) -> None:
    write_report(tmp_path / "step_time.json", report)
    assert read_report(tmp_path / "step_time.json", StepTimeReport) == report
    table = write_tables.table_of("step_time", tmp_path)
    assert "| paper | 18 | 0 | 1.80 | 1.80 - 9.00 |" in table
    assert "| integer: at most 1.9 of a float step | 2.00 | MISSED |" in table
    assert "brevitas was skipped: not installed (No module named 'brevitas')." in table
    assert "resnet18, 32 images of 64x64; " in table
    assert "2 threads, torch 2.8.0, load 0.2 before." in table


def test_each_round_takes_one_step_of_each_model_in_an_order_of_its_own() -> None:
    taken: list[str] = []
    steps: dict[str, Step] = {name: functools.partial(taken.append, name) for name in "abcd"}
    ticks = iter(range(1000))
    progress = Progress(console=Console(file=io.StringIO()))
    samples = measure(steps, repeats=6, warmup=2, seed=0, progress=progress, clock=lambda: next(ticks))
    rounds = ["".join(taken[i : i + 4]) for i in range(0, len(taken), 4)]
    assert len(rounds) == 8
    assert all(sorted(order) == list("abcd") for order in rounds)
    assert len(set(rounds)) > 2
    assert samples == {name: [1] * 6 for name in "abcd"}


def test_a_clock_that_stands_still_is_refused() -> None:
    with pytest.raises(ConfigError, match="the clock did not advance while the float network took a step"):
        summarize({"float": [0, 1]}, seed=0)


def test_every_model_takes_its_step(monkeypatch: pytest.MonkeyPatch) -> None:
    uncompiled = {name: variant for name, variant in step_time.VARIANTS.items() if not variant.compiled}
    monkeypatch.setattr(step_time, "VARIANTS", uncompiled)
    monkeypatch.setattr(step_time, "use_brevitas_layers", _missing)
    steps, skipped = make_steps("resnet8", batch=4, size=16, seed=0)
    assert list(steps) == ["float", "paper", "paper_gamma", "integer", "integer_gamma", "frozen"]
    assert skipped == [Skipped(model="brevitas", reason="not installed (No module named 'brevitas')")]
    for step in steps.values():
        step()


def _missing(*_: object, **__: object) -> None:
    raise ImportError("No module named 'brevitas'")


def test_every_goal_names_a_model() -> None:
    assert step_time.GOALS.keys() <= step_time.VARIANTS.keys()
    assert step_time.VARIANTS["integer_gamma_compiled"] == Variant(placement="integer", train_gamma=True, compiled=True)


def test_a_step_moves_weights() -> None:
    layer = torch.nn.Linear(12, 3)
    before = layer.weight.detach().clone()
    model = torch.nn.Sequential(torch.nn.Flatten(), layer)
    step_of(model, torch.randn(4, 3, 2, 2), torch.tensor([0, 1, 2, 0]), compiled=False)()
    assert not torch.equal(layer.weight, before)
