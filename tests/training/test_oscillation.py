"""Weights that oscillate: counted as NumPy counts them, frozen at codes that stay, dampened towards their codes."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, fx, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from qil_deploy.config import LayerBits, QuantConfig
from qil_deploy.errors import ConfigError
from qil_deploy.integers import freeze
from qil_deploy.network import QuantConv2d, QuantLayer, calibrate, prepare, weight_to_quantize
from qil_deploy.network.layers import quantize_layer
from qil_deploy.quantizers import METHODS, QilWeightQuantizer, interval_parameters
from qil_deploy.training import Oscillation, recipe_optimizers

if TYPE_CHECKING:
    from tests.trained_digits import Digits

BITS = (2, 3, 4)
# Method, exponent, and whether each channel has a size of its own.
KINDS = [(method, gamma, sizes) for method in METHODS for gamma in (False, True) for sizes in (False, True)]
KINDS = [kind for kind in KINDS if kind[0] == "qil" or not kind[1]]


def quantized(bits: int, method: str = "qil", gamma: bool = False, sizes: bool = False) -> QuantLayer:
    """Return a convolution of 24 channels, some weights of which are pruned and some clipped."""
    conv = nn.Conv2d(6, 24, 3, bias=False)
    with torch.no_grad():
        conv.weight.mul_(torch.linspace(0.3, 2, 24)[:, None, None, None])
    config = QuantConfig(
        weight_bits=bits, method=method, train_gamma=gamma, output_scales="channels" if sizes else "all"
    )
    layer = quantize_layer(
        conv, LayerBits(weight_bits=bits, activation_bits=4), normalized=True, scaled=True, config=config
    )
    quantizer = layer.weight_quantizer
    if isinstance(quantizer, QilWeightQuantizer):
        quantizer.set_thresholds(0.02, 0.7 * quantizer.thresholds[1])
        if quantizer.gamma_raw is not None:
            quantizer.gamma_raw.data.fill_(0.5)
    return layer


def codes(layer: QuantLayer) -> Tensor:
    with torch.no_grad():
        return layer.weight_quantizer.codes_real(weight_to_quantize(layer)).round()


def shake(layer: QuantLayer, size: float) -> None:
    """Change weights and interval as an optimizer might."""
    with torch.no_grad():
        layer.weight.add_(size * layer.weight.std() * torch.randn_like(layer.weight))
        for parameter in layer.weight_quantizer.parameters():
            parameter.add_(0.01 * torch.randn(()))


class Expected:
    """The paper's algorithm, weight by weight, in NumPy."""

    def __init__(self, first: NDArray[np.float32], momentum: float) -> None:
        self.codes, self.momentum = first.astype(np.float64), momentum
        self.direction, self.frequency = np.zeros_like(self.codes), np.zeros_like(self.codes)
        self.average = self.codes.copy()
        self.frozen = np.zeros(self.codes.shape, bool)

    def update(self, present: NDArray[np.float32], threshold: float) -> None:
        for i, code in enumerate(present):
            if self.frozen[i]:
                change = 0.0
            else:
                change = np.sign(code - self.codes[i])
                self.codes[i] = code
            turned = change != 0 and change == -self.direction[i]
            self.frequency[i] += self.momentum * (turned - self.frequency[i])
            self.average[i] += self.momentum * (self.codes[i] - self.average[i])
            self.direction[i] = change or self.direction[i]
            if self.frequency[i] > threshold and not self.frozen[i]:
                self.frozen[i] = True
                self.codes[i] = np.rint(self.average[i])


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize(("method", "gamma", "sizes"), KINDS)
def test_it_counts_and_freezes_as_the_paper_does(bits: int, method: str, gamma: bool, sizes: bool) -> None:
    layer, momentum = quantized(bits, method, gamma, sizes), 0.1
    oscillation = Oscillation(nn.Sequential(layer), "freeze", momentum=momentum, threshold=(0.35, 0.25))
    expected = Expected(codes(layer).flatten().numpy(), momentum)
    for step in range(40):
        oscillation.set_progress(step / 40)
        shake(layer, 0.3)
        expected.update(codes(layer).flatten().numpy(), float(oscillation.threshold))
        oscillation.update()
        np.testing.assert_array_equal(oscillation.codes.numpy(), expected.codes)
        np.testing.assert_array_equal(oscillation.direction.numpy(), expected.direction)
        np.testing.assert_array_equal(oscillation.frozen.numpy(), expected.frozen)
        np.testing.assert_allclose(oscillation.frequency.numpy(), expected.frequency, rtol=1e-4, atol=1e-6)
        # What is frozen has its code in the layer, too, wherever the interval has gone.
        found = codes(layer).flatten()[oscillation.frozen]
        np.testing.assert_array_equal(found.numpy(), expected.codes[expected.frozen])
    count = oscillation.count()
    assert count.weights == layer.weight.numel()
    assert count.frozen == expected.frozen.mean()
    assert 0.1 < count.frozen < 0.9
    assert count.oscillating == ((expected.frequency > 0.005) & ~expected.frozen).mean() > 0


