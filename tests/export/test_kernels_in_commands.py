"""The option `--kernels` of every command: used, or refused with a sentence before work starts."""

from __future__ import annotations

import json
import platform
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from qil_deploy.errors import TargetError
from qil_deploy.onnx_io import KERNEL_OPERATORS, read_model
from qil_deploy.reports import read_report
from qil_deploy.runtime_tests.backends import onnx_backend_name
from qil_deploy.runtime_tests.doctor import Diagnosis
from qil_deploy.runtime_tests.golden import write_golden
from qil_deploy.runtime_tests.kernel_library import SET_VARIABLE, KernelLibrary, find_kernel_library
from qil_deploy.runtime_tests.report.extract import of_targets
from qil_deploy.runtime_tests.sessions import OPTIMIZATION_LEVELS
from qil_deploy.runtime_tests.targets import TARGETS, RunOptions, TargetsReport, require_runnable
from qil_deploy.runtime_tests.targets.kernels import why_no_kernels
from tests.command_line import call_command, refuse_command

if TYPE_CHECKING:
    from tests.export.conftest import Exports

BUILT_FOR = {"x86_64": 62, "aarch64": 183}


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> KernelLibrary:
    """The installed library, whose kernels for tests are used on any processor."""
    pytest.importorskip("qil_deploy_kernels", reason="qil-deploy-kernels is not installed: `make kernels`")
    monkeypatch.setenv(SET_VARIABLE, "scalar")
    return find_kernel_library("installed")


@pytest.fixture
def model(exports: Exports, tmp_path: Path) -> Path:
    """A file with kernels, and its golden vectors."""
    case = exports.resnet(weight_bits=2, activation_bits=2)
    path = case.export(tmp_path / "model.onnx", kernels=True)
    write_golden(path, case.images[:2], "digits", tmp_path / "golden.npz")
    return path


def library_for(architecture: str, folder: Path) -> Path:
    """Write the header of a library built for a processor."""
    path = folder / f"{architecture}.so"
    path.write_bytes(b"\x7fELF\x02\x01\x01".ljust(18, b"\0") + BUILT_FOR[architecture].to_bytes(2, "little"))
    return path


# ---- inspect


def test_inspect_says_which_kernel_each_layer_gets(model: Path, library: KernelLibrary, tmp_path: Path) -> None:
    outcome = call_command("inspect", model, "--kernels", library.path, "--json", tmp_path / "inspect.json")
    assert outcome.code == 0
    layers = sum(node.op_type in KERNEL_OPERATORS for node in read_model(model).nodes)
    assert f"{layers} nodes in kernels of the library" in outcome.out
    assert "TernaryConv: scalar (QIL_DEPLOY_KERNELS asks for it)" in outcome.out
    written = json.loads((tmp_path / "inspect.json").read_text())["kernel_library"]
    assert written["library"] == str(library.path.resolve())
    assert len(written["layers"]) == layers
    assert {line.rpartition(": ")[2].split(",")[0] for line in written["layers"]} == {"scalar", "counted steps"}
    assert "LowBitRescale to 0..3: counted steps" in written["layers"]
    assert written["unused"] == []


def test_inspect_says_where_there_is_nothing_for_kernels(
    exports: Exports, library: KernelLibrary, tmp_path: Path
) -> None:
    plain = exports.resnet(weight_bits=2, activation_bits=2).export(tmp_path / "plain.onnx")
    outcome = call_command("inspect", plain, "--kernels", library.path)
    assert outcome.code == 0
    assert "0 nodes in kernels of the library" in outcome.out
    assert "has no convolutions for kernels, so none of the library was used" in outcome.out


# ---- doctor


def test_doctor_compares_results_with_the_library(model: Path, library: KernelLibrary, tmp_path: Path) -> None:
    outcome = call_command("doctor", model, "--kernels", library.path, "--json", tmp_path / "doctor.json")
    assert outcome.code == 0, outcome
    assert "With kernels, and without them and optimizer: 'logits' equal" in outcome.out
    diagnosis = read_report(tmp_path / "doctor.json", Diagnosis)
    assert [(each.output, each.differing) for each in diagnosis.with_kernels] == [("logits", 0)]
    operators = ("LowBitRescale", "ResidualAdd", "TernaryConv")
    assert diagnosis.kernel_choices == tuple(f"{each}: scalar (QIL_DEPLOY_KERNELS asks for it)" for each in operators)
    assert "kernels-unused" not in {finding.kind for finding in diagnosis.findings}


