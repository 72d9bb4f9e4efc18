"""Tables of a report fit a terminal and show all measurements."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from qil_deploy.runtime_tests import BenchOptions, BenchReport, benchmark
from qil_deploy.runtime_tests.bench.report import WARM, Interval, Latency
from qil_deploy.runtime_tests.bench.table import bench_tables, latency_table, model_table
from qil_deploy.runtime_tests.reports import ModelFile
from qil_deploy.terminal.console import Console
from qil_deploy.terminal.table import Table

WriteModel = Callable[..., Path]
QUICK = BenchOptions(caches=(WARM,), repeats=1, warmup=0, processes=1)


def shown(*tables: Table) -> list[str]:
    """Return the lines of tables on a terminal of 80 columns."""
    console = Console(width=80, file=io.StringIO(), record=True)
    for table in tables:
        console.print(table)
    return console.export_text().splitlines()


def latency(name: str, **changes: object) -> Latency:
    fields: dict[str, object] = {
        "model": ModelFile(path=name, bytes=11_830_000, sha256=""),
        "threads": 16,
        "cpus": (0, 1),
        "caches": "cold",
        "median_ms": 123.456,
        "p95_ms": 1234.567,
        "min_ms": 1.0,
        "iqr_ms": 12.345,
        "ratio": 0.1234,
        "ratio_interval": Interval(low=0.1234, high=10.1266),
        "gmacs": 1234.5,
        "peak_share": 0.62,
        "samples_ns": (1,),
    }
    return Latency(**(fields | changes))  # type: ignore[arg-type] # fields by name


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> BenchReport:
    """Return a real report, for its description of the machine."""
    folder = tmp_path_factory.mktemp("table")
    zoo = request.config.rootpath / "zoo" / "fashion_mnist" / "w2a2.onnx"
    (folder / "[red]4.onnx").write_bytes(zoo.read_bytes())
    return benchmark([folder / "[red]4.onnx"], replace(QUICK, threads=(1, 2), profile=True))


def test_settings_versions_and_costs_are_stated(report: BenchReport) -> None:
    lines = shown(*bench_tables(report))
    rows = [line.split() for line in lines if line.startswith("[red]4 ")]
    assert [cells[1:3] for cells in rows[:2]] == [["1", "warm"], ["2", "warm"]]
    assert all(cells[6] == "1.000" for cells in rows[:2])
    text = " ".join(" ".join(lines).split())
    assert f"onnxruntime {onnxruntime.__version__}, numpy {np.__version__}" in text
    (cost,) = report.models
    assert cost.macs is not None
    assert rows[2][1] == f"{cost.model.bytes / 1000:.1f}"
    assert rows[2][-2:] == [f"{cost.macs / 1e6:.1f}", "int8"]
    assert "GMAC/s int8 on 1 thread," in text
    assert "QLinearConv" in text
    assert "[red]4.onnx, 2 threads" in text


def test_the_widest_figures_fit_80_columns(report: BenchReport) -> None:
    wide = replace(report, latencies=(latency("resnet18_w4a4_qlinear.onnx"), latency("b.onnx", target="native")))
    lines = shown(latency_table(wide))
    assert max(map(len, lines)) <= 80
    text = "\n".join(lines)
    assert "…" not in text
    assert "0.123-10.127" in text
    assert "62%" in text


def test_every_target_has_a_table_of_its_own(report: BenchReport) -> None:
    rows = latency("a.onnx", ratio=0.5), latency("a.onnx", target="wasm (SIMD)", cpus=(), ratio=0.25)
    native, wasm = ("\n".join(shown(table)) for table in bench_tables(replace(report, latencies=rows, profiles=()))[:2])
    assert "native: latency in ms" in native
    assert "wasm (SIMD): latency in ms" in wasm
    assert ("0.500" in native, "0.250" in native, "0.500" in wasm, "0.250" in wasm) == (True, False, False, True)
    assert ("threads: 16 on CPU 0, 1" in native, "threads:" in wasm) == (True, False)


def test_what_is_not_known_is_a_dash(report: BenchReport) -> None:
    bare = replace(report.models[0], macs=None, arithmetic=None, load_ms=None, first_run_ms=None, peak_bytes=None)
    (row,) = [line.split() for line in shown(model_table(replace(report, models=(bare,)))) if line.startswith("[red]4")]
    assert row[2:5] == ["-", "-", "-"]
    assert row[-2:] == ["-", "-"]


def test_models_of_the_same_name_are_told_apart_by_their_folders(report: BenchReport) -> None:
    rows = latency("model.onnx"), latency("b/model.onnx")
    lines = shown(latency_table(replace(report, latencies=rows)))
    assert "b/model" in "".join(line.split("  ")[0].strip() for line in lines)
