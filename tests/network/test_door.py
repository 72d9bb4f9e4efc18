"""Kinds of networks that capture once refused, or confused with another network."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, prune, spectral_norm, weight_norm

from qil_deploy.errors import UnsupportedModelError
from qil_deploy.network.capture import capture_network

from .prepared_network import prepared

X = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(3))


class Network(nn.Module):
    """A stem, the operation of the case, and a linear layer."""

    def __init__(self, function: Callable[[Any, Tensor], Any], **modules: nn.Module) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.fc = nn.Conv2d(3, 4, 3, padding=1), nn.Linear(4, 5)
        for name, module in modules.items():
            self.add_module(name, module)
        self.function = function

    def forward(self, x: Tensor, scale: float = 1.0, *, features: bool = False) -> Any:  # noqa: ANN401 - containers, too
        y = self.stem(x)
        return y if features or scale != 1.0 else self.function(self, y)


class ReturnsItsImage(nn.Module):
    """A network that returns its input beside its logits."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"a": self.conv(x).mean((2, 3)), "b": x}


def head(network: Any, x: Tensor) -> Tensor:  # noqa: ANN401 - a network with `fc`
    logits: Tensor = network.fc(x.mean((2, 3)))
    return logits


def conv(**options: Any) -> nn.Conv2d:  # noqa: ANN401 - Conv2d's
    return nn.Conv2d(4, 4, 3, padding=1, **options)


def identity_before_relu(network: Any, x: Tensor) -> Tensor:  # noqa: ANN401 - a network
    y = network.body(x)  # writes over x
    y += x
    return head(network, y)


def shape_looked_at(network: Any, x: Tensor) -> Tensor:  # noqa: ANN401 - a network
    if x.shape[-1] % 2 == 0 and len(x.shape) == 4:
        x = F.relu(x)
    return head(network, x.view(x.size(0), 4, *x.shape[2:]))


def tied() -> Network:
    a, b = conv(bias=False), conv(bias=False)
    b.weight = a.weight
    return Network(lambda m, x: head(m, m.b(F.relu(m.a(x)))), a=a, b=b)


def in_autocast(network: Any, x: Tensor) -> Tensor:  # noqa: ANN401 - a network
    with torch.autocast("cpu", enabled=False):
        return head(network, x)


class Dropping(nn.Module):
    """A ReLU and a dropout, both functions."""

    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(F.relu(x), 0.5, self.training)


def without_gradients(network: Any, x: Tensor) -> Tensor:  # noqa: ANN401 - a network
    with torch.no_grad():
        x = F.relu(x)
    return head(network, x)


def dropped_in_training(network: Any, x: Tensor) -> Tensor:  # noqa: ANN401 - a network
    return head(network, network.drop(x) if network.training else x)


def dropped_for_nobody(network: Any, x: Tensor) -> Tensor:  # noqa: ANN401 - a network
    network.drop(x)
    return head(network, x)


def drawn_by_python(network: Any, x: Tensor) -> Tensor:  # noqa: ANN401 - a network
    return head(network, F.relu(x) if not network.training or random.random() < 2 else x)


def wants_labels(network: Any, x: Tensor) -> Tensor:  # noqa: ANN401 - a network
    assert not network.training or hasattr(network, "labels"), "labels are wanted in training mode"
    return head(network, x)


class Counting(Network):
    """Counts its calls."""

    def __init__(self) -> None:
        super().__init__(self.count_and_go)
        self.register_buffer("count", torch.zeros(()))

    def count_and_go(self, _network: nn.Module, x: Tensor) -> Tensor:
        self.get_buffer("count").add_(1)
        return head(self, x)


def gains() -> nn.PReLU:
    """Four parameters, multiplied in various ways."""
    act = nn.PReLU(4)
    with torch.no_grad():
        act.weight.copy_(torch.tensor([0.3, -1.2, 1.0, 0.5]))
    return act


