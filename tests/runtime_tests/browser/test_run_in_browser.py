"""Target wasm: the page in a headless Chromium computes every code, and every failure is reported in a sentence."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import stat
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import psutil
import pytest
from numpy.typing import NDArray

from qil_deploy.errors import ModelFileError, TargetError
from qil_deploy.runtime_tests import golden_chunks
from qil_deploy.runtime_tests.browser import browser_state, run_in_browser
from qil_deploy.runtime_tests.browser import run as run_module
from qil_deploy.runtime_tests.browser.chromium import VARIABLE, browser_at, find_chromium
from qil_deploy.runtime_tests.golden import write_golden
from qil_deploy.runtime_tests.phone.server import PAGE
from qil_deploy.runtime_tests.targets import RunOptions, find_target, run_on_target, verify_targets, write_golden_logits
from tests.runtime_tests.patience import wait_for

from .processes import browser_processes

WriteModel = Callable[..., Path]
ZOO = Path(__file__).parents[3] / "zoo" / "fashion_mnist"
LEVELS = ("disabled", "basic", "extended", "all")
OPTIONS = RunOptions(levels=LEVELS, timeout=60)
NATIVE = find_target("native")
WASM = find_target("wasm")


@pytest.fixture
def golden(write_model: WriteModel, images: NDArray[np.uint8], tmp_path: Path) -> tuple[Path, Path]:
    """A small model and golden vectors of five images."""
    model = write_model()
    write_golden(model, images[:5], "noise", tmp_path / "golden.npz")
    return model, tmp_path / "golden.npz"


@pytest.mark.usefixtures("browser")
def test_every_code_is_equal_and_the_report_is_that_of_this_machine(golden: tuple[Path, Path]) -> None:
    told: list[str] = []
    found = run_on_target(WASM, *golden, replace(OPTIONS, batch=2, threads=2, repeats=3), told.append)
    native = run_on_target(NATIVE, *golden, replace(OPTIONS, batch=2))

    assert found.compared
    assert found.differing == 0
    # Digests, shapes and classes of every tensor at every level.
    assert found.levels == native.levels
    assert (found.threads, found.environment.machine) == (2, "wasm32")
    assert {"simd128", "threads"} <= set(found.environment.features)
    assert "Chrome" in (found.environment.browser or "")
    assert found.latency is not None
    assert found.latency.runs == 3
    assert told


@pytest.mark.usefixtures("browser")
@pytest.mark.parametrize("name", ["w4a4", "w2a2"])
def test_the_zoo_is_equal(name: str, tmp_path: Path) -> None:
    model = ZOO / f"{name}.onnx"
    noise = np.random.default_rng(3).integers(0, 256, (2, 1, 28, 28), dtype=np.uint8)
    write_golden(model, noise, "noise", tmp_path / "golden.npz")
    report = run_on_target(WASM, model, tmp_path / "golden.npz", OPTIONS)
    assert report.differing == 0
    assert report.compared_elements > 3_000_000


@pytest.mark.usefixtures("browser")
@pytest.mark.parametrize("model", [{"input": "float"}, {"batch": 4, "metadata": {"batch": 4}}])
def test_normalised_input_and_fixed_batches_are_equal_too(
    model: dict[str, Any], write_model: WriteModel, images: NDArray[np.uint8], tmp_path: Path
) -> None:
    path = write_model(**model)
    write_golden(path, images[:6], "noise", tmp_path / "golden.npz")
    report = run_in_browser(path, tmp_path / "golden.npz", OPTIONS)
    assert (report.images, report.differing, report.compared) == (6, 0, True)


@pytest.mark.usefixtures("browser")
def test_differences_are_counted_and_located_as_they_are_on_this_machine(golden: tuple[Path, Path]) -> None:
    with np.load(golden[1]) as stored:
        arrays: dict[str, Any] = dict(stored)
    names = json.loads(str(arrays["about"]))["tensors"]
    for name, changes in ((names[1], {(2, 1, 3, 4): 5, (4, 0, 0, 0): 2}), ("logits", {(3, 2): 7})):
        arrays[name] = arrays[name].copy()
        for index, step in changes.items():
            arrays[name][index] += step
    arrays[names[2]] = arrays[names[2]].astype(np.int32)
    np.savez(golden[1], **arrays)

    found = run_on_target(WASM, *golden, replace(OPTIONS, batch=2))

    assert found.levels == run_on_target(NATIVE, *golden, replace(OPTIONS, batch=2)).levels
    first = found.levels[0].first_difference
    assert first is not None
    assert (first.tensor, first.differing, first.index, first.largest_step) == (names[1], 2, (2, 1, 3, 4), 5.0)


@pytest.mark.usefixtures("browser")
def test_more_images_than_are_kept_come_chunk_by_chunk(
    write_model: WriteModel, images: NDArray[np.uint8], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(golden_chunks, "_CHUNK_BYTES", 3000)
    model = write_model()
    write_golden(model, images[:2], "noise", tmp_path / "golden.npz")
    write_golden_logits(model, images, "noise", tmp_path / "logits.npz")
    report = verify_targets(model, [WASM], tmp_path / "golden.npz", logits=tmp_path / "logits.npz", options=OPTIONS)
    assert report.exact is True
    logits = report.targets[0].logits
    assert logits is not None
    with np.load(tmp_path / "logits.npz") as arrays:
        assert logits.levels[0].predictions == tuple(arrays["logits"].argmax(axis=1).tolist())


@pytest.mark.usefixtures("browser")
def test_images_alone_give_digests_and_classes(golden: tuple[Path, Path], images: NDArray[np.uint8]) -> None:
    path = golden[1].with_name("images.npy")
    np.save(path, images)
    options = RunOptions(batch=25, timeout=60)
    found = run_on_target(WASM, golden[0], path, options)
    assert found.compared is False
    assert found.levels == run_on_target(NATIVE, golden[0], path, options).levels


@pytest.mark.usefixtures("browser")
def test_what_the_runtime_refuses_ends_with_its_words(golden: tuple[Path, Path], tmp_path: Path) -> None:
    model = onnx.load(golden[0])
    model.ir_version = 99
    onnx.save(model, tmp_path / "odd.onnx")
    np.save(tmp_path / "images.npy", np.zeros((1, 3, 8, 8), np.uint8))
    with pytest.raises(TargetError, match=r"target wasm failed\. Its last words: ONNX Runtime Web .* cannot load the"):
        run_in_browser(tmp_path / "odd.onnx", tmp_path / "images.npy", RunOptions(timeout=60))


@pytest.mark.usefixtures("browser")
def test_a_page_that_shows_no_progress_is_given_up(
    golden: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = tmp_path / "page"
    shutil.copytree(PAGE, page)
    (page / "runner.js").write_text("for (;;);")
    monkeypatch.setattr("qil_deploy.runtime_tests.phone.server.PAGE", page)
    with pytest.raises(TargetError, match="target wasm has not answered for 3 seconds and was stopped"):
        run_in_browser(*golden, replace(OPTIONS, timeout=3))


@pytest.mark.usefixtures("browser")
def test_no_process_of_the_browser_is_left(golden: tuple[Path, Path]) -> None:
    own: set[psutil.Process] = set()
    run_in_browser(*golden, OPTIONS, lambda _: own.update(browser_processes(os.getpid())))
    assert own
    assert not psutil.wait_procs(own, timeout=120)[1]


@pytest.mark.usefixtures("browser")
@pytest.mark.parametrize("signal_number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_browser_whose_command_was_ended_ends_by_itself(
    golden: tuple[Path, Path], signal_number: signal.Signals
) -> None:
    arguments = [sys.executable, "-m", "qil_deploy", "bench", str(golden[0])]
    with subprocess.Popen([*arguments, "--target", "wasm", "--repeats", "100000"]) as process:
        own = wait_for(lambda: browser_processes(process.pid))
        process.send_signal(signal_number)
    assert not psutil.wait_procs(own, timeout=120)[1]


def write_program(path: Path, text: str) -> Path:
    path.write_text(f"#!{sys.executable}\n{text}")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


@pytest.fixture
def runtime(monkeypatch: pytest.MonkeyPatch) -> None:
    """Replace the runtime by no files, for browsers that run nothing."""
    monkeypatch.setattr(run_module, "runtime_files", dict)


# What a browser may do instead of showing the page, and what is said of it.
BAD_BROWSERS = {
    "silence": ("import time; time.sleep(600)", "target wasm has not answered for 2 seconds and was stopped"),
    "end": (
        "print('no \\x1b[2J display'); raise SystemExit(7)",
        r"failed: the browser ended \(exitCode=7, signal=null\)\. Its last words: no \\x1b\[2J display",
    ),
    "crash": ("import os; os.kill(os.getpid(), 11)", r"failed: the browser ended \(exitCode=null, signal=SIGSEGV\)"),
    "deafness": (
        "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)",
        "target wasm has not answered for 2 seconds",
    ),
}


@pytest.mark.usefixtures("runtime")
@pytest.mark.parametrize("case", BAD_BROWSERS)
def test_bad_browsers_end_with_a_sentence(
    case: str, golden: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script, message = BAD_BROWSERS[case]
    monkeypatch.setenv(VARIABLE, str(write_program(tmp_path / "browser", script)))
    with pytest.raises(TargetError, match=message):
        run_in_browser(*golden, replace(OPTIONS, timeout=2 if "answered" in message else 300))


@pytest.mark.usefixtures("runtime")
def test_vectors_and_models_that_do_not_fit_are_sentences(golden: tuple[Path, Path], tmp_path: Path) -> None:
    (tmp_path / "half.npz").write_bytes(b"no vectors")
    with pytest.raises(TargetError, match=r"target wasm was not started: golden vectors .* are damaged"):
        run_in_browser(golden[0], tmp_path / "half.npz", OPTIONS)
    with pytest.raises(ModelFileError, match="does not exist"):
        run_in_browser(tmp_path / "absent.onnx", golden[1], OPTIONS)


def test_a_browser_is_found_or_missed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv(VARIABLE, raising=False)
    with pytest.raises(TargetError, match="there is no Chromium on the PATH; install it, or name one with QIL_DEPLOY"):
        find_chromium()
    assert str(browser_state()).startswith("there is no Chromium")
    monkeypatch.setenv(VARIABLE, str(tmp_path / "absent"))
    with pytest.raises(TargetError, match=r"QIL_DEPLOY_CHROMIUM is '.*absent', which is no program"):
        find_chromium()
    program = write_program(tmp_path / "chromium-browser", "")
    monkeypatch.delenv(VARIABLE)
    assert find_chromium() == str(program)
    program.write_text("#!/absent/interpreter")
    with browser_at("http://127.0.0.1/", 20) as browser:
        ended = wait_for(browser.ended)
    assert re.search(r"ended\. Its last words: .* Failed to launch: .*chromium-browser ENOENT", ended)


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="only some systems have a user that may do everything")
def test_the_sandbox_is_off_for_root_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = write_program(
        tmp_path / "browser", f"import sys; open({str(tmp_path / 'seen')!r}, 'w').write(str(sys.argv))"
    )
    monkeypatch.setenv(VARIABLE, str(program))
    for user, expected in ((0, True), (1000, False)):
        monkeypatch.setattr(os, "geteuid", lambda user=user: user)
        with browser_at("http://127.0.0.1/", 20) as browser:
            wait_for(browser.ended)
        assert ("--no-sandbox" in (tmp_path / "seen").read_text()) == expected
