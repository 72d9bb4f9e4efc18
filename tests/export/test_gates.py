"""Gates and smooth activations in integers: every code of every backend is equal, and there are no float parts."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from qil_deploy.config import QuantConfig
from qil_deploy.datasets import load_images, preprocessing_for
from qil_deploy.integers import FrozenProduct, FrozenRescale, FrozenTable
from qil_deploy.onnx_io.float_parts import kept_parts
from qil_deploy.onnx_io.model_file import read_model

if TYPE_CHECKING:
    from pathlib import Path

    from .conftest import Case, Exports

CONFIG = QuantConfig(weight_bits=4, activation_bits=4, allow_float=True)  # of which nothing here has to be kept
FORMS: dict[str, dict[str, Any]] = {
    "qlinear": {},
    "qdq": {"format": "qdq"},
    "qdq, int8 storage, float input": {"format": "qdq", "weights": "int8", "input": "float"},
}


class Gated(nn.Module):
    """Two convolutions with an activation, and a gate between them."""

    def __init__(
        self, activation: Callable[[], nn.Module], gate: Callable[[Any, Tensor], Tensor], **modules: nn.Module
    ) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.first = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), activation())
        self.squeeze = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(8, 4, 1), nn.ReLU(), nn.Conv2d(4, 8, 1))
        self.third = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), activation())
        self.fc = nn.Linear(8, 10)
        for name, module in modules.items():
            self.add_module(name, module)
        self.gate = gate

    def forward(self, x: Tensor) -> Tensor:
        """Map [N, 1, 8, 8] to [N, 10]."""
        x = self.third(self.gate(self, self.first(x)))
        return self.fc(x.mean((2, 3)))  # type: ignore[no-any-return] # modules return Any


def hard_gate(m: Any, x: Tensor) -> Tensor:  # noqa: ANN401 - a network with `squeeze`
    gated: Tensor = F.hardsigmoid(m.squeeze(x)) * x
    return gated


def soft_gate(m: Any, x: Tensor) -> Tensor:  # noqa: ANN401 - as above
    gated: Tensor = x * m.squeeze(x).sigmoid()
    return gated


NETWORKS: dict[str, nn.Module] = {
    "hard gate": Gated(nn.ReLU, hard_gate),
    "soft gate": Gated(nn.ReLU6, soft_gate),
    "SiLU": Gated(nn.SiLU, soft_gate),
    "SiLU in place": Gated(lambda: nn.SiLU(inplace=True), lambda _, x: x),
    "hard swish": Gated(nn.Hardswish, hard_gate),
    "LeakyReLU": Gated(lambda: nn.LeakyReLU(0.1), soft_gate),
    "LeakyReLU in place": Gated(lambda: nn.LeakyReLU(0.2, inplace=True), lambda _, x: x),
    "PReLU": Gated(nn.PReLU, lambda _, x: x),
    "sigmoid spelled out": Gated(nn.ReLU, lambda _, x: x * torch.sigmoid(x)),
    "hard sigmoid of a map": Gated(nn.Hardsigmoid, lambda _, x: F.hardsigmoid(F.max_pool2d(x, 2))),
    "map that channels share": Gated(nn.ReLU, lambda m, x: x * torch.sigmoid(m.one(x)), one=nn.Conv2d(8, 1, 3, 1, 1)),
    "square": Gated(nn.SiLU, lambda _, x: x * x),
    "ReLU behind": Gated(nn.SiLU, lambda m, x: F.relu(soft_gate(m, x))),
    "times one": Gated(nn.ReLU, lambda _, x: x * 1.0),
}


class Joined(nn.Module):
    """Concatenates results of gates, so that all share one grid, and ends in a sigmoid."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.first, self.mix = nn.Conv2d(1, 4, 3), nn.Conv2d(16, 6, 3)
        self.fc = nn.Linear(6, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Map [N, 1, 8, 8] to [N, 10]."""
        x = self.first(x)
        x = self.mix(torch.cat([F.silu(x), F.hardsigmoid(x), torch.sigmoid(x), F.leaky_relu(x, 0.3)], 1))
        logits: Tensor = torch.sigmoid(self.fc(x.mean((2, 3))))
        return logits


NETWORKS["joined"] = Joined()


def case_of(exports: Exports, network: nn.Module) -> Case:
    data = load_images("digits", "test")
    return exports.case(network, CONFIG, data.images[:32], preprocessing_for("digits", data))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("network", NETWORKS)
def test_every_code_is_equal(exports: Exports, network: str, form: str, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    values = exports.check_equal(case_of(exports, NETWORKS[network]), path, **FORMS[form])
    assert len(np.unique(values["logits"])) > 2
    assert not kept_parts(read_model(path))


def frozen_modules(case: Case) -> dict[str, type[nn.Module]]:
    kinds = (FrozenProduct, FrozenRescale, FrozenTable)
    return {name: type(module) for name, module in case.frozen.named_modules() if isinstance(module, kinds)}


def test_a_hard_sigmoid_completes_the_layer_in_front_of_it(exports: Exports) -> None:
    found = frozen_modules(case_of(exports, NETWORKS["hard gate"]))
    assert found["mul"] is FrozenProduct
    assert not any("hardsigmoid" in name for name in found)


def test_a_hard_swish_is_a_rescale_and_a_product_under_the_users_name(exports: Exports) -> None:
    found = frozen_modules(case_of(exports, NETWORKS["hard swish"]))
    assert (found["first.2"], found["first.2_1"]) == (FrozenRescale, FrozenProduct)


def test_a_silu_is_two_operators(exports: Exports, tmp_path: Path) -> None:
    model = onnx.load(case_of(exports, NETWORKS["SiLU"]).export(tmp_path / "model.onnx"))
    made_by = {node.output[0]: node.op_type for node in model.graph.node}
    assert (made_by["first.2"], made_by["first.2_1"]) == ("QLinearSigmoid", "QLinearMul")


@pytest.mark.parametrize("network", ["SiLU", "hard swish", "LeakyReLU"])
def test_training_computes_what_is_frozen(exports: Exports, network: str) -> None:
    """Freezing snaps scales and ratios, which changes codes by little."""
    case = case_of(exports, NETWORKS[network])
    x = torch.from_numpy(case.preprocessing.normalize(case.images))
    with torch.no_grad():
        prepared, frozen = case.prepared.eval()(x), case.frozen(x)
    assert float((prepared - frozen).abs().max()) < 0.2 * float(prepared.abs().max())


def test_frozen_gates_pass_gradients_on(exports: Exports) -> None:
    case = case_of(exports, NETWORKS["SiLU"])
    case.frozen.train()
    case.frozen(torch.from_numpy(case.preprocessing.normalize(case.images))).sum().backward()
    gradient = case.frozen.get_submodule("first.0.layer").weight.grad
    case.frozen.eval()
    assert isinstance(gradient, Tensor)
    assert float(gradient.abs().max()) > 0


def test_a_gate_that_never_opens_is_exported(exports: Exports, tmp_path: Path) -> None:
    """Its values lie far below the range in which a float32 sigmoid is certain, on any learned grid."""
    network = Gated(nn.ReLU, soft_gate)
    with torch.no_grad():
        network.get_submodule("squeeze.3").get_parameter("bias").fill_(-25.0)
    exports.check_equal(case_of(exports, network), tmp_path / "model.onnx")
