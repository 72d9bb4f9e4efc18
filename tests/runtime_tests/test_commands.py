"""The commands `verify` and `bench`, each in an application of its own."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import typer
from numpy.typing import NDArray
from PIL import Image
from typer.testing import CliRunner, Result

from qil_deploy.commands.bench import bench_command, parse_threads
from qil_deploy.commands.verify import verify_command
from qil_deploy.errors import ConfigError, DataError, ModelFileError, OutputError
from qil_deploy.onnx_io.model_file import read_model
from qil_deploy.reference import IntegerReference
from qil_deploy.runtime_tests import BenchReport, VerifyReport, read_report
from qil_deploy.runtime_tests.golden import write_golden

WriteModel = Callable[..., Path]

CLASSES = ("cat", "dog", "fox", "hen", "owl")


def call(command: Callable[..., None], *arguments: object) -> Result:
    """Run a command; an error of ours passes through unchanged."""
    app = typer.Typer()
    app.command()(command)
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if isinstance(result.exception, ValueError):
        raise result.exception
    return result


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a folder of images, three per class."""
    generator = np.random.default_rng(5)
    for name in CLASSES:
        target = tmp_path / "animals" / "test" / name
        target.mkdir(parents=True)
        for index in range(3):
            pixels = generator.integers(0, 256, (8, 8, 3), np.uint8)
            Image.fromarray(pixels).save(target / f"{index}.png")
    return tmp_path / "animals"


def test_verify_shows_a_table_writes_json_and_exits_with_0(
    write_model: WriteModel, folder: Path, tmp_path: Path
) -> None:
    result = call(verify_command, write_model(), "--data", folder, "--json", tmp_path / "r.json")
    assert result.exit_code == 0, result.output
    assert "integer reference" in result.output
    report = read_report(tmp_path / "r.json", VerifyReport)
    assert (report.exact, report.images, report.threads) == (True, 15, 1)


def test_the_data_set_is_by_default_the_one_in_the_metadata(
    write_model: WriteModel, folder: Path, tmp_path: Path
) -> None:
    path = write_model(metadata={"data": str(folder)})
    options = ("--limit", 7, "--batch-size", 2, "--threads", 2, "--json", tmp_path / "r.json")
    assert call(verify_command, path, *options).exit_code == 0
    report = read_report(tmp_path / "r.json", VerifyReport)
    assert (report.images, report.batch_size, report.threads) == (7, 2, 2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--golden", "g.npz"), "has no codes to compare; verify it without --target and --golden"),
        (("--target", "native"), "has no codes to compare; verify it without --target and --golden"),
        (("--first-difference",), "without a search for differences"),
        (("--between", "basic", "all"), "without a search for differences"),
    ],
)
def test_a_float_baseline_is_measured_and_compared_with_nothing(
    write_model: WriteModel, folder: Path, tmp_path: Path, options: tuple[str, ...], message: str
) -> None:
    path = write_model(format="float", input="float", metadata={"data": str(folder)})
    result = call(verify_command, path, "--json", tmp_path / "r.json")
    assert result.exit_code == 0, result.output
    report = read_report(tmp_path / "r.json", VerifyReport)
    assert (report.format, report.exact, report.images) == ("float", None, 15)
    with pytest.raises(ConfigError, match=f"is a float32 baseline.*{message}"):
        call(verify_command, path, *options)


def test_verify_exits_with_1_after_writing_the_report_of_a_difference(
    write_model: WriteModel, folder: Path, tmp_path: Path
) -> None:
    result = call(verify_command, write_model(ties=True), "--data", folder, "--json", tmp_path / "r.json")
    assert result.exit_code == 1
    assert "Not exact" in result.output
    assert not read_report(tmp_path / "r.json", VerifyReport).exact


