"""Forged results of a target, given to every reader of reports from devices and browsers, and to `report`."""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from qil_deploy.errors import DataError
from qil_deploy.reports import read_report
from qil_deploy.runtime_tests import device_runner
from qil_deploy.runtime_tests.exported_model import read_exported_model
from qil_deploy.runtime_tests.golden import write_golden
from qil_deploy.runtime_tests.golden_chunks import open_golden
from qil_deploy.runtime_tests.phone.verification import prepare_verification
from qil_deploy.runtime_tests.report import collect
from qil_deploy.runtime_tests.targets import RunOptions
from qil_deploy.runtime_tests.targets.check_report import check_report
from qil_deploy.runtime_tests.targets.report import DeviceReport

WriteModel = Callable[..., Path]
Report = dict[str, Any]
Forge = Callable[[Report], object]

IMAGES = 5
OPTIONS = RunOptions(levels=("disabled", "all"), batch=2, repeats=3)
EMPTY = hashlib.sha256().hexdigest()


def tensors(report: Report) -> list[Report]:
    """Every entry of every tensor."""
    return [tensor for level in report["levels"] for tensor in (level["logits"], *level["tensors"])]


def every(**changes: object) -> Forge:
    """Change all tensors alike."""
    return lambda report: [tensor.update(changes) for tensor in tensors(report)]


def emptied(report: Report) -> None:
    for tensor in tensors(report):
        tensor.update(shape=[IMAGES, 0], elements=0, sha256=EMPTY)


def emptied_but_for_the_count(report: Report) -> None:
    for tensor in tensors(report):
        tensor.update(shape=[IMAGES, 0], sha256=EMPTY)


