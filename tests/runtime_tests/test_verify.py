from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from qil_deploy.datasets import ImageSet
from qil_deploy.errors import ConfigError, DataError
from qil_deploy.onnx_io.model_file import read_model
from qil_deploy.reference import IntegerReference
from qil_deploy.runtime_tests import BackendResult, BenchReport, VerifyReport, read_report, write_report
from qil_deploy.runtime_tests import verify as verify_data
from qil_deploy.runtime_tests.backends import FROZEN, UNFROZEN
from qil_deploy.runtime_tests.exported_model import read_exported_model
from qil_deploy.runtime_tests.sessions import OPTIMIZATION_LEVELS

from .verified_images import SCALE, ZERO_POINT, Images, Labels, Logits, WriteModel, verify


def reference_logits(path: Path, images: Images) -> Logits:
    """Return the logits of a model with uint8 input."""
    return IntegerReference(read_model(path)).run(images)


def result_of(report: VerifyReport, name: str) -> BackendResult:
    (found,) = [backend for backend in report.backends if backend.name == name]
    return found


@pytest.mark.parametrize("input_type", ["uint8", "float"])
def test_onnx_runtime_equals_the_reference_at_every_level(
    write_model: WriteModel, images: Images, labels: Labels, input_type: str
) -> None:
    report = verify(write_model(input=input_type), images, labels, batch_size=17)
    assert report.exact
    assert [backend.name for backend in report.backends] == [f"ONNX Runtime ({level})" for level in OPTIMIZATION_LEVELS]
    for backend in report.backends:
        assert backend.must_equal
        assert (backend.differing_logits, backend.changed_predictions, backend.not_finite) == (0, 0, 0)
        assert backend.largest_difference == 0.0
        assert backend.accuracy == report.reference_accuracy
    assert report.warnings == ()


def test_the_path_may_be_text_and_the_images_a_set(write_model: WriteModel, images: Images, labels: Labels) -> None:
    path = write_model()
    data = ImageSet(images=images, labels=labels, class_names=("cat", "dog", "fox", "hen", "owl"))
    assert verify_data(str(path), data) == verify(path, images, labels)


def test_accuracy_is_the_share_of_right_first_choices(write_model: WriteModel, images: Images) -> None:
    path = write_model()
    labels = reference_logits(path, images).argmax(axis=1)
    assert len(set(labels.tolist())) > 1
    assert verify(path, images, labels).reference_accuracy == 1.0
    labels[:15] = (labels[:15] + 1) % 5
    report = verify(path, images, labels)
    assert report.reference_accuracy == 45 / 60
    assert {backend.accuracy for backend in report.backends} == {45 / 60}


@pytest.mark.parametrize("batch_size", [7, 250])
def test_of_a_float_baseline_the_accuracy_is_measured_and_nothing_compared(
    write_model: WriteModel, images: Images, tmp_path: Path, batch_size: int
) -> None:
    path = write_model(format="float", input="float")
    logits = read_exported_model(path).onnx_predictor()(images)
    labels = logits.argmax(axis=1)
    assert len(set(labels.tolist())) > 1
    labels[:15] = (labels[:15] + 1) % 5
    report = verify(path, images, labels, batch_size=batch_size, threads=2)
    assert (report.format, report.reference, report.reference_accuracy) == ("float", "ONNX Runtime (all)", 45 / 60)
    assert (report.exact, report.backends, report.comparisons, report.warnings) == (None, (), (), ())
    write_report(tmp_path / "report.json", report)
    assert read_report(tmp_path / "report.json", VerifyReport) == report
    same = verify(path, np.repeat(images[:1], 60, axis=0), labels)
    assert same.warnings == ("ONNX Runtime (all) returns the same logits for every image: the accuracy says little.",)


@pytest.mark.parametrize("batch_size", [1, 7, 60, 1000])
def test_the_batch_size_changes_nothing_but_itself(
    write_model: WriteModel, images: Images, labels: Labels, batch_size: int
) -> None:
    path = write_model()
    report, whole = verify(path, images, labels, batch_size=batch_size), verify(path, images, labels)
    assert (report.backends, report.reference_accuracy) == (whole.backends, whole.reference_accuracy)


def test_every_image_reaches_every_backend_once_in_order(
    write_model: WriteModel, images: Images, labels: Labels
) -> None:
    path = write_model()
    seen: list[Images] = []
    steps: list[tuple[int, int]] = []

    def record(batch: Images) -> Logits:
        seen.append(batch)
        return reference_logits(path, batch)

    verify(
        path,
        images,
        labels,
        others={"recorder": record},
        batch_size=25,
        progress=lambda done, total: steps.append((done, total)),
    )
    assert [len(batch) for batch in seen] == [25, 25, 10]
    np.testing.assert_array_equal(np.concatenate(seen), images)
    assert steps == [(25, 60), (50, 60), (60, 60)]


def test_a_float_model_is_given_normalised_images(write_model: WriteModel, images: Images, labels: Labels) -> None:
    path = write_model(input="float")
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])

    def by_hand(batch: Images) -> Logits:
        normalised = (batch.astype(np.float32) - ZERO_POINT) * SCALE
        return np.asarray(session.run(None, {"image": normalised})[0])

    assert verify(path, images, labels, others={"by hand": by_hand}).exact


