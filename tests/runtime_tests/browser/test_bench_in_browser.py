"""`bench --target wasm`: a browser's samples become the same report, and wrong ones are refused."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import typer
from onnx import TensorProto, helper
from typer.testing import CliRunner

from qil_deploy.commands.bench import bench_command
from qil_deploy.errors import ConfigError, DataError, ModelFileError, QilDeployError, TargetError
from qil_deploy.reports import read_report, write_report
from qil_deploy.runtime_tests.bench import BenchOptions, BenchReport
from qil_deploy.runtime_tests.bench.report import COLD, WARM
from qil_deploy.runtime_tests.browser import bench as bench_module
from qil_deploy.runtime_tests.browser.bench import BrowserSamples, bench_service, benchmark_in_browser, browser_name
from qil_deploy.runtime_tests.phone.server import Resource, Service
from qil_deploy.runtime_tests.phone.web_runtime import FILES
from qil_deploy.runtime_tests.targets.report import DeviceEnvironment

WriteModel = Callable[..., Path]
AskedFor = Callable[[Mapping[str, Any]], set[str]]
QUICK = BenchOptions(caches=(WARM,), repeats=6, warmup=1, timeout=60)
ENVIRONMENT = {
    "onnxruntime": "1.30.0",
    "numpy": None,
    "python": None,
    "browser": "Mozilla/5.0 (X11; Linux x86_64) HeadlessChrome/156.0.0.0 Safari/537.36",
    "machine": "wasm32",
    "cpu": "not told by browsers",
    "cpus": 2,
    "features": ["simd128"],
}
HONEST = {
    "schema": BrowserSamples.SCHEMA,
    "threads": 1,
    "runs_ns": [[10, 20, 30], []],
    "control_ns": [11, 22, 33],
    "reasons": [None, "it is odd"],
    "environment": ENVIRONMENT,
}


def read(resource: Resource) -> bytes:
    return resource if isinstance(resource, bytes) else resource()


def service(folder: Path, *, models: int = 2) -> Service:
    """The service that measures some models of one input each, three times."""
    paths = [folder / f"{index}.onnx" for index in range(models)]
    for path in paths:
        path.write_bytes(path.name.encode())
    drawn = {path: {"x": np.arange(3, dtype=np.int64)} for path in paths}
    return bench_service(drawn, 1, BenchOptions(repeats=3, warmup=2), {})


@pytest.mark.usefixtures("browser")
def test_models_are_measured_in_rounds_and_those_that_cannot_be_are_named(
    write_model: WriteModel, tmp_path: Path
) -> None:
    odd = write_inputs(tmp_path / "odd.onnx", {"x": TensorProto.FLOAT16})
    paths = [write_model("float.onnx", format="float", input="float"), odd, write_model()]
    told: list[tuple[str, int, int]] = []

    report = benchmark_in_browser(
        paths,
        BenchOptions(threads=(1, 2), caches=(WARM,), repeats=6, warmup=1),
        progress=lambda *args: told.append(args),
    )

    assert [(latency.model.path, latency.threads) for latency in report.latencies] == [
        (str(path), threads) for threads in (1, 2) for path in (paths[0], paths[2])
    ]
    for latency in report.latencies:
        assert latency.target.startswith("wasm (Chrome ")
        assert (latency.caches, len(latency.samples_ns), latency.cpus) == (WARM, 6, ())
        assert latency.median_ms > 0
    assert [latency.ratio_interval is None for latency in report.latencies] == [True, False, True, False]
    assert [(control.threads, len(control.samples_ns)) for control in report.controls] == [(1, 6), (2, 6)]
    assert [failure.path for failure in report.failures] == [str(odd)]
    assert "is float16; a browser takes uint8" in report.failures[0].reason
    assert report.activity.others is None
    assert any("clock has steps of 5 microseconds" in warning for warning in report.warnings)
    write_report(tmp_path / "bench.json", report)
    assert read_report(tmp_path / "bench.json", BenchReport) == report
    assert told


@pytest.mark.usefixtures("browser")
def test_inputs_of_every_type_reach_the_model(tmp_path: Path) -> None:
    types = {name: getattr(TensorProto, name.upper()) for name in ("int64", "int32", "bool", "uint8", "int8")}
    types |= {"float32": TensorProto.FLOAT, "float64": TensorProto.DOUBLE}
    path = write_inputs(tmp_path / "all.onnx", types)
    report = benchmark_in_browser([path], QUICK)
    assert report.failures == ()
    assert len(report.latencies[0].samples_ns) == 6


@pytest.mark.usefixtures("browser")
def test_what_the_browser_cannot_load_is_named(write_model: WriteModel, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = [write_model("one.onnx"), write_model("two.onnx")]
    inputs = {"image": np.zeros((1, 3, 8, 8), np.uint8)}
    monkeypatch.setattr(bench_module, "_draw_inputs", lambda *_: {paths[0]: inputs, paths[1]: inputs})
    paths[0].write_bytes(b"no model")
    report = benchmark_in_browser(paths, QUICK)
    assert [latency.model.path for latency in report.latencies] == [str(paths[1])]
    assert [latency.ratio for latency in report.latencies] == [1.0]
    assert len(report.controls) == 1
    assert "one.onnx cannot be run in a browser: ONNX Runtime Web" in report.failures[0].reason
    paths[1].write_bytes(b"no model")
    with pytest.raises(ModelFileError, match=r"one\.onnx cannot be run .*two\.onnx cannot be run"):
        benchmark_in_browser(paths, QUICK)


def write_inputs(path: Path, types: Mapping[str, int]) -> Path:
    """Write a model that adds up the sizes of its inputs, of any type."""
    nodes = [helper.make_node("Size", [name], [f"{name} size"]) for name in types]
    nodes += [helper.make_node("Max", [node.output[0] for node in nodes], ["logits"])]
    graph = helper.make_graph(
        nodes,
        "inputs",
        [helper.make_tensor_value_info(name, kind, ["n", 3]) for name, kind in types.items()],
        [helper.make_tensor_value_info("logits", TensorProto.INT64, [])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, path)
    return path


def test_settings_that_were_finished_are_kept(write_model: WriteModel, monkeypatch: pytest.MonkeyPatch) -> None:
    samples = BrowserSamples(
        schema=BrowserSamples.SCHEMA,
        threads=1,
        runs_ns=((10, 20, 30),),
        control_ns=(11, 22, 33),
        reasons=(None,),
        environment=DeviceEnvironment(**(ENVIRONMENT | {"features": ("simd128",)})),  # type: ignore[arg-type] # by name
    )
    outcomes: list[object] = [samples, TargetError("target wasm has not answered for 60 seconds.")]

    def measure(*_: object) -> object:
        outcome = outcomes.pop(0)
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome

    monkeypatch.setattr(bench_module, "runtime_files", dict)
    monkeypatch.setattr(bench_module, "_measure", measure)
    options = BenchOptions(threads=(1, 2), caches=(WARM,), repeats=3)
    report = benchmark_in_browser([write_model()], options)
    assert [latency.threads for latency in report.latencies] == [1]
    (failure,) = report.failures
    assert failure.path == "wasm, threads 2"
    assert failure.reason == "nothing was measured with threads 2: target wasm has not answered for 60 seconds."
    outcomes[:] = [samples, KeyboardInterrupt()]
    report = benchmark_in_browser([write_model()], options)
    assert report.failures == ()
    assert "interrupted; nothing was measured with threads 2 and what follows." in report.warnings
    outcomes[:] = [samples, KeyboardInterrupt()]
    app = typer.Typer()
    app.command()(bench_command)
    arguments = [str(write_model()), "--target", "wasm", "--threads", "1,2", "--repeats", "3"]
    assert CliRunner().invoke(app, arguments).exit_code == 130
    outcomes[:] = [samples, TargetError("it crashed.")]
    assert CliRunner().invoke(app, arguments).exit_code == 2
    outcomes[:] = [TargetError("it crashed.")]
    with pytest.raises(TargetError, match="it crashed"):
        benchmark_in_browser([write_model()], options)


def test_the_page_is_given_models_inputs_and_an_order_that_is_drawn(asked_for: AskedFor, tmp_path: Path) -> None:
    resources = service(tmp_path).resources
    job = json.loads(read(resources["job.json"]))
    assert job["models"] == [{"inputs": [{"name": "x", "dtype": "int64", "shape": [3]}]}] * 2
    assert [sorted(order) for order in job["orders"]] == [[0, 1, 2]] * 5
    assert len({tuple(order) for order in job["orders"]}) > 1
    assert read(resources["model-1"]) == b"1.onnx"
    assert read(resources["inputs-1"]) == np.arange(3, dtype=np.int64).tobytes()
    assert b"bench_page.js" in read(resources[""])
    assert asked_for(resources) <= {*resources, *FILES}


def test_honest_samples_are_taken(tmp_path: Path) -> None:
    samples = service(tmp_path).accept(json.dumps(HONEST).encode())
    assert isinstance(samples, BrowserSamples)
    assert samples.runs_ns == ((10, 20, 30), ())


LIES: dict[str, tuple[str, object, str]] = {
    "another schema": ("schema", "x", "has schema 'x'"),
    "other threads": ("threads", 2, "threads is 2, and has to be 1"),
    "a model too few": ("runs_ns", [[10, 20, 30]], "models is"),
    "a run too few": ("runs_ns", [[10, 20], []], "runs is 2, and has to be 3"),
    "runs of what failed": ("runs_ns", [[10, 20, 30], [1, 2, 3]], "runs is 3, and has to be 0"),
    "a time below zero": ("runs_ns", [[10, 20, -30], []], "a time is -30"),
    "a time without end": ("runs_ns", [[10, 20, 10**16], []], "a time is 1e+16"),
    "no whole number": ("runs_ns", [[10, 20, 1.5], []], "must be of type int"),
    "no number": ("control_ns", [math.nan] * 3, "number"),
    "no control": ("control_ns", [], "runs of the control is 0, and has to be 3"),
    "terminal commands": ("reasons", [None, "\x1b[2J"], "cannot be printed"),
    "no processors": ("environment", ENVIRONMENT | {"cpus": 0}, "cpus is 0"),
}


def test_what_cannot_be_is_refused(tmp_path: Path) -> None:
    accept = service(tmp_path).accept
    for lie, (name, value, message) in LIES.items():
        report = copy.deepcopy(HONEST) | {name: value}
        with pytest.raises(DataError) as refused:
            accept(json.dumps(report).encode())
        assert message in str(refused.value), lie
        assert str(refused.value).startswith("what the browser sent")


def test_the_largest_honest_result_is_taken(tmp_path: Path) -> None:
    options = BenchOptions(repeats=1000)
    drawn = {tmp_path / f"{index}.onnx": {"x": np.zeros(3, np.uint8)} for index in range(5)}
    report = HONEST | {"runs_ns": [[10**15] * 1000] * 5, "control_ns": [10**15] * 1000, "reasons": [None] * 5}
    content = json.dumps(report).encode()
    running = bench_service(drawn, 1, options, {})
    assert len(content) <= running.largest_result
    running.accept(content)


def test_wrong_use_is_refused_before_anything_runs(write_model: WriteModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_module, "runtime_files", dict)
    app = typer.Typer()
    app.command()(bench_command)
    model = write_model()
    for options, sentence in (
        ((model, "--target", "arm64"), "--target is 'arm64'; bench measures on native, wasm"),
        ((model, "--target", "wasm", "--caches", "cold"), "in a browser caches are warm and there is no profiler"),
        ((model, "--target", "wasm", "--profile"), "in a browser caches are warm and there is no profiler"),
        ((model, model, "--target", "wasm"), "name each once"),
        ((model.with_name("absent.onnx"), "--target", "wasm"), "there is no model file"),
    ):
        result = CliRunner().invoke(app, [str(option) for option in options])
        assert isinstance(result.exception, QilDeployError), sentence
        assert sentence in str(result.exception)
    with pytest.raises(ConfigError, match="in a browser caches are warm"):
        benchmark_in_browser([model], BenchOptions(caches=(WARM, COLD)))
    other = write_model("damaged.onnx")
    other.write_bytes(b"no model")
    with pytest.raises(ModelFileError, match=r"damaged\.onnx"):
        benchmark_in_browser([other], QUICK)


def test_browsers_are_named_by_what_they_say() -> None:
    assert browser_name(str(ENVIRONMENT["browser"])) == "Chrome 156"
    assert browser_name("Mozilla/5.0 (X11) Gecko/20100101 Firefox/144.0") == "Firefox 144"
    assert browser_name(None).startswith("ONNX Runtime Web ")