def test_the_checkpoint_adds_its_predictors(
    write_model: WriteModel, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_model()
    asked: list[tuple[Path, str | None]] = []

    def checkpoint_predictors(
        checkpoint: Path, trusted_model: str | None
    ) -> dict[str, Callable[[NDArray[np.uint8]], NDArray[np.float32]]]:
        asked.append((checkpoint, trusted_model))
        reference = IntegerReference(read_model(path))
        return {
            "frozen PyTorch": reference.run,
            "unfrozen PyTorch": lambda images: reference.run(images) + np.float32(1),
        }

    module = ModuleType("qil_deploy.commands.predictors")
    module.checkpoint_predictors = checkpoint_predictors  # type: ignore[attr-defined]  # a module made here
    module.frozen_codes = lambda *_: IntegerReference(read_model(path)).run_all  # type: ignore[attr-defined]  # likewise
    monkeypatch.setitem(sys.modules, module.__name__, module)
    arguments = ("--data", folder, "--checkpoint", tmp_path / "c.safetensors", "--json", tmp_path / "r.json")
    assert call(verify_command, path, *arguments, "--model", "my_networks:small").exit_code == 0
    assert asked == [(tmp_path / "c.safetensors", "my_networks:small")]
    names = [backend.name for backend in read_report(tmp_path / "r.json", VerifyReport).backends]
    assert names[-2:] == ["frozen PyTorch", "unfrozen PyTorch"]


def test_two_backends_are_compared_node_by_node_where_that_is_asked_for(
    write_model: WriteModel, folder: Path, tmp_path: Path
) -> None:
    path = write_model()
    options = ("--data", folder, "--between", "reference", "basic", "--json", tmp_path / "r.json")
    result = call(verify_command, path, *options)
    assert result.exit_code == 0, result.output
    (comparison,) = read_report(tmp_path / "r.json", VerifyReport).comparisons
    assert comparison.between == ("integer reference", "ONNX Runtime (basic)")
    assert (comparison.images, comparison.difference) == ((0, 1, 2, 3), None)
    assert "No difference between integer reference and ONNX Runtime (basic)" in " ".join(result.output.split())
    with pytest.raises(
        ConfigError, match="--between names 'onnx'; choose from reference, frozen, unfrozen, golden, dis"
    ):
        call(verify_command, path, "--data", folder, "--between", "reference", "onnx")
    with pytest.raises(
        ConfigError, match="there is no backend 'frozen PyTorch' to compare node by node; there are int"
    ):
        call(verify_command, path, "--data", folder, "--between", "reference", "frozen")


def test_golden_vectors_are_compared_with_one_backend(write_model: WriteModel, tmp_path: Path) -> None:
    path, golden = write_model(ties=True), tmp_path / "model.golden.npz"
    write_golden(path, np.random.default_rng(1).integers(0, 256, (9, 3, 8, 8), np.uint8), "noise", golden)
    assert call(verify_command, path, "--golden", golden, "--between", "golden", "reference").exit_code == 0
    result = call(verify_command, path, "--golden", golden)
    assert result.exit_code == 1
    assert result.output.count("(QLinearAdd)") == 4
    with pytest.raises(ConfigError, match="name it golden in --between"):
        call(verify_command, path, "--golden", golden, "--between", "all", "reference")
    with pytest.raises(ConfigError, match="give their file with --golden"):
        call(verify_command, path, "--between", "golden", "reference")


def test_verify_refuses_wrong_use_before_it_works(write_model: WriteModel, folder: Path, tmp_path: Path) -> None:
    renamed = tmp_path / "renamed"
    for old, new in zip(CLASSES, "abcde", strict=True):
        shutil.copytree(folder / "test" / old, renamed / "test" / new)
    with pytest.raises(ModelFileError, match=r"absent\.onnx"):
        call(verify_command, tmp_path / "absent.onnx")
    with pytest.raises(DataError, match="does not say which data set it was trained on; name one with --data"):
        call(verify_command, write_model())
    with pytest.raises(DataError, match="unknown data set 'imagenot'"):
        call(verify_command, write_model(), "--data", "imagenot")
    with pytest.raises(DataError, match=r"has the classes a, b, .* tells apart cat, dog"):
        call(verify_command, write_model(), "--data", renamed)
    with pytest.raises(ConfigError, match="--limit is 0; it must be at least 1"):
        call(verify_command, write_model(), "--data", folder, "--limit", 0)
    with pytest.raises(OutputError, match="is a folder"):
        call(verify_command, write_model(), "--data", folder, "--json", tmp_path)


def test_bench_shows_a_table_and_writes_json(write_model: WriteModel, tmp_path: Path) -> None:
    models = write_model("a.onnx"), write_model("b.onnx")
    options = ("--threads", "1,2", "--caches", "warm", "--repeats", 2, "--warmup", 1, "--json", tmp_path / "r.json")
    result = call(bench_command, *models, *options)
    assert result.exit_code == 0, result.output
    assert "median" in result.output
    report = read_report(tmp_path / "r.json", BenchReport)
    assert [(Path(row.model.path).name, row.threads) for row in report.latencies] == [
        ("a.onnx", 1),
        ("b.onnx", 1),
        ("a.onnx", 2),
        ("b.onnx", 2),
    ]
    assert all(len(row.samples_ns) == 2 for row in report.latencies)


def test_bench_refuses_an_output_that_is_a_folder(write_model: WriteModel, tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="is a folder"):
        call(bench_command, write_model(), "--json", tmp_path)


def test_bench_names_a_model_that_fails_and_keeps_the_others(write_model: WriteModel, tmp_path: Path) -> None:
    (tmp_path / "noise.onnx").write_bytes(b"\0" * 64)
    options = ("--caches", "warm", "--repeats", 2, "--json", tmp_path / "r.json")
    result = call(bench_command, tmp_path / "noise.onnx", write_model("a.onnx"), *options)
    assert result.exit_code == 2
    assert "cannot load" in result.output
    assert "median" in result.output
    report = read_report(tmp_path / "r.json", BenchReport)
    assert [Path(failure.path).name for failure in report.failures] == ["noise.onnx"]
    assert [Path(row.model.path).name for row in report.latencies] == ["a.onnx"]


def test_bench_shows_what_it_cannot_write_and_says_that_it_was_interrupted(
    write_model: WriteModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = ("--caches", "warm", "--repeats", 2, "--json", tmp_path / "r.json")
    call(bench_command, write_model("a.onnx"), *options)
    report = read_report(tmp_path / "r.json", BenchReport)
    monkeypatch.setattr("qil_deploy.runtime_tests.benchmark", lambda *_, **__: report)
    assert call(bench_command, "a.onnx", "--caches", "warm", "--repeats", 3).exit_code == 130
    shown: list[object] = []

    def refuse(*_: object) -> None:
        raise OutputError("the disk is full.")

    monkeypatch.setattr("qil_deploy.reports.write_report", refuse)
    monkeypatch.setattr("rich.console.Console.print", lambda _, *what, **__: shown.extend(what))
    with pytest.raises(OutputError, match="the disk is full"):
        call(bench_command, "a.onnx", *options)
    assert len(shown) >= 2


def test_json_content_is_valid_json_without_nan(write_model: WriteModel, tmp_path: Path) -> None:
    call(bench_command, write_model(), "--repeats", 1, "--caches", "warm", "--json", tmp_path / "r.json")

    def refuse(constant: str) -> float:
        raise AssertionError(constant)

    json.loads((tmp_path / "r.json").read_text(), parse_constant=refuse)


def test_threads_are_numbers_separated_by_commas() -> None:
    assert parse_threads("1,2, 4") == (1, 2, 4)
    for text in ("", "1,", "two", "1.5"):
        with pytest.raises(ConfigError, match="give whole numbers separated by commas"):
            parse_threads(text)
