"""Other content of folders of reports: files of other commands, folders, and the float baseline."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from qil_deploy.commands import deliver, inspect, sensitivity
from qil_deploy.errors import DataError
from qil_deploy.reports import read_report, write_report
from qil_deploy.runtime_tests import VerifyReport
from qil_deploy.runtime_tests.report import DeploymentReport, collect, render
from qil_deploy.training.pictures.run_report import RunReport

from .conftest import Write, model, timed, verified

if TYPE_CHECKING:
    from tests.command_line import Outcome

NET = model()
OTHERS = {
    deliver.SCHEMA: "demo",
    inspect.SCHEMA: "inspect",
    sensitivity.SCHEMA: "sensitivity",
    RunReport.SCHEMA: "train",
}


def baseline(accuracy: float = 0.93) -> VerifyReport:
    """Return the report of `verify` for a float network."""
    file = model("float.onnx", "f", size=8000)
    accurate = {"reference": "ONNX Runtime (all)", "reference_accuracy": accuracy, "exact": None, "backends": ()}
    return replace(verified(file), format="float", input="float", **accurate)  # type: ignore[arg-type] # fields by name


@pytest.mark.parametrize("schema", OTHERS)
def test_what_other_commands_wrote_is_passed_over_with_a_word(write: Write, schema: str) -> None:
    folder = write("run", verified(NET))
    other = folder / "other.json"
    other.write_text(json.dumps({"schema": schema}))
    text = f"Left out: {other} is what `{OTHERS[schema]}` wrote; it has no figures that this page shows."
    for report in (collect([folder]), collect(sorted(folder.glob("*.json")))):
        remarks = (*report.remarks, *report.runs[0].remarks)
        assert [(remark.text, remark.grave) for remark in remarks] == [(text, False)]
        assert report.verdict.status == "equal"
        assert text.replace("`", "") in render(report).replace("`", "")
    for alone in ([other], [other.parent / "other.json", other]):
        with pytest.raises(DataError, match=re.escape(f"there is nothing to report. {text}")):
            collect(alone)
    (folder / "0.json").unlink()
    with pytest.raises(DataError, match=re.escape(f"there is nothing to report. {text}")):
        collect([folder])


def test_an_older_schema_of_a_report_is_not_passed_over(write: Write) -> None:
    """It may contain a difference."""
    folder = write("run", verified(NET))
    (folder / "old.json").write_text('{"schema": "qil_deploy.verify/1"}')
    with pytest.raises(DataError, match=r"old\.json has schema 'qil_deploy\.verify/1'"):
        collect([folder / "old.json"])
    assert collect([folder]).verdict.status == "incomplete"


def test_a_folder_of_folders_is_a_run_each(write: Write, tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    write("runs/monday", verified(NET))
    write("runs/tuesday", timed(NET))
    (runs / "pictures").mkdir()
    assert [run.name for run in collect([runs]).runs] == ["monday", "tuesday"]
    (runs / "broken").mkdir()
    (runs / "broken" / "0.json").write_text("no JSON")
    report = collect([runs])
    assert [run.name for run in report.runs] == ["monday", "tuesday"]
    (remark,) = (remark for remark in report.remarks if remark.grave)
    assert "broken has no report that could be read" in remark.text
    assert (report.verdict.status, "Read the 1 remark below first." in report.verdict.sentence) == ("incomplete", True)
    for name in ("monday", "tuesday"):
        (runs / name / "0.json").unlink()
    with pytest.raises(DataError, match=r"there is nothing to report\. Left out: .*broken has no report"):
        collect([runs])


def test_folders_beside_reports_are_named(write: Write) -> None:
    folder = write("run", verified(NET))
    write("run/earlier", verified(NET))
    report = collect([folder])
    assert [run.name for run in report.runs] == ["run"]
    text = f"Left out: the folder {folder / 'earlier'}; name it, to have it beside {folder}."
    assert [(remark.text, remark.grave) for remark in report.remarks] == [(text, False)]
    assert report.verdict.status == "equal"


def test_a_float_baseline_is_beside_the_quantized_models(write: Write) -> None:
    report = collect([write("run", baseline(), verified(NET))])
    (run,) = report.runs
    assert {(row.model[0], row.backend, row.accuracy) for row in run.accuracies} >= {
        ("f", "ONNX Runtime (all)", 0.93),
        ("a", "integer reference", 0.9),
    }
    assert [row.model[0] for row in run.exactness] == ["a", "a"]
    statuses = {each.name: (each.status, each.compared) for each in report.verdict.models}
    assert statuses == {"float.onnx": ("not compared", 0), "net.onnx": ("equal", 1000)}
    assert report.verdict.status == "equal"
    (sentence,) = report.verdict.models[0].sentences
    assert sentence == "Nothing was compared bit for bit: it is a float32 baseline, of which the accuracy was measured."
    page = render(report)
    assert sentence in page
    assert re.search(r"float\.onnx</th><td>93\.00 % of 50</td>.*net\.onnx</th><td>90\.00 % of 50</td>", page, re.DOTALL)


def test_a_float_baseline_alone_says_nothing_about_exactness(write: Write) -> None:
    report = collect([write("run", baseline())])
    assert report.verdict.status == "not compared"
    assert report.verdict.sentence.startswith("Nothing was compared with the integer reference")


def test_a_float_baseline_is_compared_between_runs(write: Write) -> None:
    report = collect([write("monday", baseline(0.93)), write("tuesday", baseline(0.94))])
    (change,) = (each for each in report.changes if each.figure == "accuracy")
    assert (change.name, change.setting, change.before, change.after) == (
        "float.onnx",
        "ONNX Runtime (all)",
        0.93,
        0.94,
    )


def test_the_command_names_what_it_leaves_out(write: Write, tmp_path: Path, call: Callable[..., Outcome]) -> None:
    folder = write("run", verified(NET), baseline())
    (folder / "results.json").write_text(json.dumps({"schema": deliver.SCHEMA}))
    page, content = tmp_path / "r.html", tmp_path / "r.json"
    for named in ([folder], sorted(folder.glob("*.json"))):
        outcome = call("report", *named, "-o", page, "--json", content)
        assert (outcome.code, outcome.error) == (0, "")
        assert f"Left out: {folder / 'results.json'} is what `demo` wrote;" in outcome.out
        written = read_report(content, DeploymentReport)
        assert 0.93 in [row.accuracy for run in written.runs for row in run.accuracies]
        write_report(content, written)
    outcome = call("report", folder / "results.json", "-o", page)
    assert outcome.code == 2
    assert outcome.error.startswith("Error: there is nothing to report. Left out: ")