def test_doctor_says_why_no_kernel_is_used(
    model: Path, library: KernelLibrary, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(SET_VARIABLE, "off")
    outcome = call_command("doctor", model, "--kernels", library.path)
    assert outcome.code == 0, outcome
    assert "note kernels-unused" in outcome.out
    assert "TernaryConv, chosen: none (QIL_DEPLOY_KERNELS is off)" in outcome.out


def test_doctor_without_the_option_says_nothing_of_kernels(model: Path, tmp_path: Path) -> None:
    assert call_command("doctor", model, "--json", tmp_path / "doctor.json").code == 0
    diagnosis = read_report(tmp_path / "doctor.json", Diagnosis)
    assert (diagnosis.with_kernels, diagnosis.kernel_choices) == ((), ())


# ---- Targets


def test_a_target_runs_with_the_library_and_says_which_kernels(
    model: Path, library: KernelLibrary, tmp_path: Path
) -> None:
    golden, written = tmp_path / "golden.npz", tmp_path / "targets.json"
    options = ("--golden", golden, "--repeats", 1, "--kernels", library.path, "--json", written)
    outcome = call_command("verify", model, "--target", "native", *options)
    assert outcome.code == 0, outcome
    assert "native ran with the kernel library. " in outcome.out
    report = read_report(written, TargetsReport)
    (result,) = report.targets
    assert result.codes is not None
    assert len(result.codes.levels) == 4
    assert result.codes.differing == 0
    assert "TernaryConv: scalar (QIL_DEPLOY_KERNELS asks for it)" in result.codes.kernels
    page = of_targets(report)
    assert {row.backend for row in page.exactness} == {
        onnx_backend_name(each, kernels=True) for each in OPTIMIZATION_LEVELS
    }
    assert [latency.by for latency in page.latencies] == ["while verifying, with kernels"]


def test_a_target_that_cannot_use_the_library_says_so(model: Path, tmp_path: Path) -> None:
    (tmp_path / "lib.so").write_bytes(b"no library")
    options = ("--golden", tmp_path / "golden.npz", "--repeats", 0, "--kernels", tmp_path / "lib.so")
    outcome = call_command("verify", model, "--target", "native", *options)
    assert outcome.code == 2
    assert "Failed to load library" in outcome.out


def test_a_library_has_to_be_built_for_the_target(tmp_path: Path) -> None:
    intel, arm = (library_for(name, tmp_path) for name in ("x86_64", "aarch64"))
    assert why_no_kernels(TARGETS["haswell"], intel) is None
    assert why_no_kernels(TARGETS["arm64:cortex-a53"], arm) is None
    assert "is built for aarch64, and it runs x86_64" in str(why_no_kernels(TARGETS["haswell"], arm))
    assert "is built for x86_64, and it runs aarch64" in str(why_no_kernels(TARGETS["arm64:max"], intel))
    foreign = arm if platform.machine() == "x86_64" else intel
    assert "is built for" in str(why_no_kernels(TARGETS["native"], foreign))
    (tmp_path / "other.so").write_bytes(b"MZ")
    assert why_no_kernels(TARGETS["native"], tmp_path / "other.so") is None
    with pytest.raises(TargetError, match=r"target haswell cannot run: the kernel library .* is built for aarch64"):
        require_runnable([TARGETS["haswell"]], RunOptions(kernels=arm))


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("verify", "m.onnx", "--target", "wasm"), "target wasm cannot run: browsers load no native libraries"),
        (("bench", "m.onnx", "--target", "wasm"), "--kernels names a native library, which browsers do not load"),
        (("phone", "m.onnx"), "--kernels names a native library, which browsers do not load"),
    ],
)
def test_browsers_load_no_library(arguments: tuple[str, ...], sentence: str, model: Path, tmp_path: Path) -> None:
    library = library_for("x86_64", tmp_path)
    named = [model if argument == "m.onnx" else argument for argument in arguments]
    golden = ("--golden", tmp_path / "golden.npz") if arguments[0] == "verify" else ()
    assert sentence in refuse_command(*named, *golden, "--kernels", library)
