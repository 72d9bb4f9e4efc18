"""Targets: the native one, emulated ones if they are set up, and every reason why one cannot run."""

from __future__ import annotations

import io
import json
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from numpy.typing import NDArray

from qil_deploy.errors import ConfigError, DataError, TargetError
from qil_deploy.onnx_io.model_file import read_model
from qil_deploy.reference import IntegerReference
from qil_deploy.reports import read_report, write_report
from qil_deploy.runtime_tests import device_program
from qil_deploy.runtime_tests.golden import write_golden
from qil_deploy.runtime_tests.targets import (
    TARGETS,
    RunOptions,
    TargetsReport,
    catalogue,
    find_target,
    install_folder,
    run_on_target,
    set_up_target,
    target_names,
    target_state,
    verify_targets,
    worker_process,
    write_golden_logits,
)
from qil_deploy.runtime_tests.targets.table import targets_remarks, targets_table
from qil_deploy.runtime_tests.targets.worker_process import Command, run_worker
from qil_deploy.terminal.console import Console

WriteModel = Callable[..., Path]

NATIVE = TARGETS["native"]
ZOO = Path(__file__).parents[2] / "zoo" / "fashion_mnist"
LEVELS = ("disabled", "basic", "extended", "all")


@pytest.fixture
def golden(write_model: WriteModel, images: NDArray[np.uint8], tmp_path: Path) -> tuple[Path, Path]:
    """A small model and golden vectors of three images."""
    model = write_model()
    write_golden(model, images[:3], "noise", tmp_path / "golden.npz")
    return model, tmp_path / "golden.npz"


def shown(report: TargetsReport) -> str:
    """The command line's output for a report, without line breaks."""
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(targets_table(report))
    return " ".join([*console.export_text().split(), *targets_remarks(report)])


def test_native_computes_every_code_and_logit(
    golden: tuple[Path, Path], images: NDArray[np.uint8], tmp_path: Path
) -> None:
    model, vectors = golden
    write_golden_logits(model, images, "noise", tmp_path / "logits.npz")

    report = verify_targets(model, [NATIVE], vectors, logits=tmp_path / "logits.npz")

    assert report.exact is True
    (result,) = report.targets
    assert result.codes is not None
    assert result.logits is not None
    assert [level.level for level in result.codes.levels] == list(LEVELS)
    assert all(len(level.tensors) > 5 for level in result.codes.levels)
    assert result.logits.images == len(images)
    assert [level.level for level in result.logits.levels] == ["all"]
    expected = IntegerReference(read_model(model)).run(images).argmax(axis=1)
    assert result.logits.levels[0].predictions == tuple(expected.tolist())
    assert result.codes.latency is not None
    assert "Exact: every code and logit" in shown(report)
    write_report(tmp_path / "report.json", report)
    assert read_report(tmp_path / "report.json", TargetsReport) == report


def test_the_first_difference_on_a_target_is_named(golden: tuple[Path, Path]) -> None:
    model, vectors = golden
    with np.load(vectors) as stored:
        arrays = dict(stored)
    name = json.loads(str(arrays["about"]))["tensors"][2]
    arrays[name] = arrays[name].copy()
    arrays[name][1, 2, 3, 0] += 3
    np.savez(vectors, **arrays)

    report = verify_targets(model, [NATIVE], vectors)

    assert report.exact is False
    assert report.targets[0].codes is not None
    assert report.targets[0].codes.differing == len(LEVELS)
    sentence = f"native, level all: '{name}' is the first tensor that differs, in 1 of"
    assert sentence in shown(report)
    assert "first at [1, 2, 3, 0], by 3 at most" in shown(report)


def test_logits_of_no_images_are_refused(golden: tuple[Path, Path], images: NDArray[np.uint8], tmp_path: Path) -> None:
    with pytest.raises(DataError, match="there are no images"):
        write_golden_logits(golden[0], images[:0], "noise", tmp_path / "logits.npz")


def test_a_target_that_fails_keeps_what_came_before(golden: tuple[Path, Path], tmp_path: Path) -> None:
    model, vectors = golden
    (tmp_path / "logits.npz").write_bytes(b"no vectors")

    report = verify_targets(model, [NATIVE], vectors, logits=tmp_path / "logits.npz")

    (result,) = report.targets
    assert report.exact is False
    assert result.codes is not None
    assert result.codes.differing == 0
    assert result.failed is not None
    assert re.search("target native was not started: golden vectors .* are damaged", result.failed)
    assert result.failed in shown(report)


