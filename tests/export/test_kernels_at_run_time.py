"""Exported files with the kernel library: found, registered, compared with ONNX Runtime's own kernels, or refused."""

from __future__ import annotations

import os
import re
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from qil_deploy.datasets import ImageSet
from qil_deploy.errors import ConfigError, ModelFileError
from qil_deploy.onnx_io import KERNEL_OPERATORS, read_model
from qil_deploy.runtime_tests import BenchOptions, BenchReport, benchmark, read_report, verify, write_report
from qil_deploy.runtime_tests.backends import onnx_backend_name
from qil_deploy.runtime_tests.golden import check_golden, write_golden
from qil_deploy.runtime_tests.kernel_library import (
    SET_VARIABLE,
    KernelLibrary,
    find_kernel_library,
    operators_in,
)
from qil_deploy.runtime_tests.report.extract_times import of_bench
from qil_deploy.runtime_tests.sessions import OPTIMIZATION_LEVELS, create_session
from tests.command_line import call_command, refuse_command

if TYPE_CHECKING:
    from qil_deploy.runtime_tests import VerifyReport
    from tests.export.conftest import Case, Exports

BITS = [(2, 2), (3, 3), (4, 4)]


@pytest.fixture(autouse=True)
def no_set_is_forced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(SET_VARIABLE, raising=False)


@pytest.fixture
def library() -> KernelLibrary:
    pytest.importorskip("qil_deploy_kernels", reason="qil-deploy-kernels is not installed: `make kernels`")
    return find_kernel_library("installed")


def verified(case: Case, path: Path, library: KernelLibrary) -> VerifyReport:
    labels = np.arange(len(case.images)) % len(case.class_names)
    images = ImageSet(images=case.images, labels=labels, class_names=case.class_names)
    return verify(path, images.batches(16), kernels=library)


@pytest.mark.parametrize("bits", BITS, ids=lambda bits: f"w{bits[0]}a{bits[1]}")
@pytest.mark.parametrize("weights", ["packed", "int8"])
def test_every_set_of_kernels_makes_every_code(
    bits: tuple[int, int], weights: str, exports: Exports, library: KernelLibrary, tmp_path: Path
) -> None:
    case = exports.resnet(weight_bits=bits[0], activation_bits=bits[1])
    path = case.export(tmp_path / "model.onnx", weights=weights, kernels=True)
    for kernel_set in ("scalar", *library.runnable_sets(operators_in(read_model(path)))):
        report = verified(case, path, replace(library, kernel_set=kernel_set))
        assert report.exact, kernel_set
        names = [backend.name for backend in report.backends if backend.must_equal]
        assert names == [
            *map(onnx_backend_name, OPTIMIZATION_LEVELS),
            *(onnx_backend_name(level, kernels=True) for level in OPTIMIZATION_LEVELS),
        ]
        assert [each.between[1] for each in report.comparisons] == names[len(OPTIMIZATION_LEVELS) :]
        assert all(each.difference is None and each.tensors > 15 for each in report.comparisons)
        assert report.warnings == ()


def test_golden_vectors_hold_with_kernels(exports: Exports, library: KernelLibrary, tmp_path: Path) -> None:
    case = exports.resnet(weight_bits=2, activation_bits=2)
    path = case.export(tmp_path / "model.onnx", kernels=True)
    write_golden(path, case.images[:2], "digits", tmp_path / "golden.npz")
    scalar = replace(library, kernel_set="scalar")
    name = onnx_backend_name("all", kernels=True)
    comparison = check_golden(path, tmp_path / "golden.npz", against=name, kernels=scalar)
    assert comparison.difference is None
    assert comparison.tensors > 15
    with pytest.raises(ConfigError, match="there is no backend"):
        check_golden(path, tmp_path / "golden.npz", against=name)


