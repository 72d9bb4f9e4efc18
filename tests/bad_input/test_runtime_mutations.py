"""Some of the generated models, golden vectors and reports, given to their readers: errors in sentences, or results.

ONNX Runtime does not get to see the models: what it does with such files is not ours to promise.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from qil_deploy.errors import QilDeployError
from qil_deploy.onnx_io.model_file import read_model
from qil_deploy.reference import IntegerReference
from qil_deploy.reports import write_report
from qil_deploy.runtime_tests.backends import ExecutedGraph
from qil_deploy.runtime_tests.doctor import diagnose
from qil_deploy.runtime_tests.exported_model import read_exported_model
from qil_deploy.runtime_tests.golden import read_golden
from qil_deploy.runtime_tests.layers import describe_layers
from qil_deploy.runtime_tests.phone.verification import prepare_verification
from qil_deploy.runtime_tests.report import collect, render
from qil_deploy.runtime_tests.targets import RunOptions

from . import mutations_of_golden_files, mutations_of_models, mutations_of_reports
from .conftest import ZOO
from .peak_memory import peak_memory

SEED = 20261127
COUNT = 24  # one of each kind, at least
MOST = 2**30
LONGEST = 1000


def refusals(name: str, steps: Iterator[Callable[[], object]]) -> int:
    """Take some steps; any refusal on the way must be a sentence. Returns the number of refusals (0 or 1)."""
    try:
        for step in steps:
            step()
    except QilDeployError as error:
        assert len(str(error)) <= LONGEST, name  # noqa: PT017 - either outcome is right
        return 1
    return 0


def read_the_model(path: Path) -> Iterator[Callable[[], object]]:
    """Yield every function that reads a model or computes it."""
    yield lambda: read_model(path, left_out=[])
    model = read_exported_model(path)
    yield lambda: ExecutedGraph.of(model)
    yield lambda: describe_layers(model)
    reference = IntegerReference(model.graph)
    yield lambda: reference.run(model.prepare_input(np.zeros((model.batch or 1, *model.preprocessing.shape), np.uint8)))


def test_models(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    assert refusals("undamaged", read_the_model(path)) == 0
    before, refused = peak_memory(), 0
    for name, damaged in mutations_of_models.mutations(content, COUNT, SEED):
        path.write_bytes(damaged)
        refused += refusals(name, read_the_model(path))
    assert refused > COUNT // 2
    assert peak_memory() - before <= MOST


def read_the_golden_vectors(model: Path, path: Path, folder: Path) -> Iterator[Callable[[], object]]:
    """Read golden vectors as `verify` does, and as `phone` does."""
    yield lambda: read_golden(path, read_exported_model(model))
    yield lambda: prepare_verification(model, path, RunOptions(), {}, folder, autostart=False).golden.chunk(0)


def test_golden_vectors(model: Path, golden: Path) -> None:
    content, before, refused = golden.read_bytes(), peak_memory(), 0
    for name, damaged in mutations_of_golden_files.mutations(content, COUNT, SEED):
        golden.write_bytes(damaged)
        with tempfile.TemporaryDirectory() as folder:
            refused += refusals(name, read_the_golden_vectors(model, golden, Path(folder)))
    assert refused > COUNT // 2
    assert peak_memory() - before <= MOST


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """One report of each kind in the repository: of `bench`, `verify`, `doctor` and `report`."""
    folder = tmp_path_factory.mktemp("reports")
    names = ["bench", "w2a2_verify"]
    found = {name: (ZOO / f"{name}.json").read_bytes() for name in names}
    write_report(folder / "doctor.json", diagnose(ZOO / "w2a2.onnx"))
    write_report(folder / "report.json", collect([ZOO / f"{name}.json" for name in names]))
    return found | {name: (folder / f"{name}.json").read_bytes() for name in ("doctor", "report")}


def read_the_report(path: Path) -> Iterator[Callable[[], object]]:
    """Read a report, and make the page of `report` from it."""
    report = collect([path])
    page = render(report)
    assert all(letter.isprintable() or letter.isspace() for letter in page)
    write_report(path.with_name("again.json"), report)
    yield lambda: collect([path.with_name("again.json")])


@pytest.mark.parametrize("kind", ["bench", "w2a2_verify", "doctor", "report"])
def test_reports(reports: dict[str, bytes], tmp_path: Path, kind: str) -> None:
    path, refused = tmp_path / "report.json", 0
    for name, damaged in mutations_of_reports.mutations(reports[kind], COUNT, SEED):
        path.write_bytes(damaged)
        refused += refusals(name, read_the_report(path))
    assert refused > COUNT // 3


@pytest.mark.parametrize(
    "module", [mutations_of_models, mutations_of_golden_files], ids=lambda module: module.__name__.rpartition("_")[2]
)
def test_the_same_seed_makes_the_same_mutations(module: object, content: bytes, golden: Path) -> None:
    whole = content if module is mutations_of_models else golden.read_bytes()
    mutations: Callable[[bytes, int, int], Iterator[tuple[str, bytes]]] = getattr(module, "mutations")  # noqa: B009 - modules have no type for it
    first = [name for name, _ in mutations(whole, 8, 1)]
    assert first == [name for name, _ in mutations(whole, 8, 1)]
    assert first != [name for name, _ in mutations(whole, 8, 2)]
