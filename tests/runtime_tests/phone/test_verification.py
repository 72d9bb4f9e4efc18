"""Verification in a browser: its inputs, and validation of its result. Honest results here are device_runner's."""

from __future__ import annotations

import copy
import hashlib
import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from qil_deploy.errors import DataError
from qil_deploy.onnx_io.schema import parse_model
from qil_deploy.runtime_tests import device_runner, golden_chunks
from qil_deploy.runtime_tests.golden import write_golden
from qil_deploy.runtime_tests.phone.verification import Verification, prepare_verification
from qil_deploy.runtime_tests.phone.web_runtime import FILES
from qil_deploy.runtime_tests.targets import RunOptions

WriteModel = Callable[..., Path]
AskedFor = Callable[[Mapping[str, Any]], set[str]]
OPTIONS = RunOptions(levels=("disabled", "all"), batch=2, repeats=3)


@pytest.fixture
def golden(write_model: WriteModel, images: NDArray[np.uint8], tmp_path: Path) -> tuple[Path, Path]:
    """A small model and golden vectors of five images."""
    model = write_model()
    write_golden(model, images[:5], "noise", tmp_path / "golden.npz")
    return model, tmp_path / "golden.npz"


@pytest.fixture
def prepared(golden: tuple[Path, Path], tmp_path: Path) -> Verification:
    return prepare_verification(*golden, OPTIONS, {}, tmp_path, autostart=False)


