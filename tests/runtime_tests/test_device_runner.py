"""The program on devices: one zip file of this package counts the differences, and reports errors in a line."""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray

from qil_deploy.onnx_io.schema import with_outputs
from qil_deploy.reports import read_report
from qil_deploy.runtime_tests import device_runner
from qil_deploy.runtime_tests.device_program import OLDEST_PYTHON, write_device_program
from qil_deploy.runtime_tests.golden import write_golden
from qil_deploy.runtime_tests.targets import DeviceReport

WriteModel = Callable[..., Path]

FORBIDDEN = ("torch", "onnx", "google", "msgspec", "psutil", "rich", "typer", "threadpoolctl")
ALONE = """
import runpy, sys
sys.modules.update(dict.fromkeys({forbidden!r}))  # None makes an import of that name fail
sys.argv = sys.argv[1:]
try:
    runpy.run_path(sys.argv[0], run_name="__main__")
finally:
    loaded = [module.__file__ for name, module in sys.modules.items() if name.startswith("qil_deploy")]
    assert loaded and all("run.pyz" in str(file) for file in loaded), loaded
"""


@pytest.fixture
def golden(write_model: WriteModel, images: NDArray[np.uint8], tmp_path: Path) -> tuple[Path, Path]:
    """A small model and golden vectors of seven images."""
    model = write_model()
    write_golden(model, images[:7], "noise", tmp_path / "golden.npz")
    return model, tmp_path / "golden.npz"


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, dict[str, Any], str]:
    """Return exit code, report and text on standard error."""
    code = device_runner.main([*map(str, arguments), "--repeats", "0"])
    captured = capsys.readouterr()
    return code, json.loads(captured.out or "{}"), captured.err


def change(golden: Path, **arrays: NDArray[Any]) -> Path:
    with np.load(golden) as stored:
        content: dict[str, Any] = dict(stored)
    path = golden.with_name("changed.npz")
    np.savez(path, **(content | arrays))
    return path


def test_it_runs_alone_and_its_report_is_read_back(golden: tuple[Path, Path], tmp_path: Path) -> None:
    device = tmp_path / "device"
    write_device_program(device / "run.pyz")
    for file in golden:
        shutil.copy(file, device)
    command = [sys.executable, "-P", "-c", ALONE.format(forbidden=FORBIDDEN), "run.pyz", golden[0].name, golden[1].name]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}

    result = subprocess.run(
        [*command, "--levels", "disabled,all", "--batch", "3"],
        capture_output=True,
        text=True,
        check=False,
        cwd=device,
        env=environment,
    )

    assert result.returncode == 0, result.stderr
    (tmp_path / "report.json").write_text(result.stdout)
    report = read_report(tmp_path / "report.json", DeviceReport)
    assert (report.images, report.compared, report.differing) == (7, True, 0)
    assert [level.level for level in report.levels] == ["disabled", "all"]
    with np.load(golden[1]) as arrays:
        names = json.loads(str(arrays["about"]))["tensors"]
        for level in report.levels:
            assert [tensor.tensor for tensor in level.tensors] == names
            assert [list(tensor.shape) for tensor in level.tensors] == [list(arrays[name].shape) for name in names]
            assert level.predictions == tuple(arrays["logits"].argmax(axis=1).tolist())
    assert report.latency is not None
    assert report.latency.runs == 20