ACCEPTED: dict[str, nn.Module] = {
    "identity before a ReLU in place": Network(
        identity_before_relu, body=nn.Sequential(nn.ReLU(inplace=True), conv(), nn.ReLU(inplace=True), conv())
    ),
    "dictionary": Network(lambda m, x: {"logits": head(m, x)}),
    "tuple": Network(lambda m, x: (head(m, x),)),
    "list with None": Network(lambda m, x: [head(m, x), None]),
    "shapes looked at": Network(shape_looked_at),
    "shared ReLU": Network(lambda m, x: head(m, m.act(m.conv(m.act(x)))), act=nn.ReLU(inplace=True), conv=conv()),
    "padding on one side": Network(lambda m, x: head(m, m.conv(F.pad(x, (0, 1, 0, 1)))), conv=nn.Conv2d(4, 4, 3, 2)),
    "padding 'same' of an even window": Network(
        lambda m, x: head(m, m.conv(x)), conv=nn.Conv2d(4, 4, 2, padding="same")
    ),
    "padding twice": Network(lambda m, x: head(m, m.conv(F.pad(x, (1, 1, 1, 1)))), conv=conv()),
    "dropout": Network(lambda m, x: head(m, F.dropout(m.drop(x), 0.3, m.training)), drop=nn.Dropout2d(0.2)),
    "SyncBatchNorm": Network(lambda m, x: head(m, m.norm(m.conv(x))), conv=conv(), norm=nn.SyncBatchNorm(4)),
    "labels wanted in training": Network(wants_labels),
    "tied weights": tied(),
    "dropout that nobody reads": Network(dropped_for_nobody, drop=nn.Dropout(0.5)),
    "inner flatten": Network(lambda m, x: m.rows(F.relu(x).flatten(2).flatten(1)), rows=nn.Linear(256, 5)),
    "rows side by side": Network(lambda m, x: torch.cat([y := m.conv(x), y], 2).flatten(1), conv=conv()),
    "channels in turn": Network(
        lambda m, x: m.rows(m.conv(x).view(x.size(0), 2, 2, 8, 8).transpose(1, 2).flatten(1)),
        conv=conv(),
        rows=nn.Linear(256, 5),
    ),
    "reflected border": Network(lambda m, x: head(m, m.conv(x)), conv=conv(padding_mode="reflect")),
    "border of a pooling": Network(
        lambda m, x: head(m, m.body(x)), body=nn.Sequential(nn.ZeroPad2d(1), nn.MaxPool2d(3))
    ),
    "linear layer over pixels": Network(lambda m, x: head(m, m.rows(x)), rows=nn.Linear(8, 8)),
    "halves": Network(lambda m, x: head(m, torch.cat([(y := m.conv(x).chunk(2, 1))[1], y[0]], 1)), conv=conv()),
    "sum with nothing": Network(lambda m, x: head(m, 0 + x)),
    "scaled by numbers": Network(lambda m, x: 2 * head(m, (1 - m.conv(x)) / 3 + 0.5) - 1, conv=conv()),
    "layer scale": Network(lambda m, x: head(m, m.conv(x) * m.scale.weight.view(-1, 1, 1)), conv=conv(), scale=gains()),
    "layer scale behind channels": Network(
        lambda m, x: head(m, (x.permute(0, 2, 3, 1) * m.scale.weight + 1).permute(0, 3, 1, 2)), scale=gains()
    ),
    "one learned scale": Network(lambda m, x: head(m, m.conv(x)) * m.scale.weight, conv=conv(), scale=nn.PReLU(1)),
    "rows of channels scaled": Network(
        lambda m, x: head(m, (x.flatten(2) * m.scale.weight[:, None]).view(x.shape)), scale=gains()
    ),
    "slope of each channel": Network(lambda m, x: head(m, m.act(m.conv(x))), conv=conv(), act=gains()),
    "steep slopes": Network(lambda m, x: head(m, m.act(x)), act=nn.PReLU(4, init=1.5)),
    "flipped": Network(lambda m, x: head(m, m.conv(x.flip((2, 3))) + x.flip(-3)), conv=conv()),
    "rolled": Network(lambda m, x: head(m, m.conv(x.roll((1, -2), (2, 3))) + x.roll(3, 1)), conv=conv()),
    "repeated": Network(lambda m, x: head(m, m.conv(x[:, :2].repeat(1, 2, 1, 3))), conv=conv()),
    "mean along one direction": Network(
        lambda m, x: head(m, m.conv(x.mean(3, keepdim=True)).mean(2)[:, :, None]), conv=conv()
    ),
}


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("case", ACCEPTED)
def test_what_is_rebuilt_is_the_network(case: str, training: bool) -> None:
    network = ACCEPTED[case].train(training)
    before = copy.deepcopy(network.state_dict())
    graph = capture_network(network, X[:1])
    assert network.training == training
    with torch.no_grad():
        expected, *_ = torch.utils._pytree.tree_leaves(network.eval()(X.clone()))
        torch.testing.assert_close(graph.eval()(X), expected, rtol=1e-6, atol=1e-6)
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    prepared(network.train(training))


