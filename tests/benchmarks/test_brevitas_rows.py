"""Rows by Brevitas begin with the float network, its scales set by data, and train every scale by Adam."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import training_rows
from peers import use_brevitas_layers
from qil_deploy.training.models import build_model
from qil_deploy.training.recipe_sections import StageSection

pytest.importorskip("brevitas", reason="Brevitas comes with the extra `bench`")


def test_what_layers_read_is_quantized_and_every_scale_is_learned() -> None:
    torch.manual_seed(0)
    network = build_model("resnet20", {"in_channels": 1, "num_classes": 10})
    layers = [module for module in network.modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    use_brevitas_layers(network, bits=2, collect_stats_steps=1, inputs_of_layers=True)
    assert not any(module.__class__.__name__ == "QuantReLU" for module in network.modules())
    section = StageSection(epochs=1, weight_bits=2, activation_bits=2, learning_rate=0.1, interval_learning_rate=1e-3)
    weights, scales = training_rows.brevitas_optimizers(network, section)
    trained = {id(p) for optimizer in (weights, scales) for group in optimizer.param_groups for p in group["params"]}
    assert trained == {id(parameter) for parameter in network.parameters()}
    # A scale for the weights of every layer, and one for the input of each but the first.
    assert sum(len(group["params"]) for group in scales.param_groups) == 2 * len(layers) - 1
