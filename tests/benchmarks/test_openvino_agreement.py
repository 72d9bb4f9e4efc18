"""Top-1 of OpenVINO beside ONNX Runtime's."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

import openvino_agreement
from openvino_agreement import ZOO, Agreement, Classifier, agreement_rows, classify, export_int8_qdq
from qil_deploy.errors import CheckpointError
from qil_deploy.onnx_io.names import INPUT_NAME
from qil_deploy.runtime_tests.environment import describe_environment
from qil_deploy.runtime_tests.exported_model import ExportedModel


def test_classes_of_all_images_come_in_order(rng: np.random.Generator) -> None:
    images = rng.integers(0, 256, (1203, 1, 2, 2), np.uint8)

    def predict(batch: NDArray[np.uint8]) -> NDArray[np.uint8]:
        return batch.reshape(len(batch), -1)

    np.testing.assert_array_equal(classify(predict, images), images.reshape(1203, -1).argmax(1))


def test_differing_classes_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = export_int8_qdq(ZOO / "w4a4_frozen.safetensors", tmp_path / "w4a4.onnx")
    assert (model.format, model.input) == ("qdq", "uint8")

    def next_class_on_every_fourth(model: ExportedModel) -> Classifier:
        right = model.onnx_predictor()

        def predict(images: NDArray[np.uint8]) -> NDArray[np.float32]:
            logits = right(images)
            logits[::4] = np.roll(logits[::4], 1, axis=1)
            return logits

        return predict

    monkeypatch.setattr(openvino_agreement, "openvino_predictor", next_class_on_every_fourth)
    agreement = openvino_agreement.compare(model, "w4a4", 100)
    assert agreement.images == 100
    assert agreement.differing == 25
    assert agreement.share == 0.75
    assert agreement.onnxruntime_accuracy > 0.85
    assert 0.6 < agreement.openvino_accuracy < 0.8


@pytest.mark.parametrize(("differing", "verdict"), [(50, "met"), (51, "MISSED")])
def test_the_goal_is_a_share_of_all_images(differing: int, verdict: str) -> None:
    agreement = Agreement(
        model="w4a4", images=10_000, differing=differing, onnxruntime_accuracy=0.9, openvino_accuracy=0.8
    )
    report = openvino_agreement.OpenvinoReport(
        schema="", openvino="1", agreements=(agreement,), environment=describe_environment()
    )
    share = f"{100 - differing / 100:.2f} %"
    assert agreement_rows(report).cells == [
        ["w4a4", share, f"{differing} of 10,000", "90.00 %", "80.00 %", verdict],
    ]


def test_float_checkpoints_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"float\.safetensors contains a float network; pass a frozen one"):
        export_int8_qdq(ZOO / "float.safetensors", tmp_path / "float.onnx")


def test_openvino_reads_the_raw_images(tmp_path: Path) -> None:
    openvino = pytest.importorskip("openvino", reason="OpenVINO comes with the extra `bench`")
    model = export_int8_qdq(ZOO / "w4a4_frozen.safetensors", tmp_path / "w4a4.onnx")
    compiled = openvino.Core().compile_model(str(model.path), "CPU")
    (image,) = compiled.inputs
    assert image.get_any_name() == INPUT_NAME
    assert image.get_element_type() == openvino.Type.u8
    assert openvino_agreement.compare(model, "w4a4", 500).openvino_accuracy > 0.85