def flattened(report: Report) -> None:
    for tensor in tensors(report):
        tensor["shape"] = [IMAGES, tensor["elements"] // IMAGES, 1]


def differing(report: Report, **changes: object) -> None:
    """Mark one of the first codes as different, with further changes."""
    tensor = report["levels"][0]["tensors"][0]
    index = [0] * len(tensor["shape"])
    tensor.update({"differing": 1, "largest_step": 1.0, "index": index, "sha256": "1" * 64} | changes)


def golden_digest(report: Report) -> None:
    differing(report, sha256=report["levels"][1]["tensors"][0]["sha256"])


def swapped(report: Report) -> None:
    first, second = report["levels"][0]["tensors"][:2]
    first["sha256"], second["sha256"] = second["sha256"], first["sha256"]


FORGERIES: dict[str, Forge] = {
    "empty tensors": emptied,
    "empty tensors of as many elements": emptied_but_for_the_count,
    "other shapes of as many elements": flattened,
    "other types": every(dtype="int8"),
    "no digests": every(sha256=""),
    "digests of nothing": every(sha256=EMPTY),
    "digests in capitals": lambda report: [t.update(sha256=t["sha256"].upper()) for t in tensors(report)],
    "one digest left out": lambda report: report["levels"][1]["tensors"][2].pop("sha256"),
    "digests of other tensors": swapped,
    "digests of another file": every(sha256="1" * 64),
    "another model": lambda report: report.update(sha256="1" * 64),
    "a level left out": lambda report: report["levels"].pop(),
    "a level twice": lambda report: report["levels"].append(report["levels"][0]),
    "one level, twice": lambda report: report["levels"].__setitem__(1, report["levels"][0]),
    "another level": lambda report: report["levels"][0].update(level="most"),
    "no levels": lambda report: report.update(levels=[]),
    "a tensor left out": lambda report: report["levels"][1]["tensors"].pop(1),
    "a tensor twice": lambda report: report["levels"][1]["tensors"].append(report["levels"][1]["tensors"][0]),
    "a tensor in place of another": lambda r: r["levels"][1]["tensors"].__setitem__(1, r["levels"][1]["tensors"][0]),
    "no tensors": lambda report: [level.update(tensors=[]) for level in report["levels"]],
    "logits of another name": lambda report: report["levels"][0]["logits"].update(tensor="codes"),
    "nothing compared": lambda report: [
        report.update(compared=False),
        every(differing=None, largest_step=None)(report),
    ],
    "nothing counted": every(differing=None),
    "a difference, and the golden digest": golden_digest,
    "a difference without a step": lambda report: differing(report, largest_step=0.0),
    "a difference without a place": lambda report: differing(report, index=None),
    "a difference outside": lambda report: differing(report, index=[IMAGES, 0, 0, 0]),
    "a difference in half of a place": lambda report: differing(report, index=[0]),
    "more differences than elements": lambda report: differing(report, differing=10**9),
    "a step without a difference": every(largest_step=1.0),
    "a place without a difference": every(index=[0, 0, 0, 0]),
    "fewer images": lambda report: report.update(images=IMAGES - 1),
    "no images": lambda report: [report.update(images=0), every(shape=[0], elements=0)(report)],
    "a negative size": every(shape=[IMAGES, -1]),
    "a size without end": every(shape=[IMAGES, 10**300]),
    "no number for a time": lambda report: report["latency"].update(median_ms=float("nan")),
    "an endless time": lambda report: report["latency"].update(p95_ms=float("inf")),
    "a negative time": lambda report: report["latency"].update(median_ms=-1.0),
    "more runs": lambda report: report["latency"].update(runs=10**9),
    "an entry too many": lambda report: report["levels"][0]["logits"].update(note="x"),
    "an entry too few": lambda report: report["levels"][0].pop("predictions"),
    "a class that is not there": lambda report: report["levels"][0].update(predictions=[99] * IMAGES),
    "other classes": lambda report: report["levels"][0].update(predictions=[-1] * IMAGES),
}
# What only golden vectors show to be wrong: `report`, which has none, takes it as it is.
PLAUSIBLE = {
    "other shapes of as many elements", "other types", "digests of nothing", "digests of another file",
    "another model", "a level left out", "nothing compared", "a difference, and the golden digest",
    "a difference without a step", "a difference outside", "a difference in half of a place", "more runs", "no tensors",
    "a class that is not there", "other classes",
}  # fmt: skip


@pytest.fixture
def golden(write_model: WriteModel, images: NDArray[np.uint8], tmp_path: Path) -> tuple[Path, Path]:
    model = write_model()
    write_golden(model, images[:IMAGES], "noise", tmp_path / "golden.npz")
    return model, tmp_path / "golden.npz"


@pytest.fixture
def answer(golden: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> Report:
    """This machine's result."""
    arguments = [*map(str, golden), "--levels", "disabled,all", "--batch", "2", "--repeats", "3"]
    assert device_runner.main(arguments) == 0
    report: Report = json.loads(capsys.readouterr().out)
    return report


def take_from_device(golden: tuple[Path, Path], content: str, folder: Path) -> DeviceReport:
    (folder / "report.json").write_text(content)
    model = read_exported_model(golden[0])
    (folder / "unpacked").mkdir(exist_ok=True)
    vectors = open_golden(golden[1], model, OPTIONS.batch, folder / "unpacked")
    report = read_report(folder / "report.json", DeviceReport)
    check_report(report, model, vectors, OPTIONS, browser=False)
    return report


def refusal(name: str, take: Callable[[], object]) -> str:
    """Return the sentence of a refusal."""
    try:
        take()
    except DataError as error:
        return str(error)
    raise AssertionError(f"{name} was believed")


def test_no_forgery_is_believed(golden: tuple[Path, Path], answer: Report, tmp_path: Path) -> None:
    assert take_from_device(golden, json.dumps(answer), tmp_path).differing == 0
    differing(answer_with_difference := copy.deepcopy(answer))
    assert take_from_device(golden, json.dumps(answer_with_difference), tmp_path).differing == 1
    browser = prepare_verification(*golden, OPTIONS, {}, tmp_path, autostart=False)
    as_browser = {"numpy": None, "python": None, "browser": "Firefox"}
    for name, forge in FORGERIES.items():
        forged = copy.deepcopy(answer)
        forge(forged)
        assert refusal(name, lambda: take_from_device(golden, json.dumps(forged), tmp_path))  # noqa: B023 - called here
        forged["environment"] |= as_browser
        assert "what the browser sent" in refusal(name, lambda: browser.accept(json.dumps(forged).encode()))  # noqa: B023 - called here


def test_an_entry_that_is_there_twice_is_refused(golden: tuple[Path, Path], answer: Report, tmp_path: Path) -> None:
    content = json.dumps(answer).replace('"images": 5', '"images": 5, "images": 5', 1)
    with pytest.raises(DataError, match="the key 'images' occurs twice in one object"):
        take_from_device(golden, content, tmp_path)


def test_the_answer_to_other_golden_vectors_is_refused(
    golden: tuple[Path, Path], answer: Report, images: NDArray[np.uint8], tmp_path: Path
) -> None:
    write_golden(golden[0], images[10 : 10 + IMAGES], "noise", tmp_path / "other.npz")
    with pytest.raises(DataError, match="sha256 is"):
        take_from_device((golden[0], tmp_path / "other.npz"), json.dumps(answer), tmp_path)


def test_report_refuses_what_contradicts_itself(answer: Report, tmp_path: Path) -> None:
    path = tmp_path / "forged.json"
    path.write_text(json.dumps(answer))
    assert collect([path]).verdict.status == "equal"
    for name, forge in FORGERIES.items():
        forged = copy.deepcopy(answer)
        forge(forged)
        path.write_text(json.dumps(forged))
        if name in PLAUSIBLE:
            collect([path])
            continue
        assert "forged.json" in refusal(name, lambda: collect([path]))
