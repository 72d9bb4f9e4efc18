"""A prepared or frozen model is found inside transparent wrappers; anything else is refused with a remedy."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
from torch import Tensor, distributed, fx, nn
from torch.nn.parallel import DataParallel, DistributedDataParallel
from torch.optim.swa_utils import AveragedModel

from qil_deploy.checkpoint import CheckpointInfo, load_model, save_checkpoint
from qil_deploy.config import QuantConfig
from qil_deploy.errors import UnsupportedModelError
from qil_deploy.integers.freeze_model import freeze
from qil_deploy.network.bit_widths import change_bits
from qil_deploy.network.calibration import calibrate
from qil_deploy.network.preparation import prepare
from qil_deploy.network.unwrap import prepared_model, unwrapped

if TYPE_CHECKING:
    from tests.trained_digits import Digits


@pytest.fixture(scope="module")
def calibrated(digits: Digits) -> fx.GraphModule:
    model = digits.prepare(4)
    calibrate(model, digits.batches())
    return model.eval()


@pytest.fixture(scope="module")
def frozen(calibrated: fx.GraphModule) -> fx.GraphModule:
    return freeze(calibrated)


@pytest.fixture
def one_process() -> Iterator[None]:
    """A process group of this process alone, which DistributedDataParallel needs."""
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)  # type: ignore[attr-defined] # torch exports it
    yield
    distributed.destroy_process_group()


def compiled(model: nn.Module) -> nn.Module:
    result = torch.compile(model)
    assert isinstance(result, nn.Module)
    return result


WRAPPERS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "data parallel": DataParallel,
    "distributed": DistributedDataParallel,
    "compiled": compiled,
    "averaged": AveragedModel,
    "alone in a sequential": nn.Sequential,
    "all of them": lambda model: nn.Sequential(compiled(DistributedDataParallel(DataParallel(model)))),
}


@pytest.mark.usefixtures("one_process")
@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_every_function_takes_a_wrapped_model(
    wrapper: str, digits: Digits, calibrated: fx.GraphModule, tmp_path: Path
) -> None:
    wrap = WRAPPERS[wrapper]
    x = digits.fresh()[:32]
    fresh = digits.prepare(4)
    calibrate(wrap(fresh), digits.batches())
    model = wrap(calibrated)
    with torch.no_grad():
        if wrapper != "averaged":  # it holds a copy, which was not calibrated
            torch.testing.assert_close(fresh.eval()(x), calibrated(x), rtol=0, atol=0)
        torch.testing.assert_close(freeze(model)(x), freeze(calibrated)(x), rtol=0, atol=0)
        config = QuantConfig(weight_bits=2, activation_bits=2)
        lower = change_bits(model, digits.network, config, digits.batches(), input_grid=digits.preprocessing)
        expected = change_bits(calibrated, digits.network, config, digits.batches(), input_grid=digits.preprocessing)
        torch.testing.assert_close(lower(x), expected(x), rtol=0, atol=0)
        path = tmp_path / "wrapped.safetensors"
        save_checkpoint(path, information(digits), model)
        _, loaded = load_model(path, lambda _name, _arguments: type(digits.network)())
        torch.testing.assert_close(loaded(x), calibrated(x), rtol=0, atol=0)


def information(digits: Digits) -> CheckpointInfo:
    return CheckpointInfo(
        kind="quantized",
        model_name="small",
        model_arguments={},
        config=QuantConfig(weight_bits=4, activation_bits=4),
        preprocessing=digits.preprocessing,
        data="digits",
        class_names=tuple("0123456789"),
        metrics={},
    )


@pytest.mark.usefixtures("one_process")
@pytest.mark.parametrize("wrapper", ["data parallel", "distributed", "compiled", "averaged"])
def test_a_wrapped_float_network_is_prepared(wrapper: str, digits: Digits) -> None:
    network = WRAPPERS[wrapper](digits.network)
    model = prepare(network, QuantConfig(), digits.images[:1], input_grid=digits.preprocessing)
    assert model.state_dict().keys() == digits.prepare(4).state_dict().keys()


def test_a_sequential_of_a_float_network_stays(digits: Digits, calibrated: fx.GraphModule) -> None:
    """Its layers are named after it; and a second module after a prepared model is no concern of its."""
    alone, followed = nn.Sequential(digits.network), nn.Sequential(calibrated, nn.Softmax(1))
    assert unwrapped(alone) is alone
    assert unwrapped(followed) is followed
    assert unwrapped(nn.Sequential(calibrated)) is calibrated


class Holder(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.network = model

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.network(x)
        return logits


def test_what_is_no_prepared_model_is_refused_with_a_way_out(
    digits: Digits, calibrated: fx.GraphModule, frozen: fx.GraphModule
) -> None:
    retraced = fx.GraphModule(calibrated, calibrated.graph)
    cases: list[tuple[object, str]] = [
        (digits.network, r"freeze needs a model from prepare, but got 'SmallNetwork'; make one: model = prepare\("),
        (Holder(calibrated), "but got 'Holder', which does more than .* give the model inside it, 'network'"),
        (nn.Sequential(calibrated, nn.Softmax(1)), "but got 'Sequential', which does more .* inside it, '0'"),
        (retraced, "but got another graph, for example of a model that was pickled .* qil_deploy.load_model"),
        (calibrated.state_dict(), "but got a dict; if it is a state_dict, load it into a model"),
        (None, "but got 'NoneType'"),
        (frozen, "the model is frozen already; give freeze the prepared model it came from"),
        (digits.prepare(4), r"intervals were never set; call calibrate\(model, batches\), or train it, before freeze"),
    ]
    for model, message in cases:
        with pytest.raises(UnsupportedModelError, match=message):
            freeze(model)  # type: ignore[arg-type] # the point of the test
    with pytest.raises(UnsupportedModelError, match="calibrate needs a model from prepare, but got 'SmallNetwork'"):
        calibrate(digits.network, digits.batches())
    with pytest.raises(UnsupportedModelError, match="is frozen already; give calibrate the prepared model"):
        calibrate(frozen, digits.batches())
    with pytest.raises(UnsupportedModelError, match="export_onnx needs a model from prepare or freeze, but got"):
        prepared_model(digits.network, "export_onnx")
    for either in (calibrated, frozen):
        assert prepared_model(either, "export_onnx") is either


@pytest.mark.parametrize("wrapper", ["none", "compiled", "alone in a sequential"])
def test_a_network_is_prepared_once(
    wrapper: str, digits: Digits, calibrated: fx.GraphModule, frozen: fx.GraphModule
) -> None:
    def wrap(model: nn.Module) -> nn.Module:
        return model if wrapper == "none" else WRAPPERS[wrapper](model)

    for model, message in (
        (wrap(calibrated), "this one is prepared already; give it the network that was prepared, or call change_bits"),
        (wrap(frozen), "this one is frozen already; give it the network that was prepared"),
        (Holder(calibrated), "this one is prepared already"),
    ):
        with pytest.raises(UnsupportedModelError, match=f"prepare needs a float network, but {message}"):
            prepare(model, QuantConfig(), digits.images[:1], input_grid=digits.preprocessing)


def test_nan_and_infinity_are_refused_before_a_model_is_used(digits: Digits, calibrated: fx.GraphModule) -> None:
    model = digits.prepare(4)
    model.load_state_dict(calibrated.state_dict())
    with torch.no_grad():
        model.get_parameter("conv2.weight")[0, 0, 0, 0] = float("nan")
    for use in (lambda: freeze(model), lambda: calibrate(model, digits.batches()), lambda: prepared_model(model, "x")):
        with pytest.raises(
            UnsupportedModelError, match=r"the model: tensor 'conv2\.weight' has NaN or infinity in 1 of"
        ):
            use()


@pytest.mark.parametrize("value", [-1e30, -200.0, -80.0, 80.0, 200.0, 1e30])
@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "conv2.weight_quantizer.log_distance",
            "'conv2.weight_quantizer' is out of range: half the width of its inter",
        ),
        ("intervals.conv2.log_distance", "'intervals.conv2' is out of range: half the width of its interval is"),
        ("ranges.relu.log_step", "'ranges.relu' is out of range: its step is"),
        ("fc.log_output_scale", "'fc' is out of range: its output scale is"),
    ],
)
def test_scales_that_left_float32_are_refused(
    name: str, message: str, value: float, digits: Digits, calibrated: fx.GraphModule
) -> None:
    """Their logarithms are finite, but the scales, or values computed from them, are zero or infinite."""
    model = digits.prepare(4)
    model.load_state_dict(calibrated.state_dict())
    with torch.no_grad():
        model.get_parameter(name).fill_(value)
    with pytest.raises(UnsupportedModelError, match=message):
        freeze(model)


def test_a_frozen_model_in_training_mode_is_folded_before_it_is_used(
    digits: Digits, calibrated: fx.GraphModule
) -> None:
    """Its integers were those of the parameters before training: exported or saved, they would be another model's."""
    uses: list[Callable[[nn.Module], object]] = [
        lambda model: prepared_model(model, "x"),
        lambda model: model.state_dict(),
    ]
    for use in uses:
        model = freeze(calibrated).train()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
        nn.functional.cross_entropy(model(digits.images[:64]), digits.labels[:64]).backward()
        optimizer.step()
        before = model.get_buffer("conv2.bias").clone()
        use(model)
        assert model.training
        folded = model.get_buffer("conv2.bias").clone()
        assert not torch.equal(folded, before)
        model.eval()
        assert torch.equal(model.get_buffer("conv2.bias"), folded)