def test_a_part_that_does_not_learn_stays_so() -> None:
    network = Network(lambda m, x: head(m, m.body(x)), body=Dropping())
    network.train().get_submodule("body").eval()
    graph = capture_network(network, X[:1])
    modes = {type(module): module.training for module in graph.modules()}
    assert (modes[nn.Dropout], modes[nn.ReLU], modes[nn.Linear]) == (False, False, True)


@pytest.mark.parametrize(
    "function",
    [
        lambda m, x: head(m, x) + m.fc.weight.sum(1),
        lambda m, x: head(m, m.conv(x)) * x.mean(),
        lambda m, x: head(m, m.conv(x / x.abs().max())),
        lambda m, x: head(m, m.drop(x)),
    ],
)
def test_what_stays_in_float_or_not_is_said_in_a_sentence(function: Callable[[Any, Tensor], Tensor]) -> None:
    network = Network(function, conv=conv(), drop=nn.Dropout3d(0.5))
    with pytest.raises(UnsupportedModelError, match="cannot be lowered"):
        capture_network(network, X[:1])
    try:
        capture_network(network, X[:1], allow_float=True)
    except UnsupportedModelError as error:
        assert "cannot be kept in float: it" in str(error)  # noqa: PT017 - some of them can


def test_dropout_is_trained_with() -> None:
    graph = prepared(ACCEPTED["dropout"].train())
    found = [(type(m), m.p) for m in graph.modules() if isinstance(m, nn.Dropout | nn.Dropout2d)]
    assert found == [(nn.Dropout2d, 0.2), (nn.Dropout, 0.3)]


@pytest.mark.parametrize(
    "name",
    ["logits", "image", "ranges", "calibrated", "code", "meta", "graph", "intervals", "input_quantizer", "x", "relu"],
)
def test_names_of_ours_do_not_collide_with_the_users(name: str) -> None:
    network = Network(lambda m, x: getattr(m, name)(F.relu(x)).mean((2, 3)), **{name: nn.Conv2d(4, 5, 1)})
    model = prepared(network)
    assert sum(isinstance(module, nn.Conv2d) for module in model.modules()) == 2
    if name not in ("calibrated", "code", "meta", "graph"):  # attributes of every graph module
        assert isinstance(model.get_submodule(name), nn.Conv2d)
    network = Network(lambda m, x: head(m, getattr(m, name)[1](F.relu(x))), **{name: nn.ModuleList([conv(), conv()])})
    assert sum(isinstance(module, nn.Conv2d) for module in prepared(network).modules()) == 2


def test_a_buffer_that_is_called_like_ours() -> None:
    network = Network(head)
    network.register_buffer("calibrated", torch.ones(3))
    assert prepared(network).get_buffer("calibrated").dtype == torch.bool


