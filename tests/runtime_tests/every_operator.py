"""Models with every operator claimed to be exact: an enumeration node by node, and whole networks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, helper, numpy_helper
from torch import Tensor, nn
from torch.nn import functional as F

from qil_deploy import Preprocessing, QuantConfig, calibrate, freeze, prepare
from qil_deploy.export import export_onnx
from qil_deploy.integers import tabulated

SIZE = 16
GRID = Preprocessing(channels=3, height=SIZE, width=SIZE, scale=0.0123, zero_point=77)
RATIOS = (1 / 255, 15 / 4053, 45 / 4091, 70 / 4093, 1 / 128, 1 / 64, 1 / 16, 0.25, 0.5)
"""Of products of codes: odd denominators, as exports have them, and powers of two, which have thousands of exact ties.

Others have ties that float32 only nearly knows, and there machines differ: of 75 * 60 * 0.011, 49.5, a browser makes
another code than x86-64, and of products with zero points 64-bit ARM does, too.
"""
SUMS = ((31, 57, 101), (1, 1, 3), (2048, 1024, 4095), (127, 255, 255))
"""Of QLinearAdd: two numerators and an odd denominator."""
SIGMOIDS = (0.003, 0.0171, 0.05, 0.3, 1.7)
SLOPES = (0.01, 0.13, 0.25, -0.3)
MICROSOFT = "com.microsoft"


def all_pairs() -> NDArray[np.uint8]:
    """Return one image of two channels [1, 2, 256, 256], whose pixels are all pairs of codes."""
    codes = np.arange(256, dtype=np.uint8)
    return np.stack(np.meshgrid(codes, codes))[None]


class Enumeration:
    """A file that returns the results of each operator for all pairs of codes, or for every code."""

    def __init__(self) -> None:
        self.nodes: list[NodeProto] = []
        self.constants: dict[str, NDArray[Any]] = {}
        self.outputs: dict[str, tuple[int, ...]] = {}

    def write(self, path: Path) -> Path:
        """Add all operators and write the file."""
        codes = (1, 256, 256)
        for index, name in enumerate("ab"):
            bounds = [self.constant(np.array([value])) for value in (index, index + 1, 1)]
            self.node("Slice", name, "image", *bounds, domain="")
        row = [self.constant(np.array([value])) for value in (40, 41, 2)]
        self.node("Slice", "row", "b", *row, domain="")
        for ratio in RATIOS:
            for zero_points in ((0, 0, 0), (128, 3, 128)):
                name = f"product_{ratio:.4f}_{zero_points[0]}"
                self.combine("QLinearMul", name, "b", (ratio, 1.0, 1.0), zero_points)
        self.combine("QLinearMul", "gated_rows", "row", (0.011, 1.0, 1.0), (128, 0, 128))
        for p_a, p_b, q in SUMS:
            self.combine("QLinearAdd", f"sum_{p_a}_{p_b}_{q}", "b", (p_a / q, p_b / q, 1.0), (0, 128, 77))
        for x_scale in SIGMOIDS:
            y_scale = 1 / 256
            while tabulated("sigmoid", (float(np.float32(x_scale)), 128), (float(np.float32(y_scale)), 0)).risk() >= 1:
                x_scale, y_scale = x_scale * (1 - 2**-11), y_scale * (1 + 2**-11)  # noqa: PLW2901 - moved off a tie
            grids = self.grids((x_scale, y_scale), (128, 0))
            self.result(f"sigmoid_{x_scale:.4f}", codes, "QLinearSigmoid", "a", *grids)
        for slope in SLOPES:
            grids = self.grids((0.031, 0.0287), (128, 128))
            self.result(f"slope_{slope}", codes, "QLinearLeakyRelu", "a", *grids, alpha=slope)
        self.enlarge()
        return self.save(path)

    def enlarge(self) -> None:
        """Upsample a part of a product, with all kinds of neighbours, and pool it."""
        bounds = [self.constant(np.array(values)) for values in ((100, 90), (116, 120), (2, 3))]
        self.node("Slice", "part", f"product_{RATIOS[2]:.4f}_128", *bounds, domain="")
        linear = {"mode": "linear", "coordinate_transformation_mode": "half_pixel"}
        for rows, columns in ((2, 2), (4, 4), (8, 8), (2, 4)):
            factors = self.constant(np.array([1, 1, rows, columns], np.float32))
            shape = (1, 16 * rows, 30 * columns)
            self.result(f"between_{rows}_{columns}", shape, "Resize", "part", "", factors, domain="", **linear)
        grids = self.grids((480 * 3 / 1011, 1.0), (0, 5))
        self.result("mean", (1, 1, 1), "QLinearGlobalAveragePool", "part", *grids)

    def combine(
        self, operator: str, name: str, other: str, scales: tuple[float, ...], zero_points: tuple[int, ...]
    ) -> None:
        """Add an operator of two tensors, `a` and another one; grids are those of both and of the result."""
        grids = self.grids(scales, zero_points)
        self.result(name, (1, 256, 256), operator, "a", *grids[:2], other, *grids[2:])

    def constant(self, values: NDArray[Any] | np.generic) -> str:
        name = f"constant_{len(self.constants)}"
        self.constants[name] = np.asarray(values)
        return name

    def grids(self, scales: tuple[float, ...], zero_points: tuple[int, ...]) -> list[str]:
        """Return the names of scale and zero point of the first grid, of the second, and so on."""
        pairs = zip(scales, zero_points, strict=True)
        return [self.constant(value) for scale, zero in pairs for value in (np.float32(scale), np.uint8(zero))]

    def node(self, operator: str, result: str, *inputs: str, domain: str = MICROSOFT, **attributes: Any) -> None:  # noqa: ANN401 - ONNX's
        self.nodes.append(helper.make_node(operator, inputs, [result], result, domain=domain, **attributes))

    def result(
        self,
        name: str,
        shape: tuple[int, ...],
        operator: str,
        *inputs: str,
        domain: str = MICROSOFT,
        **attributes: Any,  # noqa: ANN401 - ONNX's
    ) -> None:
        """Add a node whose codes are an output."""
        self.node(operator, name, *inputs, domain=domain, **attributes)
        self.outputs[name] = shape

    def save(self, path: Path) -> Path:
        pixels = {"channels": 2, "height": 256, "width": 256, "scale": 0.01, "zero_point": 0}
        outputs = [
            {"name": name, "shape": list(shape), "kind": "codes", "scale": 1.0, "zero_point": 0}
            for name, shape in self.outputs.items()
        ]
        metadata = {"schema": 1, "format": "qlinear", "input": "uint8", "preprocessing": pixels, "class_names": []}
        infos = [
            helper.make_tensor_value_info(name, TensorProto.UINT8, ["batch", *shape])
            for name, shape in {"image": (2, 256, 256), **self.outputs}.items()
        ]
        constants = [numpy_helper.from_array(values, name) for name, values in self.constants.items()]
        graph = helper.make_graph(self.nodes, "enumeration", infos[:1], infos[1:], constants)
        opsets = [helper.make_opsetid("", 21), helper.make_opsetid(MICROSOFT, 1)]
        model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
        helper.set_model_props(model, {"qil_deploy": json.dumps(metadata | {"outputs": outputs})})
        path.write_bytes(model.SerializeToString())
        return path


class EveryOperator(nn.Module):
    """Every operator that a network may have, in two branches; outputs of every kind."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.stem_norm = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.squeeze, self.excite = nn.Conv2d(8, 4, 1), nn.Conv2d(4, 8, 1)
        self.row, self.row_norm = nn.Conv1d(1, 1, 3, padding=1, bias=False), nn.BatchNorm1d(1)
        self.depthwise, self.depthwise_norm = nn.Conv2d(8, 8, 3, 2, 1, groups=8), nn.BatchNorm2d(8)
        self.up, self.up_norm = nn.ConvTranspose2d(8, 8, 4, 2, 1, groups=2), nn.BatchNorm2d(8)
        self.slopes, self.gains, self.added = nn.PReLU(8), nn.Parameter(torch.randn(8)), nn.Parameter(torch.randn(8))
        self.joined, self.shuffled = nn.Conv2d(16, 8, 1), nn.Conv2d(8, 8, 1)
        self.dense, self.boxes, self.fc = nn.Conv2d(8, 5, 1), nn.Conv2d(8, 6, 3, padding=1), nn.Linear(16, 7)
        with torch.no_grad():
            self.slopes.weight.copy_(torch.linspace(-0.4, 1.6, 8))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        x = F.silu(self.stem_norm(self.stem(x)))
        x = x * F.hardsigmoid(self.excite(F.relu(self.squeeze(F.adaptive_avg_pool2d(x, 1)))))
        channels = F.relu(self.row_norm(self.row(x.mean((2, 3))[:, None])))
        x = x * torch.sigmoid(channels).view(-1, 8, 1, 1)
        low = F.hardswish(self.depthwise_norm(self.depthwise(F.pad(x, (0, 1, 0, 1), mode="replicate"))))[:, :, :8, :8]
        wide = F.relu(self.up_norm(self.up(low)))
        smooth = F.interpolate(F.leaky_relu(self.shuffled(low), 0.1), scale_factor=2, mode="bilinear")
        x = self.slopes(x * self.gains[:, None, None] + self.added[:, None, None]) - 0.5 * smooth
        x = x.flip(3).roll(2, 2) + wide.mean(3, keepdim=True).repeat(1, 1, 1, SIZE)
        x = F.relu6(self.joined(torch.cat([F.channel_shuffle(x, 2), F.max_pool2d(wide, 3, 1, 1)], 1)))
        pooled = torch.cat([F.adaptive_avg_pool2d(x, 1), F.avg_pool2d(low, 8)], 1).flatten(1)
        return {"row": self.fc(pooled), "map": self.dense(x), "boxes": self.boxes(low).sigmoid(), "features": x}


def write_network(path: Path, outputs: Literal["float", "codes"], images: NDArray[np.uint8]) -> Path:
    """Export a network of every operator, calibrated on images."""
    torch.manual_seed(0)
    x = torch.from_numpy(GRID.normalize(images))
    prepared = prepare(EveryOperator(), QuantConfig(outputs=outputs), x[:1], input_grid=GRID)
    calibrate(prepared, [x])
    export_onnx(freeze(prepared), path, preprocessing=GRID, class_names=())
    return path
