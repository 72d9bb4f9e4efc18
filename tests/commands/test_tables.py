"""Output of commands on a terminal of 80 columns: every name and every figure is complete."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.command_line import Outcome
    from tests.commands.conftest import Run

Call = Callable[..., "Outcome"]
ZOO = Path(__file__).parents[2] / "zoo" / "fashion_mnist"


@pytest.fixture(autouse=True)
def _narrow_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")


def readable(outcome: Outcome, names: Iterable[str], figures: Iterable[str]) -> list[list[str]]:
    """Require that nothing is cut; return the words of each line."""
    assert outcome.code == 0, outcome
    assert "…" not in outcome.shown
    assert "..." not in outcome.shown
    lines = [line.split() for line in outcome.shown.splitlines()]
    words = {word for line in lines for word in line}
    for name in names:
        assert any(line[:1] == [name] for line in lines), name
    for figure in figures:
        assert figure in words, figure
    return lines


def test_inspect(call: Call, tmp_path: Path) -> None:
    outcome = call("inspect", ZOO / "w4a4.onnx", "--json", tmp_path / "w4a4.json")
    content = json.loads((tmp_path / "w4a4.json").read_text())
    layers = content["layers"]
    figures = [f"{layer[name]:,}" for layer in layers for name in ("macs", "bytes")]
    figures += ["x".join(map(str, layer["weight_shape"])) for layer in layers]
    figures += [f"{layer['smallest_multiplier']:.3g}..{layer['largest_multiplier']:.3g}" for layer in layers[:-1]]
    lines = readable(outcome, [layer["name"] for layer in layers], figures)
    (ties,) = (line for line in content["metadata"]["certificate"] if line["name"] == "ties")
    assert ["ties", f"{ties['worst']:.4g}", "1", ties["where"]] in lines


def test_sensitivity(run: Run, call: Call, tmp_path: Path) -> None:
    options = ("--limit", "20", "--calibration-images", "20", "--budget-bits", "4.5", "--json", tmp_path / "s.json")
    outcome = call("sensitivity", run.float, *options)
    content = json.loads((tmp_path / "s.json").read_text())
    trials = [trial for layer in content["layers"] for trial in layer["trials"]]
    figures = [f"{trial['kl']:.5f}" for trial in trials]
    figures += [f"{trial['loss'] - content['baseline']['loss']:+.4f}" for trial in trials]
    readable(outcome, [layer["name"] for layer in content["layers"]], figures)


def test_verify(call: Call, tmp_path: Path) -> None:
    outcome = call("verify", ZOO / "w4a4.onnx", "--limit", "20", "--json", tmp_path / "v.json")
    content = json.loads((tmp_path / "v.json").read_text())
    lines = readable(outcome, ["backend"], [f"{100 * content['reference_accuracy']:.2f}"])
    levels = ("(disabled)", "(basic)", "(extended)", "(all)")
    assert [line[2] for line in lines if line[:2] == ["ONNX", "Runtime"]] == list(levels)
    for line in lines:
        if line[:2] == ["ONNX", "Runtime"]:
            assert line[4:] == ["0", "0", "0", "equal"]


def test_verify_of_a_float_baseline(call: Call, tmp_path: Path) -> None:
    outcome = call("verify", ZOO / "float.onnx", "--limit", "20", "--json", tmp_path / "v.json")
    content = json.loads((tmp_path / "v.json").read_text())
    lines = readable(outcome, ["backend"], [])
    assert ["ONNX", "Runtime", "(all)", f"{100 * content['reference_accuracy']:.2f}"] in lines
    assert "has no integer reference, so nothing was compared bit for bit." in outcome.out
    assert (content["schema"], content["format"], content["exact"]) == ("qil_deploy.verify/2", "float", None)
    assert (content["backends"], content["comparisons"], content["images"]) == ([], [], 20)


def test_verify_on_targets(call: Call) -> None:
    outcome = call("verify", ZOO / "w4a4.onnx", "--target", "native", "--limit", "4")
    assert "7,027,008" in " ".join(" ".join(line) for line in readable(outcome, ["native"], []))


def test_bench(call: Call, tmp_path: Path) -> None:
    name = "a_network_with_a_name_as_long_as_those_of_runs_with_dates_2026_01_31_w4a4.onnx"
    shutil.copy(ZOO / "w4a4.onnx", tmp_path / name)
    options = ("--repeats", "12", "--warmup", "1", "--profile", "--json", tmp_path / "b.json")
    outcome = call("bench", ZOO / "float.onnx", tmp_path / name, *options)
    content = json.loads((tmp_path / "b.json").read_text())
    figures = [f"{latency['ratio']:.3f}" for latency in content["latencies"]]
    intervals = [latency["ratio_interval"] for latency in content["latencies"] if latency["ratio_interval"]]
    figures += [f"{interval['low']:.3f}-{interval['high']:.3f}" for interval in intervals]
    figures += [f"{cost['model']['bytes'] / 1000:.1f}" for cost in content["models"]]
    assert outcome.code == 0
    tables = outcome.shown.partition("Note: ")[0]
    assert "…" not in tables
    words = tables.split()
    for figure in figures:
        assert figure in words
    assert "".join(words).count(name.removesuffix(".onnx")[:30]) >= 3


@pytest.mark.parametrize("command", [("target", "list"), ("doctor", ZOO / "w4a4.onnx")])
def test_others(call: Call, command: tuple[object, ...]) -> None:
    outcome = call(*command)
    assert outcome.code == 0
    assert "…" not in outcome.shown
    assert max(map(len, outcome.shown.splitlines())) <= 80


def test_train(run: Run) -> None:
    """The run of these tests was printed wide; its table fits 80 columns, as does that of every run."""
    table = run.outcome.shown.partition("Accuracy on the test set")[2].splitlines()[1:6]
    assert max(map(len, table)) <= 80
    assert "…" not in "".join(table)
