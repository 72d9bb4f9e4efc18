"""Figures and verdict of reports, with differences planted, files damaged and runs compared."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from qil_deploy.errors import DataError
from qil_deploy.reports import read_report, write_report
from qil_deploy.runtime_tests.report import DeploymentReport, collect
from qil_deploy.runtime_tests.report.deployment import Change, ModelVerdict

from .conftest import backend, counted, device, model, on_targets, ran, timed, verified

Write = Callable[..., Path]

NET = model()


def verdict(report: DeploymentReport) -> ModelVerdict:
    (only,) = report.verdict.models
    return only


def change(report: DeploymentReport, figure: str, setting: str = "") -> Change:
    (only,) = [each for each in report.changes if each.figure == figure and setting in each.setting]
    return only


def test_what_is_equal_is_counted_level_by_level(write: Write) -> None:
    report = collect([write("run", verified(NET), on_targets(NET, ran("native", device(NET)), ran("x", device(NET))))])
    assert report.verdict.status == "equal"
    # 50 images of 10 classes at two levels, and 620 codes and logits at two levels on two targets.
    assert verdict(report).compared == 2 * 500 + 2 * 2 * 620
    assert verdict(report).targets == ("native", "x")
    assert report.verdict.sentence == (
        "Equal: 3,480 numbers of 1 model on 2 targets were compared with the integer reference, and none differs."
    )
    (sentence,) = verdict(report).sentences
    assert sentence == (
        "2,480 codes of 2 images and 1,000 logits of 50 images were compared with the integer reference on native, x "
        "(ONNX Runtime at disabled, all); none differs."
    )


def test_a_planted_code_is_named_with_model_and_target(write: Write) -> None:
    targets = on_targets(NET, ran("native", device(NET)), ran("arm", device(NET, differing=12)), exact=False)
    report = collect([write("run", verified(NET), targets)])
    assert report.verdict.status == "differs"
    assert report.verdict.sentence == (
        "Differs: 12 of 3,480 numbers that had to be equal to those of the integer reference are not: net.onnx on arm."
    )
    assert verdict(report).differing == 12
    assert verdict(report).sentences[0].endswith("; 12 differ: ONNX Runtime (all) on arm.")
    assert verdict(report).sentences[1] == (
        "First difference on arm (all): 12 of 600 elements of conv1, by 2 at most, first at [1, 5]."
    )
    assert not report.runs[0].remarks


def test_only_what_has_to_be_equal_counts(write: Write) -> None:
    unfrozen = backend("unfrozen PyTorch", differing=400, must_equal=False)
    equal = collect([write("equal", verified(NET, backend("ONNX Runtime (all)"), unfrozen))])
    assert equal.verdict.status == "equal"
    assert verdict(equal).compared == 500
    frozen = backend("frozen PyTorch", differing=3)
    differs = collect([write("differs", verified(NET, backend("ONNX Runtime (all)"), frozen, unfrozen))])
    assert differs.verdict.status == "differs"
    assert verdict(differs).differing == 3
    assert (
        "(ONNX Runtime at all and frozen PyTorch); 3 differ: frozen PyTorch on native." in verdict(differs).sentences[0]
    )
    nothing = collect([write("nothing", replace(verified(NET, unfrozen), exact=None))])
    assert nothing.verdict.status == "not compared"
    assert "has float parts" in verdict(nothing).sentences[0]


def test_a_target_that_failed_leaves_the_verdict_incomplete_one_left_out_does_not(write: Write) -> None:
    skipped = ran("wasm", None, skipped="it is not set up; set it up.")
    report = collect([write("skipped", on_targets(NET, ran("native", device(NET)), skipped))])
    assert report.verdict.status == "equal"
    assert verdict(report).sentences[-1] == "Not run: wasm."
    failed = ran("arm", None, failed="it stopped answering.")
    report = collect([write("failed", on_targets(NET, ran("native", device(NET)), failed, exact=False))])
    assert report.verdict.status == "incomplete"
    assert "A target failed for net.onnx." in report.verdict.sentence
    assert verdict(report).sentences[-1] == "arm failed: it stopped answering."
    assert not report.runs[0].remarks


def test_a_model_that_was_only_timed_is_not_called_equal(write: Write) -> None:
    report = collect([write("run", timed(NET, model("slow.onnx", "b"), warnings=("it was noisy.",)))])
    assert report.verdict.status == "not compared"
    assert report.verdict.sentence.startswith("Nothing was compared")
    (first, second) = report.runs[0].latencies
    assert (first.ratio, first.ratio_low) == (1.0, None)
    assert second.ratio is not None
    assert second.ratio_low is not None
    assert second.ratio_high is not None
    assert second.ratio_low <= second.ratio <= second.ratio_high
    assert first.median_low is not None
    assert first.median_high is not None
    assert first.median_low <= first.median <= first.median_high
    assert first.median == 1.003
    assert [remark.about for remark in report.runs[0].remarks] == ["latency"]
    assert collect([write("odd", replace(timed(NET), seed=-1))]).runs[0].latencies[0].median_low is not None
    facts = {fact.name: fact.value for fact in report.runs[0].environments[0].facts}
    assert facts["governor"] == "performance"
    assert facts["caches"] == "L1 data 32 KiB"
    assert facts["time that other processes took"] == "25%"


def test_the_report_of_a_device_alone_is_a_target_of_its_name(write: Write) -> None:
    folder = write("run", device(NET))
    report = collect([(folder / "0.json").rename(folder / "board.json")])
    assert verdict(report).targets == ("board",)
    assert report.runs[0].models[0].bytes is None


def test_a_target_that_ran_another_file_or_compared_nothing_is_a_grave_remark(write: Write) -> None:
    other = on_targets(NET, ran("native", device(NET)), ran("arm", device(NET, digest="f" * 64, differing=5)))
    nothing = on_targets(NET, ran("native", device(NET)), ran("arm", device(NET, compared=False)))
    for name, targets, sentence in (("o", other, "ran another file"), ("n", nothing, "nothing to compare with")):
        report = collect([write(name, replace(targets, exact=None))])
        (remark,) = report.runs[0].remarks
        assert remark.grave
        assert sentence in remark.text
        assert verdict(report).targets == ("native",)
        assert report.verdict.status == "incomplete"


def test_a_report_that_contradicts_itself_is_remarked(write: Write) -> None:
    edited = replace(verified(NET, backend("ONNX Runtime (all)", differing=2)), exact=True)
    for index, changed in enumerate((edited, on_targets(NET, ran("arm", device(NET, differing=1)), exact=True))):
        report = collect([write(f"run{index}", changed)])
        assert report.verdict.status == "differs"
        assert any(remark.grave and "its own counts say otherwise" in remark.text for remark in report.runs[0].remarks)


def test_namesakes_are_kept_apart(write: Write) -> None:
    report = collect(
        [write("run", verified(NET), verified(model(digest="b"), backend("ONNX Runtime (all)", differing=1)))]
    )
    assert [each.status for each in report.verdict.models] == ["equal", "differs"]
    assert (
        "net.onnx is the name of 2 different files here: aaaaaaaaaaaa, bbbbbbbbbbbb." in report.runs[0].remarks[0].text
    )


def test_runs_are_compared_by_digest(write: Write) -> None:
    before = write("before", verified(NET), timed(NET))
    worse = verified(NET, backend("ONNX Runtime (disabled)", accuracy=0.8), backend("ONNX Runtime (all)", differing=7))
    report = collect([before, write("after", worse, timed(NET, factor=2.0))])
    assert all(each.same_file and (each.first, each.run) == ("before", "after") for each in report.changes)
    latency = change(report, "latency")
    assert latency.ratio == pytest.approx(2.0, abs=1e-6)
    assert latency.overlap is False
    assert latency.remark is None
    accuracy = change(report, "accuracy", "disabled")
    assert (accuracy.before, accuracy.after) == (0.9, 0.8)
    differing = change(report, "differing", "(all)")
    assert (differing.before, differing.after) == (0, 7)
    assert change(report, "size").ratio == 1.0
    assert [each.run for each in report.verdict.models if each.status == "differs"] == ["after"]


def test_intervals_that_overlap_and_other_machines_are_told(write: Write) -> None:
    slower = timed(NET, factor=1.001)
    other = replace(slower, environment=replace(slower.environment, cpu="Slow 1", onnxruntime="1.31.0"))
    report = collect([write("before", timed(NET)), write("after", other)])
    latency = change(report, "latency")
    assert latency.overlap is True
    assert latency.remark == "not the same processor, ONNX Runtime"


def test_another_file_of_the_same_name_is_compared_and_said_to_be_another(write: Write) -> None:
    smaller = model(digest="b", size=500)
    alone = model("alone.onnx", "c")
    report = collect([write("before", verified(NET)), write("after", verified(smaller, images=20), verified(alone))])
    assert not any(each.same_file for each in report.changes)
    assert change(report, "size").ratio == 0.5
    assert change(report, "accuracy", "(all)").remark == "of 50 and of 20 images"
    (remark,) = report.remarks
    assert remark.text == "Only after has alone.onnx; before has no file with that digest or name."


def test_the_outcome_is_a_run_like_any_other(write: Write, tmp_path: Path) -> None:
    now = datetime(2031, 5, 1, 12, 30, tzinfo=UTC)
    first = collect([write("monday", verified(NET), timed(NET))], now=now)
    assert first.written == "2031-05-01 12:30 UTC"
    write_report(tmp_path / "earlier" / "monday.json", first)
    assert read_report(tmp_path / "earlier" / "monday.json", DeploymentReport) == first
    for path in (tmp_path / "earlier", tmp_path / "earlier" / "monday.json"):
        again = collect([path, write("tuesday", timed(NET, factor=3.0))])
        assert again.runs[0] == first.runs[0]
        assert change(again, "latency").ratio == pytest.approx(3.0, abs=1e-6)


def test_an_outcome_that_was_changed_is_checked_like_any_other(write: Write, tmp_path: Path) -> None:
    report = collect([write("run", verified(NET), timed(NET), counted(NET))])
    (run,) = report.runs
    changed = (
        (replace(run, models=()), "it has figures of aaaaaaaaaaaa, which is none of its models"),
        (replace(run, exactness=(replace(run.exactness[0], differing=10**6),)), "of 500 logits, 1,000,000 differ"),
        (replace(run, instructions=(replace(run.instructions[0], first="f" * 64),)), "it has figures of ffffffffffff"),
    )
    for index, (damaged, message) in enumerate(changed):
        path = tmp_path / f"{index}.json"
        write_report(path, replace(report, runs=(damaged,)))
        with pytest.raises(DataError, match=message):
            collect([path])


def test_an_outcome_beside_its_sources_does_not_count_twice(write: Write) -> None:
    folder = write("run", verified(NET))
    first = collect([folder])
    write_report(folder / "report.json", first)
    again = collect([folder])
    assert again.runs[0].exactness == first.runs[0].exactness
    assert "an earlier outcome of this command" in again.runs[0].remarks[0].text
    assert again.verdict == first.verdict


def test_the_same_file_twice_counts_once_and_runs_of_one_name_get_numbers(write: Write, tmp_path: Path) -> None:
    folder = write("x/run", verified(NET), verified(NET))
    report = collect([folder, write("y/run", verified(NET))])
    assert verdict(collect([folder])).compared == 1000
    assert "has the same content as" in report.runs[0].remarks[0].text
    assert [run.name for run in report.runs] == ["run (1)", "run (2)"]
    assert tmp_path.is_dir()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"schema": ', "cannot be read as a report"),
        ("[" * 100_000, "cannot be read as a report"),
        ('{"schema": "qil_deploy.verify/999"}', r"has schema 'qil_deploy\.verify/999'; .* was expected"),
        ('{"name": "somebody else\'s"}', "has schema None"),
        ("", "cannot be read as a report"),
    ],
)
def test_what_is_no_report_is_refused_alone_and_a_grave_remark_in_a_folder(
    write: Write, content: str, message: str
) -> None:
    folder = write("run", verified(NET))
    (folder / "bad.json").write_text(content)
    with pytest.raises(DataError, match=message):
        collect([folder / "bad.json"])
    report = collect([folder])
    (remark,) = report.runs[0].remarks
    assert remark.grave
    assert "bad.json" in remark.text
    assert report.verdict.status == "incomplete"
    assert "Read the 1 remark below first." in report.verdict.sentence
    (folder / "0.json").unlink()
    with pytest.raises(DataError, match=r"no report that could be read. Left out: .*bad\.json"):
        collect([folder])


def test_a_setting_measured_twice_is_told_apart(write: Write) -> None:
    slow = timed(NET, model("slow.onnx", "b"), factor=3.0)
    (run,) = collect([write("run", timed(NET), slow)]).runs
    assert [(row.by, row.model[0]) for row in run.latencies] == [
        ("bench, 0", "a"),
        ("bench, 1", "a"),
        ("bench, 1", "b"),
    ]
    assert [row.by for row in run.controls] == ["bench, 0", "bench, 1"]
    (run,) = collect([write("apart", timed(NET), timed(model("slow.onnx", "b")))]).runs
    assert [row.by for row in run.latencies] == ["bench", "bench"]


def test_counts_and_times_that_cannot_be_are_refused(write: Write) -> None:
    bench = timed(NET)
    for index, (report, message) in enumerate(
        (
            (verified(NET, backend("ONNX Runtime (all)", differing=501)), "of 500 logits, 501 differ"),
            (verified(NET, backend("ONNX Runtime (all)", differing=-1)), "of 500 logits, -1 differ"),
            (verified(NET, backend("ONNX Runtime (all)", accuracy=1.5)), "an accuracy is 1.5"),
            (replace(bench, latencies=(replace(bench.latencies[0], median_ms=-1.0),)), "a median latency is -1 ms"),
            (counted(NET, factor=0), "an inference of 0 instructions"),
        )
    ):
        with pytest.raises(DataError, match=message):
            collect([write(f"run{index}", report)])


def test_instructions_are_compared_on_the_same_target_and_never_with_times(write: Write) -> None:
    other = model("other.onnx", "b")
    report = collect([write("before", counted(NET, other), timed(NET)), write("after", counted(NET, factor=3))])
    first, second = report.runs[0].instructions
    assert (first.instructions, first.ratio, first.first) == (1_000_000, 1.0, NET.sha256)
    assert (second.model, second.instructions, second.ratio, second.first) == (
        other.sha256,
        2_000_000,
        2.0,
        NET.sha256,
    )
    assert [row.target for row in report.runs[0].latencies] == ["native"]
    only = change(report, "instructions")
    assert (only.before, only.after, only.ratio, only.setting) == (1e6, 3e6, 3.0, "arm64:cortex-a53, batch 1")
    gap, *_ = report.runs[0].not_run
    assert (gap.name, gap.target, gap.failed, gap.reason) == ("broken.onnx", "arm64:cortex-a53", True, "it crashed.")
    elsewhere = collect([write("a", counted(NET)), write("b", counted(NET, target="haswell"))])
    assert not [each for each in elsewhere.changes if each.figure == "instructions"]


def test_an_outcome_of_before_instructions_were_reported_is_still_read(write: Write, tmp_path: Path) -> None:
    report = collect([write("run", verified(NET))])
    write_report(tmp_path / "earlier.json", report)
    content = json.loads((tmp_path / "earlier.json").read_text())
    del content["runs"][0]["instructions"]
    (tmp_path / "earlier.json").write_text(json.dumps(content))
    assert collect([tmp_path / "earlier.json"]).runs == report.runs


def test_what_is_not_there_or_no_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nothing to report"):
        collect([])
    with pytest.raises(DataError, match="there is no file"):
        collect([tmp_path / "missing.json"])
    with pytest.raises(DataError, match=r"no report that could be read. It has no file that ends in \.json"):
        collect([tmp_path])
    os.mkfifo(tmp_path / "pipe.json")
    with pytest.raises(DataError, match="there is no file"):
        collect([tmp_path / "pipe.json"])
    with pytest.raises(DataError, match="there is no file"):
        collect([tmp_path])


def test_a_path_in_a_report_is_opened_only_if_it_is_that_model(write: Write, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.onnx")
    for index, path in enumerate(
        (str(tmp_path / "pipe.onnx"), "/dev/zero", "a\0b.onnx", "x" * 5000 + ".onnx", "\ud800.onnx")
    ):
        (found,) = collect([write(f"run{index}", verified(replace(NET, path=path)))]).runs[0].models
        assert found.content is None
        assert found.unread is not None
        assert "was not found" in found.unread
    (tmp_path / "net.onnx").write_bytes(b"another")
    report = collect([write("run", verified(replace(NET, path=str(tmp_path / "net.onnx"))))])
    assert report.runs[0].models[0].unread == "The file net.onnx is another one by now."