@pytest.mark.parametrize(("method", "gamma", "sizes"), KINDS)
def test_codes_of_frozen_weights_stay_while_their_interval_moves_far(method: str, gamma: bool, sizes: bool) -> None:
    layer = quantized(3, method, gamma, sizes)
    oscillation = Oscillation(nn.Sequential(layer), "freeze")
    oscillation.frozen.fill_(True)
    before = codes(layer)
    for _ in range(20):
        with torch.no_grad():
            for name, parameter in layer.weight_quantizer.named_parameters():
                parameter.add_(0.1 if name.startswith("log_") else 0.02)
        oscillation.update()
        assert torch.equal(codes(layer), before)


def test_counting_changes_no_weight() -> None:
    layer = quantized(3)
    oscillation = Oscillation(nn.Sequential(layer), momentum=0.2)
    for _ in range(10):
        shake(layer, 0.5)
        before = layer.weight.clone()
        oscillation.update()
        assert torch.equal(layer.weight, before)
    assert oscillation.count().oscillating > 0.3
    assert oscillation.count().frozen == 0
    assert float(oscillation.penalty()) == 0


def test_a_weight_that_moves_on_does_not_oscillate() -> None:
    """Only a reversal counts: not a change, and not the first one."""
    layer = quantized(4)
    assert isinstance(layer.weight_quantizer, QilWeightQuantizer)
    layer.weight_quantizer.set_thresholds(0.0, 1.0)
    with torch.no_grad():
        layer.weight.fill_(-1.0)
        oscillation = Oscillation(nn.Sequential(layer), momentum=0.5)
        for _ in range(40):
            layer.weight.add_(0.05)
            oscillation.update()
        assert set(oscillation.codes.tolist()) == {7}
        assert float(oscillation.frequency.max()) == 0
        layer.weight.sub_(0.5)
        oscillation.update()
        assert float(oscillation.frequency.min()) == 0.5


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize(("method", "gamma", "sizes"), KINDS)
def test_dampening_pulls_weights_to_the_centres_of_their_codes_and_nothing_else(
    bits: int, method: str, gamma: bool, sizes: bool
) -> None:
    layer = quantized(bits, method, gamma, sizes)
    oscillation = Oscillation(nn.Sequential(layer), "dampen", dampening=0.25)
    assert float(oscillation.penalty().detach()) == 0
    oscillation.set_progress(1.0)
    before = codes(layer)
    oscillation.penalty().backward()
    assert all(parameter.grad is None for parameter in interval_parameters(layer))
    assert layer.weight.grad is not None
    with torch.no_grad():
        real = layer.weight_quantizer.codes_real(weight_to_quantize(layer))
        assert bool(((layer.weight.grad != 0) == (real != before)).all())
        outside = real == before
        layer.weight.sub_(2.0 * layer.weight.grad)  # 0.25 (w - t)**2 has its least value, 0, at w - 2 * gradient
        after = layer.weight_quantizer.codes_real(weight_to_quantize(layer))
    torch.testing.assert_close(after[~outside], before[~outside], rtol=0, atol=1e-4 * 2**bits)
    assert float(oscillation.penalty().detach()) == pytest.approx(0, abs=1e-9)


def test_threshold_and_dampening_go_along_half_a_cosine_after_the_first_quarter() -> None:
    oscillation = Oscillation(nn.Sequential(quantized(2)), "freeze", threshold=(0.5, 0.1), dampening=2.0)
    found = []
    for share in (0.0, 0.25, 0.625, 1.0):
        oscillation.set_progress(share)
        found.append((float(oscillation.threshold), float(oscillation.weight)))
    np.testing.assert_allclose(found, [(0.5, 0.0), (0.5, 0.0), (0.3, 1.0), (0.1, 2.0)], rtol=1e-6)


