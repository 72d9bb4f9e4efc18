"""Outputs of a network: names, containers, and invalid outputs."""

from __future__ import annotations

# ruff: noqa: ARG005 - the functions of all cases are called alike
import copy
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

from qil_deploy import Preprocessing, QuantConfig, calibrate, freeze, prepare
from qil_deploy.errors import UnsupportedModelError
from qil_deploy.network import edge_layers, outputs_of, returned_of
from qil_deploy.network.capture import capture_network
from qil_deploy.quantizers import RangeQuantizer

GRID = Preprocessing(channels=3, height=8, width=8, scale=0.0123, zero_point=77)


class Pair(NamedTuple):
    out: Tensor
    aux: Tensor


@dataclass
class Fields:
    out: Tensor
    aux: Tensor


torch.export.register_dataclass(Fields)


class Heads(nn.Module):
    """Two maps and a row; the function selects the outputs and their container."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.stem, self.body = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.first, self.second, self.fc = nn.Conv2d(4, 5, 1), nn.Conv2d(4, 2, 3, stride=2), nn.Linear(4, 6)
        self.drop = nn.Dropout(0.5)
        self.function = function

    def forward(self, x: Tensor) -> Any:  # noqa: ANN401 - whatever the case returns
        y = torch.relu(self.body(torch.relu(self.stem(x))))
        return self.function(self, x, self.first(y), self.second(y), self.fc(y.mean((2, 3))))


def images() -> Tensor:
    return torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def prepared(function: Callable[..., Any], **config: Any) -> Any:  # noqa: ANN401 - QuantConfig's
    model = prepare(Heads(function), QuantConfig(**config), images()[:1], input_grid=GRID)
    calibrate(model, [images()])
    return model


CONTAINERS = {
    "tuple": (lambda m, x, a, b, c: (a, b), ("output_0", "output_1")),
    "list": (lambda m, x, a, b, c: [b, c], ("output_0", "output_1")),
    "dictionary": (lambda m, x, a, b, c: {"out": a, "aux": b}, ("out", "aux")),
    "ordered": (lambda m, x, a, b, c: OrderedDict(logits=c, map=a), ("logits", "map")),
    "named": (lambda m, x, a, b, c: Pair(a, b), ("out", "aux")),
    "dataclass": (lambda m, x, a, b, c: Fields(a, b), ("out", "aux")),
    "nested": (lambda m, x, a, b, c: {"maps": [a, b], "row": (c, None, 3)}, ("maps_0", "maps_1", "row_0")),
    "odd keys": (lambda m, x, a, b, c: {"image": a, "a b/c": b, 0: c}, ("image_2", "a_b_c", "0")),
    "like another": (lambda m, x, a, b, c: {"a_0": a, "a": [b]}, ("a_0", "a_0_2")),
    "of golden vectors": (lambda m, x, a, b, c: {"about": a, "images": b}, ("about_2", "images_2")),
}


@pytest.mark.parametrize("case", CONTAINERS)
def test_models_return_what_the_network_did_under_its_names(case: str) -> None:
    function, names = CONTAINERS[case]
    network = Heads(function).eval()
    expected = network(images())
    model = prepare(network, QuantConfig(), images()[:1], input_grid=GRID)
    calibrate(model, [images()])
    assert returned_of(model.graph).names == names
    for made in (model.eval(), copy.deepcopy(model), copy.copy(model), freeze(model)):
        found = made(images())
        assert type(found) is type(expected)
        leaves, spec = torch.utils._pytree.tree_flatten(found)
        wanted, other = torch.utils._pytree.tree_flatten(expected)
        assert spec == other
        for one, two in zip(leaves, wanted, strict=True):
            assert one.shape == two.shape if isinstance(two, Tensor) else one == two


def test_a_single_tensor_leaves_its_container() -> None:
    for function in (lambda m, x, a, b, c: {"out": a}, lambda m, x, a, b, c: (a, None)):
        model = prepared(function)
        assert isinstance(model.eval()(images()), Tensor)
        assert returned_of(model.graph).names == ("logits",)


def test_a_frozen_model_is_the_prepared_one_in_integers() -> None:
    model = prepared(lambda m, x, a, b, c: {"out": a, "row": c})
    frozen = freeze(model)
    with torch.no_grad():
        for name, value in model.eval()(images()).items():
            torch.testing.assert_close(frozen(images())[name], value, rtol=0, atol=0.05 * float(value.abs().max()))


def test_the_last_layer_of_every_output_is_an_edge_layer() -> None:
    graph = capture_network(Heads(lambda m, x, a, b, c: (torch.relu(a), b, c)), images()[:1])
    assert {str(node.target) for node in edge_layers(graph)} == {"stem", "first", "second", "fc"}


@pytest.mark.parametrize(("outputs", "ranges"), [("float", 0), ("codes", 2)])
def test_maps_are_float_or_codes_as_the_config_says(outputs: str, ranges: int) -> None:
    model = prepared(lambda m, x, a, b, c: (a, b, c), outputs=outputs)
    nodes = outputs_of(model.graph)
    found = [isinstance(model.get_submodule(str(node.target)), RangeQuantizer) for node in nodes]
    assert sum(found) == ranges
    assert not found[2]  # rows of logits stay float


def test_what_is_chosen_among_becomes_codes() -> None:
    model = prepared(lambda m, x, a, b, c: (torch.max_pool2d(a, 2), b))
    pooled, convolved = outputs_of(model.graph)
    assert str(pooled.all_input_nodes[0].target).startswith("ranges.")
    assert str(convolved.target) == "second"


REFUSED = {
    "integers": (
        lambda m, x, a, b, c: (a, a.argmax(1)),
        "output 'output_1' of the network is int64; outputs are tensors",
    ),
    "one integer": (lambda m, x, a, b, c: a.argmax(1), "output 'logits' of the network is int64"),
    "a number": (
        lambda m, x, a, b, c: (a, x.shape[0]),
        "output 'output_1' of the network is a number that forward comp",
    ),
    "twice": (lambda m, x, a, b, c: {"a": a, "b": a}, "outputs 'a' and 'b' of the network are one and the same tensor"),
    "copied": (
        lambda m, x, a, b, c: {"a": a, "b": a.clone()},
        "outputs 'a' and 'b' of the network are one and the same",
    ),
    "dropped": (
        lambda m, x, a, b, c: {"a": m.drop(a), "b": a},
        "outputs 'a' and 'b' of the network are one and the same",
    ),
    "the image": (lambda m, x, a, b, c: {"a": a, "x": m.drop(x)}, "output 'x' of the network is the image itself"),
    "a scalar": (lambda m, x, a, b, c: (a, c.sum()), r"output 'output_1' of the network is a tensor of shape \[\] for"),
    "a vector": (
        lambda m, x, a, b, c: (a, c.sum(1)),
        r"output 'output_1' of the network is a tensor of shape \[1\] for",
    ),
    "a weight": (lambda m, x, a, b, c: (a, m.fc.weight * 1), "output 'output_1' of the network does not depend on the"),
    "nothing": (lambda m, x, a, b, c: 5, "the network returns no tensor"),
    "nothing at all": (lambda m, x, a, b, c: None, "the network returns no tensor"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_no_output_is_refused_in_a_sentence(case: str) -> None:
    function, message = REFUSED[case]
    with pytest.raises(UnsupportedModelError, match=message):
        prepare(Heads(function), QuantConfig(), images()[:1], input_grid=GRID)
