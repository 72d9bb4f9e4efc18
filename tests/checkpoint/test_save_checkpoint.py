"""A checkpoint describes its model correctly, and holds the model's state of that moment."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from qil_deploy import CheckpointInfo, LayerOverride, QuantConfig, calibrate, change_bits, freeze, load_model, prepare
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
                with pytest.raises(
                    CheckpointError, match=f"info.kind is {said!r}, but the model is {kind}; set it to that"
                ):
                    save(path, info, model)
    assert not path.exists()


def test_other_bits_than_the_model_has_are_refused(digits: Digits, prepared: fx.GraphModule, tmp_path: Path) -> None:
    """Interval parameters are scalars at any width: the file would load as a different network."""
    config = QuantConfig(weight_bits=2, activation_bits=2, overrides={"conv3": LayerOverride(weight_bits=3)})
    lower = change_bits(prepared, digits.network, config, digits.batches(), input_grid=digits.preprocessing)
    for model in (lower, freeze(lower)):
        info = information(digits, kind="quantized" if model is lower else "frozen")
        with pytest.raises(
            CheckpointError,
            match=r"info\.config has weight_bits=4, act.*prepared with weight_bits=2, act.*overrides=.*; set them",
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


class Maps(nn.Module):
    """A network that returns a map, optionally a smaller one."""

    def __init__(self, several: bool, num_classes: int) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, num_classes, 1)
        self.several = several

    def forward(self, x: Tensor) -> object:
        y = self.head(torch.relu(self.conv(x)))
        return {"fine": y, "coarse": nn.functional.max_pool2d(y, 2)} if self.several else y


@pytest.mark.parametrize("several", [False, True])
def test_networks_of_maps_need_no_class_names(digits: Digits, several: bool, tmp_path: Path) -> None:
    arguments = {"several": several, "num_classes": 3}
    network = Maps(several, 3)
    x = digits.images[:32]
    model = prepare(network, CONFIG, x[:1], input_grid=digits.preprocessing)
    calibrate(model, [x])
    frozen = freeze(model)
    info = information(digits, model_name="maps", class_names=(), model_arguments=arguments)
    for kind, saved in (("float", network), ("quantized", model), ("frozen", frozen)):
        path = tmp_path / f"{kind}.safetensors"
        config = None if kind == "float" else CONFIG
        save(path, info.model_copy(update={"kind": kind, "config": config}), saved)
        found, again = load_model(path, lambda _, arguments: Maps(**arguments))
        assert found.class_names == ()
        with torch.no_grad():
            for one, other in zip(tree_leaves(again.eval()(x)), tree_leaves(saved.eval()(x)), strict=True):
                torch.testing.assert_close(one, other, rtol=0, atol=0)
    with pytest.raises(ValidationError, match="num_classes is 1000000, not a whole number up to 65,536"):
        CheckpointInfo.model_validate(info.model_dump() | {"model_arguments": {"num_classes": 10**6}})


def test_a_row_of_logits_needs_its_names(digits: Digits, prepared: fx.GraphModule, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"info\.class_names is empty, but the model returns 10 logits"):
        save(tmp_path / "a.safetensors", information(digits, class_names=()), prepared)
    assert not list(tmp_path.iterdir())
