"""The library of kernels on a device: a set forced here is forced there."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from qil_deploy.errors import TargetError
from qil_deploy.runtime_tests.golden import write_golden
from qil_deploy.runtime_tests.kernel_library import INSTALLED, SET_VARIABLE, find_kernel_library
from qil_deploy.runtime_tests.targets import RunOptions, find_target, run_on_target
from tests.export.conftest import Exports

from .conftest import PATIENT


@pytest.fixture(scope="module")
def kernel_golden(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A small model with kernels and golden vectors of two images."""
    folder = tmp_path_factory.mktemp("kernels")
    case = Exports().resnet(weight_bits=2, activation_bits=2)
    model = case.export(folder / "model.onnx", kernels=True)
    write_golden(model, case.images[:2], "digits", folder / "golden.npz")
    return model, folder / "golden.npz"


@pytest.fixture
def options() -> RunOptions:
    """Options for runs with the installed library."""
    pytest.importorskip("qil_deploy_kernels", reason="qil-deploy-kernels is not installed: `make kernels`")
    return RunOptions(levels=("disabled", "all"), timeout=PATIENT, kernels=find_kernel_library(INSTALLED).path)


@pytest.fixture(params=["ssh", "adb"])
def device(request: pytest.FixtureRequest) -> str:
    """The name of a device."""
    found = request.getfixturevalue(request.param)
    return found if request.param == "ssh" else "adb:x1"


@pytest.mark.parametrize(
    ("forced", "said"),
    [
        ("scalar", "TernaryConv: scalar (QIL_DEPLOY_KERNELS asks for it)"),
        ("off", "TernaryConv: none (QIL_DEPLOY_KERNELS is off)"),
    ],
)
def test_the_set_that_is_forced_here_is_forced_on_a_device(
    device: str,
    forced: str,
    said: str,
    kernel_golden: tuple[Path, Path],
    options: RunOptions,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv(SET_VARIABLE, forced)
    report = run_on_target(find_target(device, sys.executable), *kernel_golden, options)
    assert report.differing == 0
    assert said in report.kernels


def test_a_set_that_nobody_knows_is_refused_by_the_device(
    device: str, kernel_golden: tuple[Path, Path], options: RunOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(SET_VARIABLE, "narrow; touch pwned")
    with pytest.raises(TargetError, match=r"failed with exit code 2.*QIL_DEPLOY_KERNELS is none of"):
        run_on_target(find_target(device, sys.executable), *kernel_golden, options)


def test_without_one_the_device_chooses(
    device: str, kernel_golden: tuple[Path, Path], options: RunOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(SET_VARIABLE, raising=False)
    report = run_on_target(find_target(device, sys.executable), *kernel_golden, options)
    assert report.differing == 0
    assert len(report.kernels) > 0
    assert not any(SET_VARIABLE in choice for choice in report.kernels)