def test_what_kernels_had_nothing_to_do_with_is_said(exports: Exports, library: KernelLibrary, tmp_path: Path) -> None:
    case = exports.resnet(weight_bits=2, activation_bits=2)
    plain = verified(case, case.export(tmp_path / "plain.onnx"), library)
    assert any(
        "has no convolutions for kernels, so none of the library was used" in warning for warning in plain.warnings
    )
    off = verified(case, case.export(tmp_path / "model.onnx", kernels=True), replace(library, kernel_set="off"))
    assert any(
        "none of its kernels for TernaryConv, chosen: none (QIL_DEPLOY_KERNELS is off)" in text for text in off.warnings
    )
    assert off.exact


def test_layers_say_which_kernel_they_have(exports: Exports, library: KernelLibrary, tmp_path: Path) -> None:
    case = exports.resnet(weight_bits=2, activation_bits=2)
    path = case.export(tmp_path / "model.onnx", kernels=True)
    before = len(library.layers())
    session = create_session(path, kernels=replace(library, kernel_set="scalar"))
    lines = library.layers()[before:]
    nodes = [node.op_type for node in read_model(path).nodes if node.op_type in KERNEL_OPERATORS]
    assert sorted(re.split("[ :]", line)[0] for line in lines) == sorted(nodes)
    assert set(nodes) == {"TernaryConv", "ResidualAdd", "LowBitRescale"}
    layers = [line for line in lines if line.startswith("TernaryConv ")]
    assert all("weights -1..1, input 0..3: scalar" in line for line in layers)
    del session


def test_an_unknown_set_is_refused(exports: Exports, library: KernelLibrary, tmp_path: Path) -> None:
    path = exports.resnet(weight_bits=2, activation_bits=2).export(tmp_path / "model.onnx", kernels=True)
    with pytest.raises(ConfigError, match=r"cannot use the kernel library .* QIL_DEPLOY_KERNELS is none of"):
        create_session(path, kernels=replace(library, kernel_set="mmx"))
    assert SET_VARIABLE not in os.environ


def test_weights_that_are_unpacked_in_each_run_are_packed_once(
    exports: Exports, library: KernelLibrary, tmp_path: Path
) -> None:
    case = exports.resnet(weight_bits=2, activation_bits=2)
    path = case.export(tmp_path / "model.onnx", kernels=True)
    before = len(library.layers())
    session = create_session(path, level="disabled", kernels=replace(library, kernel_set="scalar"))
    lines = [line.partition(": ")[2] for line in library.layers()[before:] if line.startswith("TernaryConv")]
    assert set(lines) == {"chosen in the first run, for its weights are no constant"}
    plain = create_session(path, level="disabled")
    for images in (case.images[:1], case.images[:3]):
        x = {"image": images}
        np.testing.assert_array_equal(session.run(None, x)[0], plain.run(None, x)[0])
        lines = [line for line in library.layers()[before:] if line.startswith("TernaryConv")]
        assert lines
        assert all("weights -1..1, input 0..3: scalar" in line for line in lines)


def test_a_library_that_takes_no_packed_weights_is_named(
    exports: Exports, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = exports.resnet(weight_bits=2, activation_bits=2).export(tmp_path / "model.onnx", kernels=True)

    def refuse(*_: object, **__: object) -> None:
        raise RuntimeError("qil.deploy: w must be a constant")

    monkeypatch.setattr(KernelLibrary, "register", lambda *_: None)
    monkeypatch.setattr("onnxruntime.InferenceSession", refuse)
    with pytest.raises(ModelFileError, match="The kernel library is of an earlier version: build it anew"):
        create_session(path, level="disabled", kernels=KernelLibrary(path=tmp_path / "old.so"))


# ---- Without a library


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "qil_deploy_kernels", None)
    with pytest.raises(ConfigError, match="qil-deploy-kernels is not installed"):
        find_kernel_library("installed")


def test_a_missing_library_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="there is no kernel library"):
        find_kernel_library(str(tmp_path / "lib.so"))


def test_what_is_no_library_is_refused(exports: Exports, tmp_path: Path) -> None:
    (tmp_path / "lib.so").write_bytes(b"no library")
    library = find_kernel_library(str(tmp_path / "lib.so"))
    path = exports.resnet(weight_bits=2, activation_bits=2).export(tmp_path / "model.onnx", kernels=True)
    with pytest.raises(ConfigError, match="cannot use the kernel library"):
        create_session(path, kernels=library)
    with pytest.raises(ConfigError, match="is no kernel library of qil-deploy"):
        library.explain()