def test_whatever_the_batch_the_digests_are_those_of_the_whole(
    golden: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    _, one_by_one, _ = run(capsys, *golden)
    _, together, _ = run(capsys, *golden, "--batch", 7)
    assert one_by_one["levels"] == together["levels"]


@pytest.mark.parametrize("model", [{"input": "float"}, {"batch": 4, "metadata": {"batch": 4}}, {"format": "qdq"}])
def test_normalised_input_fixed_batches_and_qdq_are_equal_too(
    write_model: WriteModel,
    model: dict[str, Any],
    images: NDArray[np.uint8],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = write_model(**model)
    write_golden(path, images[:6], "noise", tmp_path / "golden.npz")
    code, report, _ = run(capsys, path, tmp_path / "golden.npz")
    assert (code, report["images"]) == (0, 6)


def test_differences_are_counted_across_batches_and_the_first_is_located(
    golden: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    with np.load(golden[1]) as arrays:
        name = json.loads(str(arrays["about"]))["tensors"][1]
        codes = arrays[name].copy()
    codes[2, 1, 3, 4] += 5
    codes[5, 0, 0, 0] += 2

    code, report, _ = run(capsys, golden[0], change(golden[1], **{name: codes}), "--batch", 2)

    assert code == 1
    wrong = [tensor for tensor in report["levels"][0]["tensors"] if tensor["differing"]]
    assert [tensor["tensor"] for tensor in wrong] == [name]
    assert (wrong[0]["differing"], wrong[0]["largest_step"], wrong[0]["index"]) == (2, 5.0, [2, 1, 3, 4])


def test_another_shape_and_another_type_differ_everywhere(
    golden: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    with np.load(golden[1]) as arrays:
        logits = arrays["logits"]
    for wrong in (logits[:, :-1], logits.astype(np.float64)):
        code, report, _ = run(capsys, golden[0], change(golden[1], logits=wrong))
        assert code == 1
        found = report["levels"][0]["logits"]
        assert (found["differing"], found["elements"], found["index"]) == (wrong.size, wrong.size, [0, 0])


def test_images_alone_give_classes_and_nothing_to_compare(
    golden: tuple[Path, Path], images: NDArray[np.uint8], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    np.save(tmp_path / "images.npy", images[:7])
    code, report, _ = run(capsys, golden[0], tmp_path / "images.npy")
    with np.load(golden[1]) as arrays:
        expected = arrays["logits"].argmax(axis=1).tolist()
    assert (code, report["compared"], report["levels"][0]["predictions"]) == (0, False, expected)
    assert report["levels"][0]["logits"]["differing"] is None


def test_outputs_are_added_as_protobuf_does_it(golden: tuple[Path, Path]) -> None:
    content = golden[0].read_bytes()
    names = ["a", "b" * 130, "c" * 20_000, "d\u00e9"]
    addition = onnx.ModelProto(graph=onnx.GraphProto(output=[onnx.ValueInfoProto(name=name) for name in names]))
    assert with_outputs(content, names) == content + addition.SerializeToString()
    assert with_outputs(content, []) == content


def test_the_program_is_the_same_each_time_and_for_the_oldest_python(tmp_path: Path) -> None:
    paths = [tmp_path / "a.pyz", tmp_path / "b.pyz"]
    for path in paths:
        write_device_program(path)
    assert paths[0].read_bytes() == paths[1].read_bytes()
    with zipfile.ZipFile(paths[0]) as program:
        for name in program.namelist():
            source = program.read(name).decode()
            ast.parse(source, feature_version=OLDEST_PYTHON)
            assert not re.search(r"file_digest|tomllib|StrEnum|ExceptionGroup|datetime\.UTC", source), name


def test_a_python_that_is_too_old_is_told(tmp_path: Path) -> None:
    write_device_program(tmp_path / "run.pyz")
    pretend = "import runpy, sys; sys.version_info = (3, 9, 1); runpy.run_path('run.pyz', run_name='__main__')"
    result = subprocess.run([sys.executable, "-c", pretend], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert result.returncode == 1
    assert result.stderr == "Error: Python is 3.9, and 3.10 is the oldest that will do.\n"


def test_progress_is_told(golden: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    _, _, words = run(capsys, *golden)
    assert words.splitlines()[0] == "progress: all: 1 of 7 images"
    assert words.splitlines()[-1] == "progress: all, every tensor: 7 of 7 images"


def test_an_onnxruntime_that_is_too_old_is_told(
    golden: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "newer.onnx").write_bytes(b"what it cannot read")
    monkeypatch.setattr(onnxruntime, "__version__", "1.9.2")
    code, _, words = run(capsys, tmp_path / "newer.onnx", golden[1])
    assert code == 2
    assert "ONNX Runtime 1.9.2, older than 1.24, cannot load" in words


def test_what_is_wrong_is_said_in_a_line(
    golden: tuple[Path, Path], write_model: WriteModel, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, vectors = golden
    with np.load(vectors) as arrays:
        few = arrays["logits"][:3]
    half = tmp_path / "half.npz"
    half.write_bytes(vectors.read_bytes()[:300])
    damaged = tmp_path / "damaged.onnx"
    damaged.write_bytes(model.read_bytes()[:200])
    for name, array in (("grey", np.zeros((2, 1, 8, 8), np.uint8)), ("none", np.zeros((0, 3, 8, 8), np.uint8))):
        np.save(tmp_path / f"{name}.npy", array)
    np.save(tmp_path / "float.npy", np.zeros((2, 3, 8, 8), np.float32))
    cases = [
        (tmp_path / "absent.onnx", vectors, "there is no model file"),
        (damaged, vectors, f"ONNX Runtime {onnxruntime.__version__} cannot load"),
        (write_model("bare.onnx", metadata=None), vectors, "carries no 'qil_deploy' metadata"),
        (write_model("odd.onnx", metadata={"preprocessing": 3}), vectors, "is damaged"),
        (write_model("other.onnx", ties=True), vectors, "are of another file than"),
        (model, tmp_path / "absent.npz", "there are no golden vectors"),
        (model, half, "are damaged"),
        (model, model, "are damaged"),
        (
            model,
            change(vectors, about=np.array('{"schema": "x"}')),
            "has schema 'x'; this version reads 'qil_deploy.golden/1'",
        ),
        (write_model("new.onnx", metadata={"schema": 2}), vectors, "has schema 2; this version of qil_deploy reads 1"),
        (model, tmp_path / "grey.npy", "uint8 of shape [N, 3, 8, 8]"),
        (model, tmp_path / "none.npy", "hold no images"),
        (model, tmp_path / "float.npy", "images are float32"),
    ]
    for path, data, message in cases:
        code, report, words = run(capsys, path, data)
        assert (code, report) == (2, {}), message
        assert words.startswith("Error: "), words
        assert message in words
        assert len(words.splitlines()) == 1
    code, _, words = run(capsys, model, change(vectors, logits=few))
    assert code == 2
    assert "logits is float32[3, 5], which is not of as many images" in words


@pytest.mark.parametrize("wrong", [["--levels", "most"], ["--threads", "0"], ["--batch", "0"], ["--repeats", "-1"]])
def test_wrong_options_are_refused(wrong: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        device_runner.main(["model.onnx", "golden.npz", *wrong])
    assert "error: " in capsys.readouterr().err
