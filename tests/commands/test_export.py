"""`export`: float, quantized and frozen checkpoints, every option, and refusals that leave no files."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx
import pytest

from qil_deploy.commands.predictors import checkpoint_predictors
from qil_deploy.datasets import load_images
from qil_deploy.onnx_io.model_file import read_model
from qil_deploy.reference import IntegerReference
from qil_deploy.runtime_tests import VerifyReport, read_report
from qil_deploy.runtime_tests.exported_model import read_exported_model

from .conftest import paper_checkpoint

if TYPE_CHECKING:
    from tests.command_line import Outcome
    from tests.commands.conftest import Run

Call = Callable[..., "Outcome"]
Refused = Callable[..., str]
FROZEN_NOW = "Freezing"


def metadata(path: Path) -> dict[str, object]:
    (entry,) = onnx.load(path).metadata_props
    content: dict[str, object] = json.loads(entry.value)
    return content


def test_a_frozen_checkpoint(run: Run, call: Call, tmp_path: Path) -> None:
    path = tmp_path / "new" / "model.onnx"
    outcome = call("export", run.frozen, "-o", path)
    assert (outcome.code, outcome.error) == (0, "")
    assert FROZEN_NOW not in outcome.out
    assert f"Wrote {path}, {path.stat().st_size:,} bytes." in outcome.out
    for line in ("int32", "int16", "ties", "float", "weights"):
        assert f" {line} " in outcome.out.split("Certificate line worst bound where ")[1]
    images = load_images("digits").first(50).images
    expected = checkpoint_predictors(run.frozen)["frozen PyTorch"](images)["logits"]
    np.testing.assert_array_equal(IntegerReference(read_model(path)).run(images), expected, strict=True)
    exported = read_exported_model(path)
    assert (exported.format, exported.input, exported.data) == ("qlinear", "uint8", "digits")
    assert exported.class_names == tuple("0123456789")
    assert [entry.name for entry in path.parent.iterdir()] == ["model.onnx"]


def test_brackets_in_a_path_are_printed_as_they_are(run: Run, call: Call, tmp_path: Path) -> None:
    path = tmp_path / "model[v2].onnx"
    outcome = call("export", run.frozen, "-o", path)
    assert f"Wrote {path}," in outcome.out


def test_a_quantized_checkpoint_is_frozen_on_the_way(run: Run, call: Call, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    outcome = call("export", run.quantized, "-o", path)
    assert outcome.code == 0
    assert FROZEN_NOW in outcome.out
    images = load_images("digits").first(50).images
    expected = checkpoint_predictors(run.quantized)["frozen PyTorch"](images)["logits"]
    np.testing.assert_array_equal(IntegerReference(read_model(path)).run(images), expected, strict=True)


def test_a_float_checkpoint_becomes_the_baseline(run: Run, call: Call, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    outcome = call("export", run.float, "-o", path)
    assert outcome.code == 0
    assert "Certificate" not in outcome.out
    exported = read_exported_model(path)
    assert (exported.format, exported.input, exported.data) == ("float", "float", "digits")


def test_every_option_reaches_the_file(run: Run, call: Call, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    options = ("--format", "qdq", "--weights", "int8", "--input", "float", "--opset", 17)
    assert call("export", run.frozen, "--output", path, *options).code == 0
    found = metadata(path)
    assert (found["format"], found["weights"], found["input"]) == ("qdq", "int8", "float")
    assert {entry.domain: entry.version for entry in onnx.load(path).opset_import} == {"": 17}


def test_what_freezing_costs_is_said_and_kept(run: Run, call: Call, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    outcome = call("export", run.quantized, "-o", path, "--limit", 100)
    assert "of 100 predictions on digits; accuracy was" in outcome.out
    kept = metadata(path)["freezing"]
    assert isinstance(kept, dict)
    assert (kept["data"], kept["images"]) == ("digits", 100)
    assert f"Freezing changed {kept['changed_predictions']} of 100" in outcome.out
    outcome = call("export", run.quantized, "-o", path, "--no-freezing-report")
    assert "Freezing was not measured" in outcome.out
    assert metadata(path)["freezing"] is None
    assert call("export", run.frozen, "-o", path).code == 0
    kept = metadata(path)["freezing"]
    assert isinstance(kept, dict)
    assert kept["images"] == len(load_images("digits", "test"))


def test_rewrites_are_switched_off(run: Run, call: Call, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    passes = ("space-to-depth", "channels-last", "matmul-nbits", "simplify")
    assert call("export", run.frozen, "-o", path).code == 0
    assert metadata(path)["passes"] == {
        "simplify": [], "channels_last": [], "space_to_depth": [], "matmul_nbits": []
    }  # fmt: skip
    assert call("export", run.frozen, "-o", path, *(part for name in passes for part in ("--without", name))).code == 0
    assert metadata(path)["passes"] == {}


def test_a_fixed_batch(run: Run, call: Call, tmp_path: Path) -> None:
    free, fixed = tmp_path / "free.onnx", tmp_path / "fixed.onnx"
    assert call("export", run.frozen, "-o", free).code == 0
    assert call("export", run.frozen, "-o", fixed, "--batch", 8, "--golden", 3).code == 0
    images = load_images("digits").first(20).images
    expected = read_exported_model(free).onnx_predictor()(images)
    np.testing.assert_array_equal(read_exported_model(fixed).onnx_predictor()(images), expected, strict=True)
    assert onnx.load(fixed).graph.input[0].type.tensor_type.shape.dim[0].dim_value == 8
    assert call("verify", fixed, "--limit", 20, "--checkpoint", run.frozen).code == 0
    assert call("verify", fixed, "--golden", tmp_path / "fixed.golden.npz").code == 0
    assert "8 images per run" in call("inspect", fixed).out


def test_golden_vectors_on_request(run: Run, call: Call, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    outcome = call("export", run.frozen, "-o", path, "--golden", 5)
    golden = tmp_path / "model.golden.npz"
    assert f"Wrote {golden}, {golden.stat().st_size:,} bytes: 5 images (digits, test images)." in outcome.out
    assert call("verify", path, "--golden", golden).code == 0


def test_a_paper_checkpoint_becomes_qdq(run: Run, call: Call, refused: Refused, tmp_path: Path) -> None:
    checkpoint, path = paper_checkpoint(run, tmp_path), tmp_path / "model.onnx"
    assert "is written as 'qdq'" in refused("export", checkpoint, "-o", path)
    for options in ((), ("--weights", "int8"), ("--input", "float"), ("--batch", 7)):
        assert call("export", checkpoint, "-o", path, "--format", "qdq", *options).code == 0
        assert metadata(path)["placement"] == "paper"
        assert metadata(path)["float_parts"]
        outcome = call("verify", path, "--checkpoint", checkpoint, "--json", tmp_path / "report.json")
        assert outcome.code == 0
        assert "Nothing had to be equal: the file has float parts." in outcome.out
        report = read_report(tmp_path / "report.json", VerifyReport)
        assert report.reference == "ONNX Runtime (disabled)"
        assert report.exact is None
        unfrozen = {backend.name: backend for backend in report.backends}["unfrozen PyTorch"]
        assert unfrozen.changed_predictions <= report.images / 50
    assert "has float parts" in refused("export", checkpoint, "-o", path, "--format", "qdq", "--golden", 3)
    assert not list(tmp_path.glob("*.npz"))


@pytest.mark.parametrize("option", ["--golden", "--limit", "--batch"])
def test_numbers_below_one(run: Run, refused: Refused, option: str, tmp_path: Path) -> None:
    assert "must be at least 1" in refused("export", run.frozen, "-o", tmp_path / "model.onnx", option, 0)
    assert not list(tmp_path.iterdir())


def test_the_module_export_is_the_command_export(run: Run, call: Call, tmp_path: Path) -> None:
    ours, theirs = tmp_path / "a.onnx", tmp_path / "b.onnx"
    assert call("export", run.frozen, "-o", ours, "--format", "qdq").code == 0
    command = [sys.executable, "-m", "qil_deploy.export", str(run.frozen), "-o", str(theirs), "--format", "qdq"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert ours.read_bytes() == theirs.read_bytes()


def test_a_checkpoint_that_is_missing_cut_or_something_else(
    run: Run, refused: Refused, copy_of: Callable[[Path], Path], tmp_path: Path
) -> None:
    output = tmp_path / "out" / "model.onnx"
    sentence = refused("export", tmp_path / "absent.safetensors", "-o", output)
    assert "absent.safetensors does not exist; train one with" in sentence
    damaged = copy_of(run.frozen)
    whole = damaged.read_bytes()
    for size in (0, 5, 100, len(whole) // 2, len(whole) - 1):
        damaged.write_bytes(whole[:size])
        sentence = refused("export", damaged, "-o", output)
        assert f"checkpoint {damaged} is damaged or truncated" in sentence
        assert "restore it from a copy or train again" in sentence
    damaged.write_text("this is no checkpoint at all, but long enough to look like one")
    assert "is damaged or truncated" in refused("export", damaged, "-o", output)
    assert not list(output.parent.glob("*"))


def test_an_output_that_cannot_be_written(run: Run, refused: Refused, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert "cannot write" in refused("export", run.frozen, "-o", tmp_path / "file" / "model.onnx")
    assert f"{tmp_path} is a folder; name a file to write." in refused("export", run.frozen, "-o", tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--opset", 20), "opset is 20; packed weights of this model need 21 to 25, or store them as int8."),
        (("--opset", 12, "--weights", "int8"), "opset is 12; int8 weights of this model need 13 to 25."),
    ],
)
def test_an_opset_that_is_too_old(
    run: Run, refused: Refused, options: tuple[object, ...], message: str, tmp_path: Path
) -> None:
    assert refused("export", run.frozen, "-o", tmp_path / "model.onnx", *options) == message
    assert not list(tmp_path.iterdir())


def test_unknown_options_are_refused(run: Run, call: Call, tmp_path: Path) -> None:
    for options in (("--format", "qoperator"), ("--weights", "int4"), ("--input", "int8"), ("--opset", "new")):
        outcome = call("export", run.frozen, "-o", tmp_path / "model.onnx", *options)
        assert outcome.code == 2
        assert f"Invalid value for '{options[0]}'" in outcome.error
        assert "Traceback" not in outcome.error
    assert call("export", run.frozen).code == 2
    assert not list(tmp_path.iterdir())


def test_options_of_quantized_models_are_refused_for_a_float_network(
    run: Run, refused: Callable[..., str], tmp_path: Path
) -> None:
    path = tmp_path / "float.onnx"
    assert "are for quantized ones" in refused("export", run.float, "-o", path, "--format", "qdq")
    assert not list(tmp_path.iterdir())


def test_an_output_may_not_be_the_checkpoint(
    run: Run, refused: Refused, copy_of: Callable[[Path], Path], tmp_path: Path
) -> None:
    checkpoint = copy_of(run.frozen)
    before, (linked, hard) = checkpoint.read_bytes(), (tmp_path / "link.onnx", tmp_path / "hard.onnx")
    linked.symlink_to(checkpoint)
    hard.hardlink_to(checkpoint)
    for output in (checkpoint, linked, hard, checkpoint.parent / ".." / checkpoint.parent.name / checkpoint.name):
        sentence = refused("export", checkpoint, "-o", output)
        assert sentence == (
            f"{output} cannot be the exported model: it is the checkpoint that is read; name another file to write."
        )
    assert checkpoint.read_bytes() == before


def test_golden_vectors_may_not_be_the_checkpoint(
    run: Run, refused: Refused, copy_of: Callable[[Path], Path], tmp_path: Path
) -> None:
    checkpoint = copy_of(run.frozen)
    renamed = checkpoint.rename(tmp_path / "model.golden.npz")
    sentence = refused("export", renamed, "-o", tmp_path / "model.onnx", "--golden", 2)
    assert sentence == (
        f"{renamed} cannot be its golden vectors: it is the checkpoint that is read; name another file to write."
    )
    assert not (tmp_path / "model.onnx").exists()


def test_whatever_golden_vectors_need_is_looked_at_before_anything_is_written(
    run: Run, refused: Refused, tmp_path: Path
) -> None:
    path, folder = tmp_path / "model.onnx", tmp_path / "model.golden.npz"
    folder.mkdir()
    assert f"{folder} is a folder; name a file to write." in refused("export", run.frozen, "-o", path, "--golden", 2)
    folder.rmdir()
    for checkpoint in (run.frozen, run.quantized):
        sentence = refused("export", checkpoint, "-o", path, "--golden", 2, "--data", tmp_path / "none")
        assert "none" in sentence
    assert "none" in refused("export", run.quantized, "-o", path, "--data", tmp_path / "none")
    assert not list(tmp_path.iterdir())