def pruned() -> nn.Conv2d:
    layer = conv()
    prune.l1_unstructured(layer, "weight", 0.5)
    return layer


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (
            weight_norm(conv()),
            r"is computed by WeightNorm; call torch.nn.utils.remove_weight_norm\(module, 'weight",
        ),
        (spectral_norm(conv()), r"call torch.nn.utils.remove_spectral_norm\(module, 'weight'\) before prepare"),
        (
            parametrizations.weight_norm(conv()),
            r"call torch.nn.utils.parametrize.remove_parametrizations\(module, 'weight'\)",
        ),
        (parametrizations.orthogonal(conv()), "weight is parametrized"),
        (pruned(), r"weight is pruned by a mask; call torch.nn.utils.prune.remove\(module, 'weight'\)"),
        (nn.DataParallel(conv()), r"wrapped in DataParallel; put the module inside it \(layer.module\) in its place"),
        (torch.compile(conv(), backend="eager"), r"wrapped in OptimizedModule; .* \(layer\._orig_mod\)"),
    ],
)
def test_modules_with_something_around_them_say_what_undoes_it(layer: nn.Module, message: str) -> None:
    with pytest.raises(UnsupportedModelError, match=f"module 'layer'.*{message}"):
        prepared(Network(lambda m, x: head(m, m.layer(x)), layer=layer))


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (
            Network(lambda m, x: head(m, F.conv2d(x, m.stem.weight[:, :1] / 2, groups=4))),
            r"'conv2d' \(test_door.py, line \d+\) cannot be lowered: it has a weight that is computed from 'stem",
        ),
        (Network(lambda m, x: head(m, torch.add(x, 1, alpha=2))), "it adds a tensor 2 times"),
        (
            Network(lambda m, x: head(m, x.flatten(0, 1).view(-1, 4, 8, 8))),
            r"it turns \[1, 4, 8, 8\] into \[4, 8, 8\]; only shapes that keep images apart can be lowered",
        ),
        (Network(lambda m, x: head(m, torch.cat([x, x[:, 4:]], 1))), "it takes nothing of a tensor"),
        (
            Network(lambda m, x: head(m, torch.stack([x, x]).sum(0))),
            "it stacks along the dimension of the images",
        ),
        (
            Network(lambda m, x: head(m, x + torch.randn_like(x))),
            "'randn_like' .* draws random numbers in evaluation",
        ),
        (ReturnsItsImage(), "output 'b' of the network is the image itself"),
        (Network(lambda m, x: head(m, m.conv(m.conv(x))), conv=conv()), "layer 'conv' is called more than once"),
        (Network(in_autocast), r"'wrap_with_autocast' .* take autocast, no_grad and the like out of forward"),
        (Network(without_gradients), r"'wrap_with_set_grad_enabled' .* take autocast, no_grad and the like"),
        (Network(lambda m, x: head(m, m.conv(x.detach())), conv=conv()), "operation 'detach'"),
        (Network(lambda m, x: head(m, x.half().float())), "casts to torch.float16"),
        (
            Network(lambda m, x: head(m, F.dropout(x, 0.5, training=False))),
            "acts 0 times in training mode, 1 times in what",
        ),
        (
            Network(dropped_in_training, drop=nn.Dropout(0.5)),
            "called 1 times in training mode and 0 times in eval",
        ),
        (Network(drawn_by_python), "draws random numbers in training mode: from the generator of Python or NumPy"),
        (Counting(), "the network changes its buffers 'count' in evaluation mode"),
        (
            Network(lambda m, x: head(m, m.conv(x)), conv=nn.LazyConv2d(4, 1)),
            "'conv.weight' of a lazy module has no shape",
        ),
        (
            Network(lambda m, x: head(m, m.act(x)), act=torch.jit.script(nn.ReLU())),
            "module 'act' is compiled by torch.jit",
        ),
    ],
)
def test_refusals_name_module_line_and_remedy(network: nn.Module, message: str) -> None:
    with pytest.raises(UnsupportedModelError, match=message):
        prepared(network)
