"""Folding: random layers against NumPy integers, ONNX Runtime and the reference (exactly), and against training."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from qil_deploy.integers.fold import largest_spread
from qil_deploy.integers.freeze_model import freeze
from qil_deploy.onnx_io.model_file import read_model
from qil_deploy.reference import IntegerReference

from .folded_layer import (
    LEVELS,
    SIZE,
    Case,
    build,
    evaluate_by_hand,
    fake_codes,
    fake_output,
    fold_by_hand,
    frozen_codes,
    layer_of,
    onnx_model,
    random_codes,
    run_onnxruntime,
)

GAMMAS = st.sampled_from([1.0, -1.0, 0.37, -2.5, 0.0, -0.0, 1e-4, -1e-7, 1e-12, 1e-30, -1e-42, 30.0])


@st.composite
def cases(draw: st.DrawFn) -> Case:
    x_bits = draw(st.none() | st.integers(2, 8))
    dilation = draw(st.sampled_from([1, 1, 2]))
    return Case(
        # 8-bit activations take at most 7-bit weights.
        weight_bits=draw(st.integers(2, 7 if x_bits in (None, 8) else 8)),
        x_bits=x_bits,
        y_bits=draw(st.none() | st.integers(2, 8)),
        kernel=draw(st.sampled_from([1, 2, 3])),
        stride=draw(st.sampled_from([1, 2])),
        padding=draw(st.sampled_from([0, 1])),
        dilation=dilation,
        groups=draw(st.sampled_from([1, 2, 4])),
        norm=draw(st.sampled_from([True, True, True, False])),
        scaled=draw(st.booleans()),
        relu=draw(st.booleans()),
        train_gamma=draw(st.booleans()),
        gammas=tuple(draw(st.lists(GAMMAS, min_size=1, max_size=6))),
        lower=draw(st.sampled_from([0.0, -0.01, 0.01]) | st.floats(-3, 3)),
        width=draw(st.floats(0.05, 6)),
        seed=draw(st.integers(0, 2**32 - 1)),
    )


@given(case=cases())
def test_frozen_layer_equals_numpy_integers_onnxruntime_and_the_reference(
    case: Case, tmp_path_factory: pytest.TempPathFactory
) -> None:
    model = build(case)
    layer = layer_of(freeze(model))
    codes = random_codes(layer, case.seed)
    found = frozen_codes(layer, codes)

    integers = fold_by_hand(model, case)
    spread = layer.spread.numpy().astype(np.int64)[:, None, None, None]
    np.testing.assert_array_equal(layer.weight_codes.numpy() * spread, integers.weights)
    np.testing.assert_array_equal(layer.bias.numpy(), integers.bias)
    np.testing.assert_array_equal(layer.w_scale.numpy(), integers.w_scale)
    np.testing.assert_array_equal(found, evaluate_by_hand(integers, layer, case, codes))

    file = onnx_model(layer, case)
    path = tmp_path_factory.getbasetemp() / "folded_layer.onnx"
    path.write_bytes(file.SerializeToString())
    np.testing.assert_array_equal(found, IntegerReference(read_model(path)).run(codes.astype(np.uint8)))
    for level in LEVELS:
        np.testing.assert_array_equal(found, run_onnxruntime(file, codes, level), err_msg=level)


@given(case=cases())
def test_frozen_layer_is_within_one_code_of_fake_quantization(case: Case) -> None:
    model = build(case)
    layer = layer_of(freeze(model))
    codes = random_codes(layer, case.seed)
    difference = np.abs(frozen_codes(layer, codes) - fake_codes(model, layer, codes))
    # The bias is rounded by half a step of the accumulator; where a step is a whole code, that is half a code.
    steps = layer.w_scale.numpy() * layer.x.scale.numpy() / layer.y_step.numpy()
    assert difference[:, steps <= 1].max(initial=0) <= 1


@pytest.mark.parametrize("bits", range(2, 8))
def test_folding_moves_few_codes(bits: int) -> None:
    """Layers with usual BatchNorms: measured are 0 (2 bits) to 0.4 codes (3 bits) in a thousand."""
    moved = total = 0
    for seed in range(20):
        rng = np.random.default_rng(seed)
        gammas = tuple(rng.uniform(0.3, 1.5, 6) * rng.choice([-1, 1], 6))
        case = Case(
            weight_bits=bits, x_bits=bits, y_bits=bits, gammas=gammas, lower=float(rng.normal(0, 0.3)), seed=seed
        )
        model = build(case)
        layer = layer_of(freeze(model))
        codes = random_codes(layer, seed, count=16)
        difference = frozen_codes(layer, codes) - fake_codes(model, layer, codes)
        assert np.abs(difference).max() <= 1
        moved += int(np.count_nonzero(difference))
        total += difference.size
    assert moved < total / 1000


# All combinations but 8/8, which QuantConfig refuses.
@pytest.mark.parametrize(
    ("weight_bits", "activation_bits"),
    [(weight, activation) for weight in range(2, 9) for activation in range(2, 9) if weight + activation < 16],
)
def test_spread_is_the_largest_that_neither_leaves_int8_nor_saturates_int16(
    weight_bits: int, activation_bits: int
) -> None:
    weight, activation = (1 << (weight_bits - 1)) - 1, (1 << activation_bits) - 1

    def fits(spread: int) -> bool:
        return weight * spread <= 127 and 2 * activation * weight * spread <= 32767

    spread = largest_spread(weight, activation)
    assert fits(spread)
    assert not fits(spread + 1)


@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("y_bits", [2, 4, None])
@pytest.mark.parametrize(("lower", "relu"), [(-0.4, False), (0.0, True), (0.3, True)])
def test_training_frozen_follows_the_gradients_of_fake_quantization(
    y_bits: int | None, lower: float, relu: bool, scaled: bool
) -> None:
    gammas, width = (0.8, -1.3, 0.5), 30.0 if y_bits is None else 1.5
    case = Case(
        y_bits=y_bits,
        gammas=gammas,
        lower=lower,
        width=width,
        relu=relu,
        scaled=scaled,
        train_gamma=True,
        seed=3,
    )
    model = build(case)
    layer = layer_of(freeze(model).train())
    codes = torch.tensor(random_codes(layer, 3, count=16), dtype=torch.float32)
    assert layer.y is not None
    upstream = torch.randn(16, 6, SIZE, SIZE)

    x = codes.clone().requires_grad_()
    (layer(x) * upstream).sum().backward()
    found = {"input": x.grad, **{name: p.grad for name, p in layer.named_parameters()}}

    x = codes.clone().requires_grad_()
    (fake_output(model, x * layer.x.scale) * upstream).sum().backward()
    expected = {"input": x.grad}
    for prefix in ("layer", "norm"):
        expected |= {f"{prefix}.{name}": p.grad for name, p in model.get_submodule(prefix).named_parameters()}

    assert found.keys() == expected.keys()
    for name, gradient in found.items():
        other = expected[name]
        assert gradient is not None
        assert other is not None
        assert torch.isfinite(gradient).all(), name
        # The 8-bit range counts what rounds to its last codes as inside; an interval ends at its thresholds.
        assert float((gradient - other).norm()) <= (1e-2 if y_bits is None else 1e-3) * float(other.norm()), name
