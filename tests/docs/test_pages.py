"""What the pages show runs: code blocks and commands in order, in one folder, as a reader would run them."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from qil_deploy.datasets import load_images
from qil_deploy.integers.freezing_report import predictions

if TYPE_CHECKING:
    from tests.command_line import Outcome

ROOT = Path(__file__).parents[2]
_BLOCK = re.compile(r"^```(python|console)\n(.*?)^```$", re.DOTALL | re.MULTILINE)


def blocks(page: Path) -> list[tuple[str, str]]:
    """Return (language, content) of each block of code."""
    return [(match[1], match[2]) for match in _BLOCK.finditer(page.read_text())]


def run(source: str, namespace: dict[str, Any], name: str) -> None:
    exec(compile(source, name, "exec"), namespace)  # noqa: S102 - a page of ours


def test_a_network_of_your_own(call: Callable[..., Outcome], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = ROOT / "docs" / "your-own-network.md"
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    (_, module), *rest = blocks(page)
    Path("my_networks.py").write_text(module)
    namespace: dict[str, Any] = {}
    commands = []
    for language, source in rest:
        if language == "python":
            run(source, namespace, page.name)
            continue
        for line in source.splitlines():
            program, arguments = re.fullmatch(r"\$ python -m (qil_deploy\S*) (.*)", line).groups()  # type: ignore[union-attr] # it fails where there is none
            words = [*program.split(".")[1:], *shlex.split(arguments)]
            outcome = call(*words)
            assert outcome.code == 0, f"{line}\n{outcome.error}"
            commands.append(words[0])
    assert commands == ["export", "verify", "sensitivity"]
    assert Path("again.onnx").read_bytes() == Path("w2a2.onnx").read_bytes()
    test = load_images("digits", "test")
    right = predictions(namespace["frozen"], test.images, namespace["pixels"]) == test.labels
    assert np.mean(right) > 0.9  # 0.98 or so; what is asked for here is that it learned


def test_the_readme_prepares_and_exports(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Offline, so without torchvision's weights, and on images and classes that nobody has."""
    (source, *_) = (content for language, content in blocks(ROOT / "README.md") if "prepare(" in content)
    for shown, here in (
        ('weights="DEFAULT"', "weights=None"),
        ("images = ...", "images = np.random.default_rng(0).integers(0, 256, (2, 3, 224, 224), dtype=np.uint8)"),
        ("class_names=[...]", "class_names=[str(index) for index in range(1000)]"),
    ):
        assert source.count(shown) == 1
        source = source.replace(shown, here)
    monkeypatch.chdir(tmp_path)
    run(source, {"np": np}, "README.md")
    assert Path("model.onnx").is_file()


def test_the_readme_runs_an_exported_model(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    (source,) = (
        content for language, content in blocks(ROOT / "README.md") if "onnxruntime.InferenceSession" in content
    )
    monkeypatch.chdir(ROOT)
    run(source, {}, "README.md")
    assert capsys.readouterr().out.strip() in classes_of_the_zoo()


def classes_of_the_zoo() -> tuple[str, ...]:
    """Return the classes of Fashion-MNIST, as the exported model of the zoo knows them."""
    from qil_deploy.runtime_tests.exported_model import read_exported_model

    return read_exported_model(ROOT / "zoo" / "fashion_mnist" / "w4a4.onnx").class_names