def test_one_wrong_logit_in_one_image_is_found(write_model: WriteModel, images: Images, labels: Labels) -> None:
    path = write_model()

    def wrong(batch: Images) -> Logits:
        logits = reference_logits(path, batch)
        hit = (batch == images[33]).all(axis=(1, 2, 3))
        logits[hit, 2] = np.nextafter(logits[hit, 2], np.float32(np.inf))
        return logits

    report = verify(path, images, labels, others={FROZEN: wrong}, batch_size=20)
    assert not report.exact
    found = result_of(report, FROZEN)
    assert found.must_equal
    assert (found.differing_logits, found.changed_predictions) == (1, 0)
    assert 0 < found.largest_difference < 1e-5
    assert all(backend.differing_logits == 0 for backend in report.backends if backend.name != FROZEN)


def test_differences_are_counted_and_measured(write_model: WriteModel, images: Images, labels: Labels) -> None:
    path = write_model()
    truth = reference_logits(path, images)

    def swapped(batch: Images) -> Logits:
        return reference_logits(path, batch)[:, ::-1].copy()

    found = result_of(verify(path, images, labels, others={"swapped": swapped}, batch_size=13), "swapped")
    assert found.differing_logits == (truth != truth[:, ::-1]).sum()
    assert found.changed_predictions == (truth.argmax(1) != truth[:, ::-1].argmax(1)).sum()
    assert found.largest_difference == np.abs(truth.astype(np.float64) - truth[:, ::-1]).max()


def test_nan_counts_as_differing_and_as_no_prediction(write_model: WriteModel, images: Images) -> None:
    path = write_model()
    labels = reference_logits(path, images).argmax(axis=1)

    def broken(batch: Images) -> Logits:
        logits = reference_logits(path, batch)
        logits[:, labels[0]] = np.nan
        logits[0, labels[0] - 1] = np.inf
        return logits

    report = verify(path, images, labels, others={"broken": broken})
    found = result_of(report, "broken")
    assert not report.exact
    assert (found.differing_logits, found.not_finite) == (61, 61)
    assert (found.accuracy, found.changed_predictions) == (0.0, 60)
    assert found.largest_difference == 0.0
    json.dumps(found.largest_difference, allow_nan=False)


def test_the_unfrozen_model_is_reported_and_may_differ(write_model: WriteModel, images: Images, labels: Labels) -> None:
    path = write_model()
    others = {
        FROZEN: lambda batch: reference_logits(path, batch),
        UNFROZEN: lambda batch: reference_logits(path, batch) + np.float32(1),
    }
    report = verify(path, images, labels, others=others)
    assert report.exact
    assert result_of(report, UNFROZEN).differing_logits == 300
    assert not result_of(report, UNFROZEN).must_equal
    assert result_of(report, FROZEN).must_equal
    assert not verify(path, images, labels, others=others, must_equal=[UNFROZEN]).exact


def test_a_difference_of_onnx_runtime_is_found(write_model: WriteModel, images: Images, labels: Labels) -> None:
    report = verify(write_model(ties=True), images, labels)
    assert not report.exact
    for backend in report.backends:
        assert backend.must_equal
        assert backend.differing_logits > 0
        assert backend.largest_difference > 0


@pytest.mark.parametrize("input_type", ["uint8", "float"])
def test_for_qdq_only_the_default_level_has_to_be_equal(
    write_model: WriteModel, images: Images, labels: Labels, input_type: str
) -> None:
    path = write_model(format="qdq", input=input_type, ties=True)
    report = verify(path, images, labels)
    assert report.exact
    required = [backend.name for backend in report.backends if backend.must_equal]
    assert required == ["ONNX Runtime (all)"]
    assert result_of(report, "ONNX Runtime (all)").differing_logits == 0
    assert result_of(report, "ONNX Runtime (disabled)").differing_logits > 0
    strict = verify(path, images, labels, must_equal=["ONNX Runtime (disabled)"])
    assert not strict.exact


def test_qdq_without_its_default_level_has_nothing_to_equal(
    write_model: WriteModel, images: Images, labels: Labels
) -> None:
    with pytest.raises(ConfigError, match=r"nothing in this verification of a qdq model .* add level 'all'"):
        verify(write_model(format="qdq"), images, labels, levels=["disabled", "basic"])


def test_the_report_returns_from_json(write_model: WriteModel, images: Images, labels: Labels, tmp_path: Path) -> None:
    path = write_model()
    others = {UNFROZEN: lambda batch: reference_logits(path, batch) * np.float32(1.5)}
    report = verify(path, images, labels, others=others, threads=2, batch_size=30)
    write_report(tmp_path / "report.json", report)
    assert read_report(tmp_path / "report.json", VerifyReport) == report
    content = json.loads((tmp_path / "report.json").read_text())
    assert content["schema"] == "qil_deploy.verify/2"
    assert (content["threads"], content["batch_size"], content["images"], content["classes"]) == (
        2,
        30,
        60,
        5,
    )
    assert content["model"]["bytes"] == path.stat().st_size
    with pytest.raises(DataError, match=r"has schema 'qil_deploy\.verify/2'; 'qil_deploy\.bench/[0-9]' was expected"):
        read_report(tmp_path / "report.json", BenchReport)


def test_logits_that_are_the_same_for_every_image_are_pointed_out(
    write_model: WriteModel, images: Images, labels: Labels
) -> None:
    same = np.repeat(images[:1], len(images), axis=0)
    path = write_model()
    assert "the same logits for every image" in verify(path, same, labels, batch_size=7).warnings[0]
    different_first = np.concatenate([images[1:2], same[1:]])
    assert verify(path, different_first, labels, batch_size=1).warnings == ()
    different_early = np.concatenate([same[:1], images[1:2], same[2:]])
    assert verify(path, different_early, labels, batch_size=1).warnings == ()
