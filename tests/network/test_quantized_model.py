"""A prepared model beyond its graph: it is calibrated before use, however it is copied or wrapped."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest
import torch
from torch import Tensor, distributed, fx, nn
from torch.nn.parallel import DataParallel
from torch.optim.swa_utils import AveragedModel

from qil_deploy.config import QuantConfig
from qil_deploy.errors import DataError, UnsupportedModelError
from qil_deploy.integers.freeze_model import freeze
from qil_deploy.network.calibration import calibrate
from qil_deploy.network.preparation import prepare
from qil_deploy.network.quantized_model import FrozenModel, PreparedModel
from qil_deploy.preprocessing import Preprocessing

if TYPE_CHECKING:
    from tests.trained_digits import Digits


def recompiled(model: fx.GraphModule) -> nn.Module:
    model.recompile()
    return model


def with_loaded_state(model: fx.GraphModule) -> nn.Module:
    model.load_state_dict({name: tensor.clone() for name, tensor in model.state_dict().items()})
    return model


COPIES: dict[str, Callable[[fx.GraphModule], nn.Module]] = {
    "itself": lambda model: model,
    "deep copy": copy.deepcopy,
    "copy of a copy": lambda model: copy.deepcopy(copy.deepcopy(model)),
    "shallow copy": copy.copy,
    "recompiled": recompiled,
    "loaded state": with_loaded_state,
    "averaged": AveragedModel,
    "copy inside another": lambda model: copy.deepcopy(nn.Sequential(model)),
    "data parallel": DataParallel,
}


def state(model: nn.Module) -> list[Tensor]:
    return [tensor.clone() for tensor in model.state_dict().values() if tensor.dtype == torch.float32]


@pytest.mark.parametrize("kind", COPIES)
def test_every_copy_calibrates_on_its_first_training_batch(kind: str, digits: Digits) -> None:
    by_hand = digits.prepare(4).train()
    calibrate(by_hand, [digits.images[:64]])
    by_hand(digits.images[:64])
    model = COPIES[kind](digits.prepare(4)).train()
    if kind == "averaged":  # which counts its updates, too
        model = model.module  # type: ignore[assignment] # a module
    model(digits.images[:64])
    for found, expected in zip(state(model), state(by_hand), strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=0)


@pytest.mark.parametrize("kind", COPIES)
def test_no_copy_is_evaluated_before(kind: str, digits: Digits) -> None:
    model = COPIES[kind](digits.prepare(4)).eval()
    with pytest.raises(UnsupportedModelError, match=r"intervals were never set, .* call calibrate\(model, batches\)"):
        model(digits.images[:64])


def test_copies_keep_their_class(digits: Digits) -> None:
    model = digits.prepare(4)
    calibrate(model, digits.batches())
    for each, kind in ((model, PreparedModel), (freeze(model), FrozenModel)):
        for copied in (copy.deepcopy(each), copy.copy(each)):
            assert isinstance(copied, kind)
            assert copied.meta.keys() == each.meta.keys()
    assert isinstance(freeze(copy.deepcopy(copy.copy(model))), FrozenModel)


def test_a_model_is_not_pickled_whole(digits: Digits) -> None:
    model = digits.prepare(4)
    calibrate(model, digits.batches())
    for each in (model, freeze(model)):
        with pytest.raises(UnsupportedModelError, match="cannot be pickled whole; write it with"):
            torch.save(each, io.BytesIO())  # noqa: TID251 - that it is refused is the point
        torch.save(each.state_dict(), io.BytesIO())  # noqa: TID251 - tensors alone may be


def test_several_processes_are_told_to_calibrate_before(digits: Digits, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each would set its intervals from its own images, and they would differ from then on."""
    model = digits.prepare(4).train()
    monkeypatch.setattr(distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(distributed, "get_world_size", lambda: 2)
    with pytest.raises(
        UnsupportedModelError, match=r"call calibrate\(model, batches\), with the same batches in every"
    ):
        model(digits.images[:64])
    calibrate(model, digits.batches())
    model(digits.images[:64])


def test_the_first_batch_has_to_be_one_that_intervals_can_be_set_from(digits: Digits) -> None:
    model = digits.prepare(4).train()
    bad = digits.images[:64].clone()
    bad[3, 0, 2, 2] = float("nan")
    with pytest.raises(DataError, match="calibration from the first batch: batch 0 has NaN or infinity in 1 of 4,096"):
        model(bad)
    assert not bool(model.get_buffer("calibrated"))


class Pooled(nn.Module):
    """A network whose BatchNorm sees one pixel per image."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.fc = nn.Conv2d(1, 4, 8), nn.BatchNorm2d(4), nn.Linear(4, 10)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.fc(torch.relu(self.norm(self.conv(x))).flatten(1))
        return logits


def test_a_compiled_model_does_the_same(digits: Digits) -> None:
    """On a network of two layers, since compilation takes long."""
    x = digits.images[:64]
    prepared = prepare(Pooled(), QuantConfig(), x[:1], input_grid=digits.preprocessing)
    expected = copy.deepcopy(prepared)
    model: nn.Module = torch.compile(prepared, backend="eager")  # type: ignore[assignment] # a module, as it was
    with pytest.raises(UnsupportedModelError, match="intervals were never set"):
        model.eval()(x)
    torch.testing.assert_close(model.train()(x), expected.train()(x), rtol=0, atol=0)
    assert bool(prepared.get_buffer("calibrated"))


def test_a_batch_of_one_image_is_refused_where_a_norm_would_see_one_value(digits: Digits) -> None:
    message = r"of a batch of one image, 'norm' \(BatchNorm2d\) sees one value per channel.*drop_last=True"
    model = prepare(Pooled(), QuantConfig(), digits.images[:1], input_grid=digits.preprocessing)
    with pytest.raises(DataError, match=f"calibration: {message}"):
        calibrate(model, [digits.images[:8], digits.images[:1]])
    assert not bool(model.get_buffer("calibrated"))
    with pytest.raises(DataError, match=f"training: {message}"):
        model.train()(digits.images[:1])
    calibrate(model, digits.batches())
    with pytest.raises(DataError, match=f"training: {message}"):
        model.train()(digits.images[:1])
    model.train()(digits.images[:2])
    model.get_submodule("norm").eval()  # kept in evaluation mode, it learns nothing from the batch
    model(digits.images[:1])
    model.eval()(digits.images[:1])
    freeze(model).train()(digits.images[:1])


def test_a_batch_of_one_image_is_fine_where_norms_see_many_pixels(digits: Digits) -> None:
    model = digits.prepare(4).train()
    model(digits.images[:1])
    assert bool(model.get_buffer("calibrated"))
    stays = prepare(Pooled(), QuantConfig(output_scales="all"), digits.images[:1], input_grid=digits.preprocessing)
    calibrate(stays, [digits.images[:1]])  # its BatchNorm keeps its statistics


def test_average_pools_stay_what_they_are_whatever_is_unfrozen() -> None:
    network = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(36, 2))
    pixels = Preprocessing(channels=1, height=8, width=8, scale=0.01, zero_point=100)
    model = prepare(network, QuantConfig(), torch.zeros(1, 1, 8, 8), input_grid=pixels)
    names = dict(model.requires_grad_(True).named_parameters())
    assert not [name for name in names if name.startswith("2.")]
    assert {name for name in model.state_dict() if name.startswith("2.")} == {
        "2.weight", "2.log_output_scale", "2.weight_quantizer.log_distance", "2.weight_quantizer.center_ratio",
    }  # fmt: skip