# What a worker may do instead of working, and what is said of it.
BAD_WORKERS = {
    "silence": ("import time; time.sleep(600)", "target native has not answered for 2 seconds and was stopped"),
    "silent in the end": (
        "import sys, time; sys.stderr.write('progress: x\\n'); sys.stderr.close(); time.sleep(600)",
        "target native has not answered for 2 seconds and was stopped",
    ),
    "crash": ("import os; os.kill(os.getpid(), 11)", "target native failed with exit code -11"),
    "words": ("raise SystemExit('it is broken')", "brought back no report: .*Its last words: it is broken"),
    "no report": ("print('hello')", "brought back no report: what it sent cannot be read as a report"),
    "another report": ('print(\'{"schema": "x"}\')', "brought back no report: .*has schema 'x'"),
}


@pytest.mark.parametrize("case", BAD_WORKERS)
def test_bad_workers_end_with_a_sentence(golden: tuple[Path, Path], case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    script, message = BAD_WORKERS[case]
    monkeypatch.setattr(device_program, "write_device_program", lambda path: path.write_text(script))
    with pytest.raises(TargetError, match=message):
        run_on_target(NATIVE, *golden, RunOptions(timeout=2 if "answered" in message else 300))


def test_a_worker_that_shows_progress_may_take_longer_than_the_timeout(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each sign of progress takes 250 seconds of a clock of our own, and long enough to be waited for."""
    script = (
        "import sys, time\nfor i in range(8): time.sleep(0.1); print(f'progress: {i}', file=sys.stderr, flush=True)"
    )
    seen: list[str] = []
    monkeypatch.setattr(worker_process, "_LOOK", 0.02)
    monkeypatch.setattr(worker_process, "time", SimpleNamespace(monotonic=lambda: 250.0 * len(seen)))
    command = Command(arguments=(sys.executable, "-c", script), environment=os.environ)
    assert run_worker(command, tmp_path / "out", 300, seen.append) == (0, [])
    assert seen == [str(index) for index in range(8)]


def test_what_cannot_be_started_is_a_sentence(tmp_path: Path) -> None:
    command = Command(arguments=(str(tmp_path / "absent"),), environment={})
    with pytest.raises(TargetError, match=r"cannot start .*absent: No such file"):
        run_worker(command, tmp_path / "out", 2)


def test_timeouts_are_positive(golden: tuple[Path, Path]) -> None:
    with pytest.raises(ConfigError, match="the timeout is 0 seconds; it must be positive"):
        run_on_target(NATIVE, *golden, RunOptions(timeout=0))


def test_names_stand_for_targets() -> None:
    cpus = ("arm64:cortex-a53", "arm64:cortex-a72", "arm64:cortex-a76", "arm64:max")
    assert target_names("arm64") == cpus
    assert target_names("arm64:max") == ("arm64:max",)
    assert target_names("all") == ("native", "haswell", *cpus, "wasm")
    for unknown in ("arm64:m1", "mips", ""):
        with pytest.raises(TargetError, match=f"there is no target '{unknown}'; choose from"):
            target_names(unknown)
        with pytest.raises(TargetError, match="there is no target"):
            find_target(unknown)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder for targets, on a machine that could run all of them."""
    monkeypatch.setenv("QIL_DEPLOY_TARGETS", str(tmp_path / "targets"))
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    monkeypatch.setattr("sys.platform", "linux")
    monkeypatch.setattr("shutil.which", lambda tool: f"/usr/bin/{tool}")
    return tmp_path / "targets"


def test_targets_that_are_not_set_up_are_refused_or_skipped(here: Path, golden: tuple[Path, Path]) -> None:
    haswell = find_target("haswell")
    sentence = "it is not set up; run: python -m qil_deploy target setup haswell"
    with pytest.raises(TargetError, match=f"target haswell cannot run: {sentence}"):
        verify_targets(golden[0], [NATIVE, haswell], golden[1])
    report = verify_targets(golden[0], [NATIVE, haswell], golden[1], skip=True)
    assert report.exact is True
    assert report.targets[1].skipped == sentence
    assert f"haswell was skipped: {sentence}" in shown(report)
    assert verify_targets(golden[0], [haswell], golden[1], skip=True).exact is None
    assert not here.exists()


def test_damaged_folders_are_named(here: Path) -> None:
    folder = here / "haswell"
    folder.mkdir(parents=True)
    python = str(catalogue.this_python())
    for content, message in (
        ("{", "about.json is damaged"),
        ("{}", "about.json is damaged"),
        (json.dumps({"python": python}), "qemu-x86_64-static is gone; remove"),
    ):
        (folder / "about.json").write_text(content)
        state = target_state(find_target("haswell"))
        assert state is not None
        assert message in state
    (folder / "qemu-x86_64-static").touch()
    assert target_state(find_target("haswell")) is None
    (folder / "about.json").write_text(json.dumps({"python": "qemu-x86_64-static"}))
    assert "it is set up for" in str(target_state(find_target("haswell")))


def test_machines_that_cannot_run_a_target_say_why(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.machine", lambda: "aarch64")
    assert target_state(find_target("haswell")) == "it needs an x86_64 machine, and this is aarch64."
    with pytest.raises(TargetError, match="haswell cannot be set up here: it needs an x86_64 machine"):
        set_up_target("haswell")
    monkeypatch.setattr("sys.platform", "darwin")
    assert target_state(find_target("arm64:max")) == "qemu-user runs on Linux, and this is darwin."
    monkeypatch.setattr("sys.platform", "linux")
    monkeypatch.setattr("shutil.which", lambda _: None)
    with pytest.raises(TargetError, match="setting up arm64 needs apt-get, dpkg-deb, tar, of Debian"):
        set_up_target("arm64")
    assert not here.exists()


def test_what_cannot_be_set_up_is_refused(here: Path) -> None:
    with pytest.raises(TargetError, match="there is nothing to set up for 'native'; choose from haswell, arm64"):
        set_up_target("native")
    (here / "arm64").mkdir(parents=True)
    with pytest.raises(TargetError, match=r"arm64 is set up already, in .*; remove that folder"):
        set_up_target("arm64")


@pytest.mark.parametrize("step", [0, 1])
def test_a_set_up_that_fails_leaves_nothing(here: Path, step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []

    def run(command: list[str], what: str, cwd: Path | None = None) -> None:
        del command, cwd
        calls.append(what)
        if len(calls) > step:
            raise TargetError(f"{what} failed with exit code 100: no such host.")

    monkeypatch.setattr(install_folder, "run_step", run)
    with pytest.raises(TargetError, match="failed with exit code 100: no such host"):
        set_up_target("arm64")
    assert list(here.iterdir()) == []


def test_the_last_words_of_a_step_are_kept() -> None:
    script = "import sys; sys.stderr.write('first\\nlast\\n'); sys.exit(7)"
    with pytest.raises(TargetError, match="greeting failed with exit code 7: first / last"):
        install_folder.run_step([sys.executable, "-c", script], "greeting")
    with pytest.raises(TargetError, match=r"greeting failed: .*No such file"):
        install_folder.run_step(["/absent/tool"], "greeting")


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name, target in TARGETS.items() if target.emulator is not None])
def test_emulated_targets_compute_every_code_of_the_zoo(name: str, tmp_path: Path) -> None:
    target = find_target(name)
    reason = target_state(target)
    if reason is not None:
        pytest.skip(f"{name}: {reason}")
    model = ZOO / "w2a2.onnx"
    noise = np.random.default_rng(3).integers(0, 256, (2, 1, 28, 28), dtype=np.uint8)
    write_golden(model, noise, "noise", tmp_path / "golden.npz")

    report = run_on_target(target, model, tmp_path / "golden.npz", RunOptions(levels=("disabled", "all")))

    assert report.compared
    assert report.differing == 0
    assert report.environment.machine == ("x86_64" if name == "haswell" else "aarch64")
    assert report.environment.cpu == f"{target.cpu} (qemu)"
    assert "AVX512VNNI" not in report.environment.features
    if name.startswith("arm64"):
        assert ("ASIMDDP" in report.environment.features) == (target.cpu in ("cortex-a76", "max"))
