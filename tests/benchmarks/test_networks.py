"""The networks and images that the benchmarks export."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from networks import PREPROCESSING, colour_images, normalized_batches, quantized_network, random_network
from qil_deploy.config import QuantConfig
from qil_deploy.datasets import load_images


def noise() -> list[Tensor]:
    generator = torch.Generator().manual_seed(5)
    return [torch.randn(4, 3, 32, 32, generator=generator) for _ in range(2)]


def test_images_are_enlarged_ones_of_fashion_mnist() -> None:
    images = colour_images(3)
    assert images.dtype == np.uint8
    assert images.shape == (3, 3, 224, 224)
    np.testing.assert_array_equal(images[:, 0], images[:, 2])
    # Bilinear enlargement keeps the mean of each 8x8 block near its pixel's.
    blocks = images[:, 0].reshape(3, 28, 8, 28, 8).mean((2, 4))
    original = load_images("fashion-mnist", "train").images[:3, 0].astype(np.float64)
    assert np.corrcoef(blocks.ravel(), original.ravel())[0, 1] > 0.97


def test_batches_are_what_the_preprocessing_makes_of_the_images() -> None:
    images = colour_images(9)
    batches = normalized_batches(images)
    assert [len(batch) for batch in batches] == [8, 1]
    np.testing.assert_array_equal(torch.cat(batches).numpy(), PREPROCESSING.normalize(images))


def test_random_networks_are_seeded() -> None:
    first, again, other = (random_network("resnet8", noise(), seed=seed).state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(tensor, again[name]) for name, tensor in first.items())
    assert not torch.equal(first["conv1.weight"], other["conv1.weight"])


def test_random_networks_spread_like_trained_ones() -> None:
    model = random_network("resnet20", noise(), seed=0)
    slopes = torch.cat([module.weight for module in model.modules() if isinstance(module, nn.BatchNorm2d)])
    assert 0 < (slopes < 0).float().mean() < 0.2
    assert slopes.abs().min() >= 0.5
    assert slopes.abs().max() <= 1.5
    sizes = model.get_parameter("layer1.0.conv1.weight").abs().mean((1, 2, 3))
    assert sizes.max() > 1.3 * sizes.min()
    logits = model(noise()[0])
    assert logits.shape == (4, 1000)
    assert 0.1 < logits.std() < 100


def test_the_quantized_network_is_calibrated_and_leaves_the_float_one_alone() -> None:
    model = random_network("resnet8", noise(), seed=0)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    quantized = quantized_network(model, QuantConfig(weight_bits=4, activation_bits=4), noise())
    assert bool(quantized.get_buffer("calibrated"))
    assert not quantized.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