@pytest.fixture
def honest(golden: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    """This machine's result in a browser's form."""
    arguments = [*map(str, golden), "--levels", "disabled,all", "--batch", "2", "--repeats", "3"]
    assert device_runner.main(arguments) == 0
    report: dict[str, Any] = json.loads(capsys.readouterr().out)
    report["environment"] |= {"numpy": None, "python": None, "browser": "Firefox"}
    return report


def encoded(report: dict[str, Any]) -> bytes:
    return json.dumps(report).encode()


def test_an_honest_answer_is_taken(prepared: Verification, honest: dict[str, Any]) -> None:
    report = prepared.accept(encoded(honest))
    assert report.differing == 0
    assert report.environment.browser == "Firefox"
    assert len(encoded(honest)) <= prepared.service().largest_result


def test_differences_are_taken_as_they_are_counted(prepared: Verification, honest: dict[str, Any]) -> None:
    tensor = honest["levels"][0]["tensors"][1]
    tensor |= {"differing": 2, "largest_step": 3.0, "index": [4, *[0] * (len(tensor["shape"]) - 1)], "sha256": "0" * 64}
    assert prepared.accept(encoded(honest)).differing == 2


def change(report: dict[str, Any], place: str, value: object) -> None:
    *path, last = place.split(".")
    at: Any = report
    for key in path:
        at = at[int(key)] if key.isdigit() else at[key]
    at[last] = value


EMPTY = {"tensor": "logits", "dtype": "float32", "shape": [5, 0], "sha256": hashlib.sha256().hexdigest(), "elements": 0}
EMPTY |= {"differing": 0, "largest_step": 0.0, "index": None}
LIES: dict[str, tuple[str, object, str]] = {
    "another model": ("model", "x.onnx", "model is 'x.onnx', and has to be 'model.onnx'"),
    "another digest": ("sha256", "0" * 64, "sha256 is"),
    "fewer images": ("images", 4, "images is 4, and has to be 5"),
    "nothing compared": ("compared", False, "compared is False"),
    "another batch": ("batch", 1, "batch is 1, and has to be 2"),
    "more threads than asked for": ("threads", 2, "threads is 2, and has to be from 1 to 1"),
    "no threads": ("threads", 0, "threads is 0"),
    "a level too few": ("levels", [], "levels is"),
    "another schema": ("schema", "qil_deploy.device/1", "has schema"),
    "an entry too many": ("extra", 1, "must be an object with the entries"),
    "a text as number": ("images", "5", "must be of type int"),
    "a yes as number": ("images", True, "must be of type int"),
    "a class that is not there": ("levels.0.predictions", [0, 0, 0, 0, 5], "a prediction is 5"),
    "other classes than the logits have": ("levels.0.predictions", [-1] * 5, "predictions is"),
    "classes of fewer images": ("levels.0.predictions", [0], "predictions is 1, and has to be 5"),
    "another tensor": ("levels.0.tensors.0.tensor", "other", "tensors is"),
    "no tensors": ("levels.0.tensors", [], "tensors is"),
    "codes that are not the golden ones": ("levels.1.tensors.2.sha256", "0" * 64, "sha256 is"),
    "logits that are not the golden ones": ("levels.1.logits.sha256", "0" * 64, "sha256 is"),
    "fewer elements": ("levels.0.logits.elements", 1, "differing is 0, and has to be 1"),
    "another shape": ("levels.0.logits.shape", [5, 1], "differing is 0, and has to be 25"),
    "an empty tensor": ("levels.0.logits", EMPTY, "elements is 0, and has to be from 1"),
    "no digest": ("levels.0.logits.sha256", "", "has no digest"),
    "a digest that is none": ("levels.0.tensors.1.sha256", "x" * 64, "has no digest"),
    "a shape below zero": ("levels.0.logits.shape", [5, -5], "has the shape"),
    "a shape without images": ("levels.0.logits.shape", [], "images is"),
    "another type": ("levels.0.logits.dtype", "int8", "differing is 0"),
    "not compared": ("levels.0.logits.differing", None, "was not compared"),
    "less than no difference": ("levels.0.logits.differing", -1, "differing is -1"),
    "more differences than elements": ("levels.0.logits.differing", 26, "differing is 26"),
    "differences without a place": ("levels.0.logits.differing", 1, "index is False"),
    "a place without differences": ("levels.0.logits.index", [0, 0], "index is True"),
    "a step below zero": ("levels.0.logits.largest_step", -1.0, "largest_step is -1"),
    "a step without end": ("levels.0.logits.largest_step", math.inf, "number"),
    "a step that is none": ("levels.0.logits.largest_step", math.nan, "number"),
    "no latency": ("latency", None, "latency is False"),
    "other runs": ("latency.runs", 2, "runs is 2"),
    "a time below zero": ("latency.median_ms", -1.0, "median_ms is -1"),
    "an unsorted latency": ("latency.p95_ms", 0.0, "p95_ms is 0"),
    "terminal commands": ("environment.browser", "\x1b[2J", "cannot be printed"),
    "commands as type": ("levels.0.logits.dtype", "\x1b[2J", "cannot be printed"),
    "a novel": ("environment.cpu", "x" * 2000, "too long"),
    "too many features": ("environment.features", ["x"] * 100, "features is 100"),
    "no processors": ("environment.cpus", 0, "cpus is 0"),
    "Python": ("environment.python", "3.11", "python known is True"),
}


def test_what_cannot_be_is_refused(prepared: Verification, honest: dict[str, Any]) -> None:
    for lie, (place, value, message) in LIES.items():
        report = copy.deepcopy(honest)
        change(report, place, value)
        with pytest.raises(DataError) as refused:
            prepared.accept(encoded(report))
        assert message in str(refused.value), lie
        assert str(refused.value).startswith("what the browser sent")
        assert "result.json" not in str(refused.value)


def test_what_is_no_report_is_refused(prepared: Verification) -> None:
    for content in (b"", b"{", b"[]", b"null", b"\xff\xfe", b"[" * 100_000, b'{"schema": 1}'):
        with pytest.raises(DataError, match="what the browser sent"):
            prepared.accept(content)


def test_places_outside_of_a_tensor_are_refused(prepared: Verification, honest: dict[str, Any]) -> None:
    for index in ([0], [0, 0, 0], [5, 0], [0, 5], [-1, 0], []):
        honest["levels"][0]["logits"] |= {"differing": 1, "index": index}
        with pytest.raises(DataError, match="index"):
            prepared.accept(encoded(honest))


def test_zeros_are_no_way_around_the_digest(prepared: Verification, honest: dict[str, Any]) -> None:
    logits = prepared.golden.tensors["logits"].copy()
    logits[:, 0] = 0
    prepared.golden.tensors["logits"] = logits
    digest = hashlib.sha256(logits.tobytes()).hexdigest()
    for level in honest["levels"]:
        level["predictions"] = logits.argmax(axis=1).tolist()
        for tensor in (level["logits"], level["tensors"][-1]):
            tensor["sha256"] = digest
    assert prepared.accept(encoded(honest)).differing == 0
    logits[:, 0] = -0.0  # equal to zero, and said to be
    prepared.golden._digests.clear()
    assert prepared.accept(encoded(honest)).differing == 0
    for level in honest["levels"]:
        for tensor in (level["logits"], level["tensors"][-1]):
            tensor["sha256"] = "0" * 64
    with pytest.raises(DataError, match="sha256 is '0000"):
        prepared.accept(encoded(honest))


def test_everything_that_the_page_asks_for_is_served(prepared: Verification, asked_for: AskedFor) -> None:
    resources: dict[str, Any] = dict(prepared.service().resources)
    assert asked_for(resources) <= {*resources, *FILES}
    assert asked_for(resources) >= {"page.css", "page.js", "runner.js", "sha256.js", "ort.wasm.min.mjs"}
    assert resources["model.onnx"] == prepared.model.path.read_bytes()
    outputs = parse_model(resources["model-with-outputs.onnx"]).graph.output
    assert {output.name for output in outputs} == set(prepared.golden.tensors)
    job = json.loads(resources["job.json"])
    assert job["tensors"][-1] == {"name": "logits", "dtype": "float32", "shape": [5]}
    assert sum(job["chunks"]) == job["images"] == 5


def test_chunks_hold_whole_batches_and_all_images_in_order(
    golden: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(golden_chunks, "_CHUNK_BYTES", 1)
    vectors = prepare_verification(*golden, OPTIONS, {}, tmp_path, autostart=False).golden
    assert vectors.counts == (2, 2, 1)
    with np.load(golden[1]) as arrays:
        names = json.loads(str(arrays["about"]))["tensors"]
        for index, start in enumerate((0, 2, 4)):
            expected = [arrays[name][start : start + 2].tobytes() for name in ("images", *names)]
            assert vectors.chunk(index) == b"".join(expected)


def test_images_alone_have_nothing_to_compare_with(
    write_model: WriteModel, images: NDArray[np.uint8], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    np.save(tmp_path / "images.npy", images)
    model = write_model()
    options = RunOptions(batch=7)
    prepared = prepare_verification(model, tmp_path / "images.npy", options, {}, tmp_path, autostart=False)
    device_runner.main([str(model), str(tmp_path / "images.npy"), "--batch", "7", "--repeats", "0"])
    report = json.loads(capsys.readouterr().out)
    report["environment"] |= {"numpy": None, "python": None, "browser": "Firefox"}
    assert prepared.accept(encoded(report)).compared is False
    report["levels"][0]["logits"]["differing"] = 0
    with pytest.raises(DataError, match="differing is"):
        prepared.accept(encoded(report))


def rewrite(path: Path, **arrays: object) -> None:
    with np.load(path) as stored:
        content: dict[str, Any] = dict(stored)
    np.savez(path, **(content | arrays))


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"about": np.array("{")}, "are damaged"),
        ({"about": np.array("{}")}, "has schema None; this version reads 'qil_deploy.golden/1'"),
        ({"about": np.array('{"schema": "x", "tensors": []}')}, "has schema 'x'"),
        ({"images": np.zeros((5, 3, 8, 9), np.uint8)}, r"are uint8 of shape \[5, 3, 8, 9\]"),
        ({"images": np.zeros((5, 3, 8, 8), np.float32)}, "images are float32"),
        ({"images": np.zeros((0, 3, 8, 8), np.uint8)}, "hold no images"),
        ({"images": np.zeros((4, 3, 8, 8), np.uint8)}, "is not of as many images as there are"),
        ({"logits": np.zeros((5, 5))}, "has 'logits' as float64"),
        ({"logits": np.array(["x"], object)}, "is pickled, and pickles are never loaded"),
    ],
)
def test_damaged_vectors_are_refused(
    arrays: dict[str, object], message: str, golden: tuple[Path, Path], tmp_path: Path
) -> None:
    rewrite(golden[1], **arrays)
    with pytest.raises(DataError, match=message):
        prepare_verification(*golden, OPTIONS, {}, tmp_path, autostart=False)


def test_vectors_of_another_file_are_refused(
    golden: tuple[Path, Path], write_model: WriteModel, tmp_path: Path
) -> None:
    other = write_model("other.onnx", metadata={"data": "x"})
    with pytest.raises(DataError, match=r"golden vectors .* are of another file than"):
        prepare_verification(other, golden[1], OPTIONS, {}, tmp_path, autostart=False)
    (tmp_path / "half.npz").write_bytes(golden[1].read_bytes()[:3000])
    cases = {"absent.npz": "there are no golden vectors", "": "there are no golden", "half.npz": "are damaged"}
    for name, message in cases.items():
        path = tmp_path / name
        with pytest.raises(DataError, match=message):
            prepare_verification(golden[0], path, OPTIONS, {}, tmp_path, autostart=False)