def test_sets_that_run_here_are_those_that_the_processor_does_not_lack(monkeypatch: pytest.MonkeyPatch) -> None:
    said = (
        "wide for TernaryConv: the processor lacks AVX-512",
        "middle for TernaryConv: faster than ONNX Runtime's own kernels",
        "narrow for TernaryConv: runs, but it has dot-product instructions",
        "scalar for TernaryConv: runs, but it is there for tests",
        "wide for LowBitConv: the processor lacks AVX-512",
        "middle for LowBitConv: has no kernels: others win",
        "narrow for LowBitConv: runs, but it has dot-product instructions",
        "scalar for LowBitConv: runs, but it is there for tests",
        "chosen for TernaryConv: middle (the first)",
        "chosen for LowBitConv: none (none is faster)",
    )
    monkeypatch.setattr(KernelLibrary, "explain", lambda _: said)
    library = KernelLibrary(path=Path("lib.so"))
    assert library.runnable_sets() == ("middle", "narrow")
    assert library.runnable_sets({"LowBitConv"}) == ("narrow",)
    assert library.runnable_sets(set()) == ()
    assert library.unused_for({"TernaryConv", "LowBitConv"}) == {"LowBitConv": "none (none is faster)"}
    assert replace(library, kernel_set="scalar").runnable_sets() == ("scalar",)
    monkeypatch.setenv(SET_VARIABLE, "narrow")
    assert library.runnable_sets() == ("narrow",)


# ---- bench


def test_bench_has_a_row_for_each_set_of_kernels(
    exports: Exports, library: KernelLibrary, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = exports.resnet(weight_bits=2, activation_bits=2)
    plain, fast = case.export(tmp_path / "plain.onnx"), case.export(tmp_path / "fast.onnx", kernels=True)
    monkeypatch.setattr(KernelLibrary, "runnable_sets", lambda _, operators: ("scalar", "off") if operators else ())
    options = BenchOptions(caches=("warm",), repeats=2, warmup=0, processes=1, profile=True)
    report = benchmark([plain, fast], options, kernels=library)
    assert not report.failures
    stem = str(tmp_path / "fast")
    labels = [str(plain), str(fast), f"{stem} [scalar]", f"{stem} [off]"]
    assert [latency.model.label for latency in report.latencies] == labels
    assert [cost.model.label for cost in report.models] == labels
    operators = {profile.model.label: {each.operator for each in profile.operators} for profile in report.profiles}
    assert [label for label in labels if "TernaryConv" in operators[label]] == [f"{stem} [scalar]"]
    write_report(tmp_path / "bench.json", report)
    assert read_report(tmp_path / "bench.json", BenchReport) == report
    page = of_bench(report)
    assert [Path(model.path).name for model in page.models] == ["plain.onnx", "fast.onnx"]
    assert any("latencies with the kernel library are not shown here" in remark.text for remark in page.remarks)


def test_bench_explains_what_each_layer_gets(
    exports: Exports, library: KernelLibrary, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = exports.resnet(weight_bits=2, activation_bits=2).export(tmp_path / "model.onnx", kernels=True)
    monkeypatch.setenv(SET_VARIABLE, "scalar")
    outcome = call_command("bench", "--kernels", library.path, "--explain", path)
    assert outcome.code == 0
    assert "chosen for TernaryConv: scalar (QIL_DEPLOY_KERNELS asks for it)" in outcome.out
    assert "weights -1..1, input 0..3: scalar" in outcome.out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["bench", "--explain"], "--explain is about kernels"),
        (["bench", "m.onnx", "--kernels", "missing.so"], "there is no kernel library missing.so"),
        (["verify", "m.onnx", "--kernels", "missing.so"], "there is no kernel library missing.so"),
    ],
)
def test_options_about_kernels_are_refused(arguments: list[str], message: str) -> None:
    assert message in refuse_command(*arguments)
