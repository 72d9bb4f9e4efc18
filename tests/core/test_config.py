"""QuantConfig: allowed values, the meaning of overrides, and the errors for other values."""

from __future__ import annotations

import re
from typing import Any

import pytest

from qil_deploy.config import LayerBits, LayerOverride, QuantConfig
from qil_deploy.errors import ConfigError


@pytest.mark.parametrize("weight_bits", range(2, 9))
@pytest.mark.parametrize("activation_bits", range(2, 9))
def test_all_bits_from_2_to_8_are_allowed_but_8_of_8(weight_bits: int, activation_bits: int) -> None:
    if weight_bits == activation_bits == 8:
        message = (
            "quantization config: weight_bits=8 with activation_bits=8 would saturate the int16 sums of CPUs without "
            "VNNI (64770 > 32767); use at most 7 bits for one of them."
        )
        with pytest.raises(ConfigError, match=re.escape(message)):
            QuantConfig(weight_bits=weight_bits, activation_bits=activation_bits)
    else:
        config = QuantConfig(weight_bits=weight_bits, activation_bits=activation_bits)
        assert config.bits_of("layer", edge=False) == LayerBits(
            weight_bits=weight_bits, activation_bits=activation_bits
        )


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"weight_bits": 1}, "quantization config: weight_bits: .* greater than or equal to 2 .found 1."),
        ({"activation_bits": 9}, "activation_bits: .* less than or equal to 8 .found 9."),
        ({"weight_bits": "4"}, "weight_bits: .* valid integer .found '4'."),
        ({"weight_bits": 3.5}, "weight_bits: .* valid integer .found 3.5."),
        ({"placement": "gpu"}, "placement: .*'paper' or 'integer' .found 'gpu'."),
        ({"bits": 4}, "bits: there is no such key"),
        ({"overrides": {"fc": {"weight_bits": 0}}}, "overrides.fc.weight_bits: .* greater than or equal to 2"),
        ({"overrides": {"fc": {"bias_bits": 4}}}, "overrides.fc.bias_bits: there is no such key"),
        ({"weight_bits": 1, "activation_bits": 1}, "weight_bits: .*; activation_bits: .*"),
    ],
)
def test_what_is_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        QuantConfig(**values)
    assert "\n" not in str(caught.value)


def test_edge_layers_take_7_bit_weights_and_8_bit_activations() -> None:
    assert QuantConfig(weight_bits=2).bits_of("fc", edge=True) == LayerBits(weight_bits=7, activation_bits=8)


def test_overrides_match_by_pattern_and_the_last_one_wins() -> None:
    config = QuantConfig(
        overrides={
            "layer1.*": LayerOverride(weight_bits=3),
            "*.conv2": LayerOverride(activation_bits=2),
            "layer1.0.conv2": LayerOverride(weight_bits=5),
        }
    )
    found = {
        name: config.bits_of(name, edge=False) for name in ("layer1.0.conv1", "layer1.0.conv2", "layer2.0.conv2", "x")
    }
    assert {name: (bits.weight_bits, bits.activation_bits) for name, bits in found.items()} == {
        "layer1.0.conv1": (3, 4),
        "layer1.0.conv2": (5, 2),
        "layer2.0.conv2": (4, 2),
        "x": (4, 4),
    }


def test_an_override_that_makes_8_of_8_is_refused_by_layer() -> None:
    config = QuantConfig(weight_bits=8, activation_bits=4, overrides={"conv*": LayerOverride(activation_bits=8)})
    with pytest.raises(ConfigError, match=r"layer conv1: weight_bits=8 with activation_bits=8 would saturate"):
        config.bits_of("conv1", edge=False)


def test_an_override_that_matches_nothing_is_refused_with_the_names_there_are() -> None:
    config = QuantConfig(overrides={"layer9.*": LayerOverride(weight_bits=3)})
    with pytest.raises(ConfigError, match=r"override 'layer9\.\*' matches no layer; the layers are conv1, fc\."):
        config.check_patterns(["conv1", "fc"])
    config.check_patterns(["layer9.conv"])


def test_json_round_trip() -> None:
    config = QuantConfig(weight_bits=2, overrides={"fc": LayerOverride(weight_bits=5)}, train_gamma=True)
    assert QuantConfig.model_validate_json(config.model_dump_json()) == config
