"""Models that work, that are refused, that crash and that hang, each in a process of its own."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from onnx import TensorProto, helper

from qil_deploy.errors import ModelFileError
from qil_deploy.runtime_tests.bench.trial import TrialOptions, try_model, try_runtime

WriteModel = Callable[..., Path]
TRIAL = "qil_deploy.runtime_tests.bench.trial"
OPTIONS = TrialOptions(threads=1, batch=1, seed=0, processes=1, timeout=60)


def endless_model(path: Path) -> Path:
    """Write a valid model that counts to 2**62."""
    value = helper.make_tensor_value_info
    body = helper.make_graph(
        [helper.make_node("Identity", ["on"], ["still_on"]), helper.make_node("Add", ["x", "x"], ["y"])],
        "body",
        [value("i", TensorProto.INT64, []), value("on", TensorProto.BOOL, []), value("x", TensorProto.FLOAT, [1, 4])],
        [value("still_on", TensorProto.BOOL, []), value("y", TensorProto.FLOAT, [1, 4])],
    )
    count = helper.make_tensor("count", TensorProto.INT64, [], [2**62])
    on = helper.make_tensor("on", TensorProto.BOOL, [], [True])
    loop = helper.make_node("Loop", ["count", "on", "x"], ["y"], body=body)
    io = [value("x", TensorProto.FLOAT, [1, 4])], [value("y", TensorProto.FLOAT, [1, 4])]
    model = helper.make_model(
        helper.make_graph([loop], "endless", *io, [count, on]),
        opset_imports=[helper.make_opsetid("", 21)],
        ir_version=10,
    )
    path.write_bytes(model.SerializeToString())
    return path


def test_a_model_takes_more_memory_than_the_runtime_alone(write_model: WriteModel) -> None:
    trial = try_model(write_model(), replace(OPTIONS, processes=2))
    assert trial.load_ms is not None
    assert trial.load_ms > 0
    assert trial.first_run_ms is not None
    assert trial.first_run_ms > 0
    assert trial.peak_bytes > 10_000_000
    assert try_runtime(60) > 10_000_000


def test_a_model_that_is_refused_is_refused_in_the_same_words(write_model: WriteModel, tmp_path: Path) -> None:
    (tmp_path / "noise.onnx").write_bytes(b"\x00" * 100)
    with pytest.raises(ModelFileError, match=r"^ONNX Runtime .* cannot load .*noise\.onnx at optimization level 'all'"):
        try_model(tmp_path / "noise.onnx", OPTIONS)
    with pytest.raises(ModelFileError, match=r"^input 'image' of .* a batch of 2 needs a first dimension"):
        try_model(write_model(batch=3), replace(OPTIONS, batch=2))


def test_a_model_that_hangs_is_stopped(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match=r"endless\.onnx was not loaded and run once within 3 seconds"):
        try_model(endless_model(tmp_path / "endless.onnx"), replace(OPTIONS, timeout=3))


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("import os; os.abort()", r"m\.onnx crashed the process that tried to load and run it \(SIGABRT\)"),
        ("import os; os.kill(os.getpid(), 9)", r"m\.onnx crashed the process .* \(SIGKILL\); it may be .* too large"),
        ("raise OSError('no room')", r"run m\.onnx failed with exit code 1: OSError: no room"),
        ("raise SystemExit(7)", r"run m\.onnx failed with exit code 7\."),
        ("import time; time.sleep(600)", r"m\.onnx was not loaded and run once within 1 seconds, and was stopped"),
    ],
)
def test_a_process_that_crashes_becomes_a_sentence(monkeypatch: pytest.MonkeyPatch, code: str, message: str) -> None:
    monkeypatch.setattr(f"{TRIAL}._command", lambda *_: [sys.executable, "-c", code])
    with pytest.raises(ModelFileError, match=message):
        try_model(Path("m.onnx"), replace(OPTIONS, timeout=1 if "sleep" in code else 60))


def test_a_process_that_cannot_be_started_becomes_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(f"{TRIAL}._command", lambda *_: ["no_such_program_anywhere"])
    with pytest.raises(
        ModelFileError, match=r"m\.onnx cannot be tried in a process of its own: .* could not be measured"
    ):
        try_model(Path("m.onnx"), OPTIONS)
