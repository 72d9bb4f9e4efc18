"""A checkpoint says about its model what is true, and holds what the model computes at that moment."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import nn

from qil_deploy import CheckpointInfo, LayerOverride, QuantConfig, calibrate, change_bits, freeze, load_model
from qil_deploy import save_checkpoint as save
from qil_deploy.errors import CheckpointError
from qil_deploy.preprocessing import Preprocessing

if TYPE_CHECKING:
    from torch import fx

    from tests.trained_digits import Digits

CONFIG = QuantConfig(weight_bits=4, activation_bits=4)


def information(digits: Digits, **changed: Any) -> CheckpointInfo:  # noqa: ANN401 - any field
    info = CheckpointInfo(
        kind="quantized",
        model_name="small",
        model_arguments={},
        config=CONFIG,
        preprocessing=digits.preprocessing,
        data="digits",
        class_names=tuple("0123456789"),
        metrics={},
    )
    return info.model_copy(update=changed)


@pytest.fixture(scope="module")
def prepared(digits: Digits) -> fx.GraphModule:
    model = digits.prepare(4)
    calibrate(model, digits.batches())
    return model


def test_another_kind_than_the_model_is_refused(digits: Digits, prepared: fx.GraphModule, tmp_path: Path) -> None:
    models: dict[str, nn.Module] = {"float": digits.network, "quantized": prepared, "frozen": freeze(prepared)}
    path = tmp_path / "a.safetensors"
    for kind, model in models.items():
        for said in models:
            info = information(digits, kind=said)
            if said == kind:
                save(path, info, model)
                path.unlink()
            else:
                with pytest.raises(CheckpointError, match=f"info.kind is {said!r}, but the model is {kind}; say what"):
                    save(path, info, model)
    assert not path.exists()


def test_other_bits_than_the_model_has_are_refused(digits: Digits, prepared: fx.GraphModule, tmp_path: Path) -> None:
    """Interval parameters are scalars whatever the bits: the file would load, as another network."""
    config = QuantConfig(weight_bits=2, activation_bits=2, overrides={"conv3": LayerOverride(weight_bits=3)})
    lower = change_bits(prepared, digits.network, config, digits.batches(), input_grid=digits.preprocessing)
    for model in (lower, freeze(lower)):
        info = information(digits, kind="quantized" if model is lower else "frozen")
        with pytest.raises(
            CheckpointError, match=r"info\.config is QuantConfig\(weight_bits=4.* prepared with Quant.*=2"
        ):
            save(tmp_path / "a.safetensors", info, model)
        save(tmp_path / "b.safetensors", info.model_copy(update={"config": config}), model)
        _, loaded = load_model(tmp_path / "b.safetensors", lambda _name, _arguments: type(digits.network)())
        with torch.no_grad():
            torch.testing.assert_close(loaded(digits.fresh()), model(digits.fresh()), rtol=0, atol=0)


def test_other_preprocessing_than_the_model_was_prepared_with_is_refused(
    digits: Digits, prepared: fx.GraphModule, tmp_path: Path
) -> None:
    other = Preprocessing.from_statistics((1, 8, 8), 0.5, 0.25)
    with pytest.raises(
        CheckpointError, match=r"info\.preprocessing is .*, but the model was prepared with Preprocessing"
    ):
        save(tmp_path / "a.safetensors", information(digits, preprocessing=other), prepared)


def test_a_frozen_model_in_the_middle_of_training_is_saved_as_it_is_then(
    digits: Digits, prepared: fx.GraphModule, tmp_path: Path
) -> None:
    model = freeze(prepared).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    nn.functional.cross_entropy(model(digits.images[:64]), digits.labels[:64]).backward()
    optimizer.step()
    save(tmp_path / "a.safetensors", information(digits, kind="frozen"), model)
    assert model.training
    _, loaded = load_model(tmp_path / "a.safetensors", lambda _name, _arguments: type(digits.network)())
    x = digits.fresh()[:64]
    with torch.no_grad():
        assert torch.equal(loaded(x), model(x))
