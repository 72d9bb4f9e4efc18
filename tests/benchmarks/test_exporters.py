"""The side-by-side benchmark of exporters: models, missing peers, and its tables of measurements."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import onnx
import pytest
import torch
import typer
from torch import Tensor, nn

import exporters
from exporters import ExportersReport, Skipped, compare, goal_rows, latency_rows, skipped_lines
from goals import Verdict
from peers import export_onnxruntime_int8
from qil_deploy.export import export_float_onnx
from qil_deploy.preprocessing import Preprocessing
from qil_deploy.runtime_tests import BenchReport, read_report, write_report
from qil_deploy.runtime_tests.sessions import create_session
from qil_deploy.terminal.console import Console
from qil_deploy.training.models.build import build_model

SMALL = Preprocessing.from_statistics((3, 16, 16), mean=0.3, std=0.3)


@pytest.fixture(scope="module")
def network() -> nn.Module:
    torch.manual_seed(0)
    return build_model("resnet8", {"in_channels": 3, "num_classes": 4, "width": 4}).eval()


@pytest.fixture(scope="module")
def float_file(network: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("float") / "float.onnx"
    export_float_onnx(network, path, preprocessing=SMALL, class_names=list("abcd"))
    return path


@pytest.fixture
def batches() -> list[Tensor]:
    return [torch.randn(2, 3, 16, 16) for _ in range(3)]


@pytest.fixture
def report(make_bench: Callable[..., BenchReport]) -> ExportersReport:
    bench = make_bench(
        {
            "float": (40_000_000, {1: 12.0, 2: 8.0}),
            "onnxruntime_int8": (20_000_000, {1: 4.0, 2: 3.0}),
            "ours": (5_500_000, {1: 3.0, 2: 2.0}),
        }
    )
    return ExportersReport(
        schema=ExportersReport.SCHEMA,
        network="resnet8",
        bench=bench,
        verdicts=(Verdict(goal="fast", bound=4.0, measured=3.999, met=False),),
        skipped=(Skipped(model="theirs", reason="not installed (No module named 'theirs')"),),
    )


def test_the_table_has_a_row_per_model_and_ratios_for_each_number_of_threads(report: ExportersReport) -> None:
    rows = latency_rows(report.bench)
    assert rows.headings == ("model", "MB", "1 thread ms", "x float", "x int8", "2 threads ms", "x float", "x int8")
    assert rows.cells == [
        ["float", "40.00", "12.00", "1.00", "0.33", "8.00", "1.00", "0.38"],
        ["onnxruntime_int8", "20.00", "4.00", "3.00", "1.00", "3.00", "2.67", "1.00"],
        ["ours", "5.50", "3.00", "4.00", "1.33", "2.00", "4.00", "1.50"],
    ]
    assert skipped_lines(report.skipped) == ["theirs was skipped: not installed (No module named 'theirs')."]
    assert goal_rows(report.verdicts).cells == [["fast", "4.00", "MISSED"]]


def test_ratios_have_intervals_where_there_are_samples(report: ExportersReport) -> None:
    samples = {"float": (12_000_000,) * 6, "ours": (3_000_000,) * 6}
    latencies = tuple(
        replace(row, samples_ns=samples[Path(row.model.path).stem])
        for row in report.bench.latencies
        if row.threads == 1 and row.model.path != "folder/onnxruntime_int8.onnx"
    )
    rows = latency_rows(replace(report.bench, latencies=latencies))
    assert rows.cells == [
        ["float", "40.00", "12.00", "1.00", "-"],
        ["ours", "5.50", "3.00", "4.00 (4.00-4.00)", "-"],
    ]


def test_reports_can_be_read_again(report: ExportersReport, tmp_path: Path) -> None:
    write_report(tmp_path / "resnet8.json", report)
    assert read_report(tmp_path / "resnet8.json", ExportersReport) == report


def test_a_missing_peer_is_skipped_with_the_reason(
    float_file: Path, batches: list[Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(path: Path) -> None:
        raise ImportError(f"No module named 'peer' for {path.name}")

    def copied(path: Path) -> None:
        path.write_bytes(float_file.read_bytes())

    monkeypatch.setattr(exporters, "writers", lambda *_: {"float": copied, "peer": missing, "ours": copied})

    report = compare("resnet8", batches, tmp_path, threads=(1,), repeats=2, seed=0, console=Console(quiet=True))

    assert report.skipped == (Skipped(model="peer", reason="not installed (No module named 'peer' for peer.onnx)"),)
    measured = [latency.model.path for latency in report.bench.latencies]
    assert measured == [str(tmp_path / "resnet8" / f"{name}.onnx") for name in ("float", "ours")]


def test_the_float_network_comes_first_and_alexnet_has_both_last_layers(
    network: nn.Module, batches: list[Tensor], tmp_path: Path
) -> None:
    names = {name: list(exporters.writers(name, network, batches, tmp_path)) for name in ("resnet18", "alexnet")}
    assert names["resnet18"][0] == names["alexnet"][0] == "float"
    assert set(names["alexnet"]) - set(names["resnet18"]) == {"w4a4_7bit_end", "w2a2_7bit_end"}


def test_onnxruntime_quantizes_per_channel_to_uint8_and_int8(
    float_file: Path, batches: list[Tensor], tmp_path: Path
) -> None:
    path = tmp_path / "int8.onnx"
    export_onnxruntime_int8(float_file, path, batches)

    graph = onnx.load(path).graph
    weights = {tensor.name: tensor for tensor in graph.initializer}
    readers = {node.input[0]: node for node in graph.node if node.op_type == "DequantizeLinear"}
    kernels = [weights[name] for name in readers if name in weights and len(weights[name].dims) == 4]
    assert len(kernels) == 9
    for kernel in kernels:
        assert kernel.data_type == onnx.TensorProto.INT8
        assert list(weights[readers[kernel.name].input[1]].dims) == [kernel.dims[0]]
    zero_points = {node.input[2] for node in graph.node if node.op_type == "QuantizeLinear"}
    assert {weights[name].data_type for name in zero_points} == {onnx.TensorProto.UINT8}
    create_session(path)


def test_unknown_networks_are_refused(tmp_path: Path) -> None:
    with pytest.raises(typer.BadParameter, match="unknown networks resnet19; known are resnet8,"):
        exporters.main(["resnet18", "resnet19"], out=tmp_path)
