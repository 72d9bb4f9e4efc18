"""Every operator on every target: results once enumerated by hand, and whole networks of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from qil_deploy.runtime_tests.golden import write_golden
from qil_deploy.runtime_tests.targets import TARGETS, RunOptions, find_target, run_on_target, target_state

from .every_operator import SIZE, Enumeration, all_pairs, write_network

IMAGES = np.random.default_rng(5).integers(0, 256, (8, 3, SIZE, SIZE), np.uint8)
EMULATED = [name for name, target in TARGETS.items() if target.emulator is not None]
LEVELS = ("disabled", "all")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Three files with golden vectors beside them."""
    folder = tmp_path_factory.mktemp("operators")
    files: dict[str, tuple[Path, NDArray[np.uint8]]] = {
        "enumeration": (Enumeration().write(folder / "enumeration.onnx"), all_pairs()),
        "floats": (write_network(folder / "floats.onnx", "float", IMAGES), IMAGES[:2]),
        "codes": (write_network(folder / "codes.onnx", "codes", IMAGES), IMAGES[:2]),
    }
    for path, images in files.values():
        write_golden(path, images, "noise", path.with_suffix(".npz"))
    return {name: path for name, (path, _) in files.items()}


def differing(target: str, model: Path) -> tuple[int, int]:
    """Return the number of compared elements on a target, and of differing tensors and levels."""
    options = RunOptions(levels=LEVELS, timeout=600)
    report = run_on_target(find_target(target), model, model.with_suffix(".npz"), options)
    return report.compared_elements, report.differing


@pytest.mark.parametrize("name", ["enumeration", "floats", "codes"])
def test_here(models: dict[str, Path], name: str) -> None:
    elements, wrong = differing("native", models[name])
    assert elements > (5_000_000 if name == "enumeration" else 100_000)
    assert wrong == 0


@pytest.mark.usefixtures("browser")
@pytest.mark.parametrize("name", ["enumeration", "floats", "codes"])
def test_in_a_browser(models: dict[str, Path], name: str) -> None:
    assert differing("wasm", models[name])[1] == 0


@pytest.mark.slow
@pytest.mark.parametrize("target", EMULATED)
def test_on_emulated_processors(models: dict[str, Path], target: str) -> None:
    reason = target_state(find_target(target))
    if reason is not None:
        pytest.skip(f"{target}: {reason}")
    for name, model in models.items():
        assert differing(target, model)[1] == 0, name