@pytest.mark.parametrize("control", ["count", "freeze", "dampen"])
@pytest.mark.parametrize(("method", "gamma", "sizes"), KINDS)
def test_nothing_waits_for_the_device(control: Any, method: str, gamma: bool, sizes: bool) -> None:  # noqa: ANN401 - a literal
    """Fake tensors have no values: any transfer to the host, which a captured CUDA graph forbids, would fail."""
    layer = quantized(3, method, gamma, sizes)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        for name, parameter in list(layer.named_parameters(recurse=False)):
            setattr(layer, name, nn.Parameter(mode.from_tensor(parameter.detach())))
        oscillation = Oscillation(nn.Sequential(layer), control)
        oscillation.set_progress(0.5)
        penalty = oscillation.penalty()
        oscillation.update()
    assert penalty.ndim == 0


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
@pytest.mark.parametrize("control", ["count", "freeze", "dampen"])
def test_a_cuda_graph_holds_it(control: Any) -> None:  # noqa: ANN401 - a literal
    """A replayed step has the same result as an ordinary one."""
    layers = [quantized(3).cuda()]
    layers.append(copy.deepcopy(layers[0]))
    watched = [Oscillation(nn.Sequential(layer), control, momentum=0.1, threshold=(0.1, 0.1)) for layer in layers]
    noise = torch.zeros_like(layers[0].weight)

    def step(layer: QuantLayer, oscillation: Oscillation) -> None:
        (gradient,) = torch.autograd.grad(oscillation.penalty() + (layer.weight * noise).sum(), layer.weight)
        with torch.no_grad():
            layer.weight.sub_(gradient)
        oscillation.update()

    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        step(layers[0], watched[0])
        step(layers[1], watched[1])
    stream.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step(layers[0], watched[0])
    for number in range(20):
        noise.copy_(0.3 * layers[0].weight.std() * torch.randn_like(noise))
        for each in watched:
            each.set_progress(number / 20)
        graph.replay()
        step(layers[1], watched[1])
    assert torch.equal(layers[0].weight, layers[1].weight)
    assert all(torch.equal(one, watched[1].state_dict()[name]) for name, one in watched[0].state_dict().items())


def test_it_goes_on_from_its_state_and_refuses_that_of_others() -> None:
    layer = quantized(3)
    oscillation = Oscillation(nn.Sequential(layer), "freeze", momentum=0.2)
    for _ in range(5):
        shake(layer, 0.5)
        oscillation.update()
    state = {name: tensor.clone() for name, tensor in oscillation.state_dict().items()}
    other = Oscillation(nn.Sequential(copy.deepcopy(layer)), "freeze", momentum=0.2)
    other.load_state_dict(state)
    assert all(torch.equal(tensor, other.state_dict()[name]) for name, tensor in state.items())
    with pytest.raises(ValueError, match="of oscillation it keeps nothing"):
        other.load_state_dict({})
    with pytest.raises(ValueError, match=r"'codes' of oscillation is torch.int8 \[7\]"):
        other.load_state_dict(state | {"codes": state["codes"][:7]})


def model_of(digits: Digits, method: str = "qil") -> fx.GraphModule:
    config = QuantConfig(weight_bits=4, activation_bits=4, method=method)
    model = prepare(copy.deepcopy(digits.network), config, digits.images[:1], input_grid=digits.preprocessing)
    calibrate(model, digits.batches())
    return model


def test_edge_layers_of_7_bits_and_weights_that_are_not_trained_are_left_alone(digits: Digits) -> None:
    model = model_of(digits)
    inner = [layer for layer in model.modules() if isinstance(layer, QuantConv2d) and layer.weight_quantizer.bits == 4]
    inner = [layer for layer in inner if layer.weight.requires_grad]
    assert Oscillation(model).layers == inner
    model.requires_grad_(False)
    with pytest.raises(
        ConfigError, match="there is no oscillation to freeze: no layer has trained weights of at most 4"
    ):
        Oscillation(model, "freeze")


@pytest.mark.parametrize("method", METHODS)
def test_a_loop_of_ones_own_freezes_what_oscillates_and_its_codes_reach_the_frozen_model(
    digits: Digits, method: str
) -> None:
    shares = {}
    for control in ("count", "freeze", "dampen"):
        torch.manual_seed(0)
        model = model_of(digits, method).train()
        oscillation = Oscillation(model, control, momentum=0.05, threshold=(0.12, 0.06), dampening=1.0)
        optimizers = recipe_optimizers(model, learning_rate=0.03)
        for step in range(100):
            oscillation.set_progress(step / 100)
            batch = torch.randint(0, 1024, (64,))
            loss = nn.functional.cross_entropy(model(digits.images[batch]), digits.labels[batch])
            for optimizer in optimizers:
                optimizer.zero_grad()
            (loss + oscillation.penalty()).backward()
            for optimizer in optimizers:
                optimizer.step()
            oscillation.update()
        shares[control] = oscillation.count()
        layers = oscillation.layers
        if control == "freeze":
            held = oscillation.codes[oscillation.frozen]
            assert torch.equal(torch.cat([codes(layer).flatten() for layer in layers])[oscillation.frozen], held)
            assert bool(torch.isfinite(freeze(model)(digits.images[:8])).all())
    assert shares["count"].oscillating > 0.02
    assert shares["count"].frozen == shares["dampen"].frozen == 0
    assert shares["freeze"].frozen > 0.01
    assert shares["freeze"].oscillating < shares["count"].oscillating
    assert shares["dampen"].oscillating < shares["count"].oscillating
