"""Walk a prepared graph once and replace groups of its modules by frozen ones (`freeze_model.freeze`).

    conv or linear (-> BatchNorm) (-> ReLU) -> quantizer     one FrozenLayer; a hard sigmoid may stand in for the ReLU,
                                                             and scales and shifts for BatchNorm; moves in between
                                                             (`network.behind_moves`) then move its codes
    8-bit codes -> interval quantizer                        one FrozenRescale
    a + b (-> ReLU) -> range quantizer                       one FrozenAdd
    a * b (-> ReLU) -> range quantizer                       one FrozenProduct
    sigmoid, LeakyReLU, PReLU -> range quantizer             one FrozenTable
    8-bit codes -> hard sigmoid -> range quantizer           one FrozenRescale
    global average pool -> range quantizer                   one FrozenGlobalAveragePool
    global average pool -> logits                            one FrozenMeanLogits
    float island (-> ReLU) -> range quantizer                one FrozenFloat
    8-bit codes -> logits                                    one FrozenDequantize

Every rescale ratio is snapped to `p/q` with `q` odd (`ratios`). Each rescale snaps its own ratios, independently of the
scales that its operands' producers rounded to, so no scale has to follow from another. Snapping moves a result by at
most `255 / (2q)` codes per operand, 0.03 for `q = 4095`; in a pool, whose operand is the sum of a window, by that times
the pixels of the window. A pool's ratio stays below 256 (`ratios.nearest_fraction`), as runtimes require.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from torch import fx, nn

from qil_deploy.errors import UnsupportedModelError
from qil_deploy.network import (
    BilinearUpsample,
    ConstantPad,
    FloatIsland,
    GlobalAveragePool,
    Operator,
    QuantConv2d,
    QuantLinear,
    add_module,
    input_of,
    kind_of,
    module_of,
    outputs_of,
    row_of,
    shape_of,
    users_of,
)
from qil_deploy.quantizers import ActivationQuantizer, InputQuantizer, RangeQuantizer

from .freeze_gates import SMALLEST_SIGMOID_STEP, frozen_gate
from .frozen_layer import FrozenLayer
from .frozen_modules import (
    FrozenAdd,
    FrozenDequantize,
    FrozenFloat,
    FrozenGlobalAveragePool,
    FrozenInput,
    FrozenMeanLogits,
    FrozenModule,
    FrozenRescale,
    Grid,
)
from .frozen_moves import FrozenBilinearUpsample, FrozenConstantPad
from .ratios import choose_denominator, nearest_fraction, nearest_numerator, shrink_factor

_LARGEST_WINDOW = 2**24 - 1  # pixels of a map that ONNX Runtime averages


class Freezer:
    """Walks a prepared graph once, replaces groups of nodes, and remembers the grid of every code tensor."""

    def __init__(self, model: fx.GraphModule) -> None:
        self.model = model
        self.grids: dict[fx.Node, Grid] = {}
        self.of_sigmoids = {
            node.target
            for node in model.graph.nodes
            if node.op == "call_module" and isinstance(module_of(model, node), RangeQuantizer)
            if input_of(node).op == "call_module" and isinstance(module_of(model, input_of(node)), nn.Sigmoid)
        }

    def run(self) -> None:
        """Replace every group; a quantizer (or the output) decides where it ends."""
        for node in list(self.model.graph.nodes):
            module = module_of(self.model, node) if node.op == "call_module" else None
            if isinstance(module, InputQuantizer):
                self._freeze_input(node, module)
            elif isinstance(module, ActivationQuantizer | RangeQuantizer):
                self._freeze_site(node, module)
            elif (row := row_of(self.model, node)) is not None:
                self._pass_on_grid(node, row)
        for index in range(len(outputs_of(self.model.graph))):
            self._freeze_output(outputs_of(self.model.graph)[index])

    def _pass_on_grid(self, node: fx.Node, row: Operator) -> None:
        if row.only_trains:
            node.replace_all_uses_with(input_of(node))
            self.model.graph.erase_node(node)
        elif row.kind == "concat":
            self.grids[node] = _joined([self.grids[source] for source in node.all_input_nodes])
        elif row.kind == "pass" and input_of(node) in self.grids:
            self.grids[node] = self._moved(node, self.grids[input_of(node)])

    def _moved(self, node: fx.Node, grid: Grid) -> Grid:
        """Freeze a module that must know its grid, and return the grid after a move."""
        module = module_of(self.model, node)
        if isinstance(module, BilinearUpsample):
            self.model.add_submodule(str(node.target), FrozenBilinearUpsample(module.factors))
        elif isinstance(module, ConstantPad):
            code = int(np.clip(np.rint(module.value / float(grid.scale)) + int(grid.zero_point), 0, 255))
            self.model.add_submodule(str(node.target), FrozenConstantPad(module.pads, code))
            low, high = grid.limits()
            return Grid(float(grid.scale), int(grid.zero_point), min(low, code), max(high, code), low_bit=grid.low_bit)
        return grid

    def _freeze_output(self, output: fx.Node) -> None:
        if output in self.grids:
            self._dequantize(output)
            return
        while kind_of(self.model, output) == "pass":
            output = input_of(output)
        if isinstance(module_of(self.model, output), FrozenModule):
            return  # of another output, whose values this one has in another order
        chain = self._chain(output)
        producer = module_of(self.model, chain[-1])
        if isinstance(producer, GlobalAveragePool):
            frozen = FrozenMeanLogits(self.grids[input_of(chain[-1])], producer.window)
            self._replace(chain, str(chain[-1].target), frozen, None)
        else:
            self._freeze_layer(chain, None, step=1.0, offset=0.0)

    def _dequantize(self, codes: fx.Node) -> None:
        """Dequantize codes."""
        name = add_module(self.model, "logits", FrozenDequantize(self.grids[codes]))
        output = self.model.graph.output_node()
        with self.model.graph.inserting_before(output):
            logits = self.model.graph.call_module(name, (codes,))
        logits.meta["shape"] = shape_of(codes)
        output.replace_input_with(codes, logits)

    def _freeze_input(self, node: fx.Node, quantizer: InputQuantizer) -> None:
        scale, zero_point = float(quantizer.scale), int(quantizer.zero_point)
        per_channel = (None if v is None else v.flatten().tolist() for v in (quantizer.shift, quantizer.unit))
        frozen = FrozenInput(scale, zero_point, *per_channel)
        self._replace([node], str(node.target), frozen, Grid(scale, zero_point, 0, 255))

    def _freeze_site(self, node: fx.Node, quantizer: ActivationQuantizer | RangeQuantizer) -> None:
        chain = [node, *self._chain(input_of(node))] if input_of(node) not in self.grids else [node]
        producer = module_of(self.model, chain[-1])
        if len(chain) == 1 and isinstance(quantizer, ActivationQuantizer):
            self._freeze_rescale(node, quantizer)
        elif isinstance(producer, QuantConv2d | QuantLinear) and isinstance(quantizer, ActivationQuantizer):
            step, offset = _interval_grid(quantizer)
            low, high = self._limits(chain, step, offset, 0, quantizer.largest_code)
            self._freeze_layer(chain, _low_bit_grid(quantizer, low, high), step, offset)
        elif isinstance(quantizer, RangeQuantizer):
            scale, zero_point = float(quantizer.step.detach()), quantizer.zero_point
            if node.target in self.of_sigmoids:
                scale = max(scale, SMALLEST_SIGMOID_STEP)
            y = Grid(scale, zero_point, *self._limits(chain, scale, 0.0, zero_point, 255))
            if isinstance(producer, QuantConv2d | QuantLinear):
                self._freeze_layer(chain, y, step=float(y.scale), offset=0.0)
            elif kind_of(self.model, chain[-1]) == "add":
                self._freeze_add(chain, y)
            elif kind_of(self.model, chain[-1]) in ("product", "table", "hard sigmoid"):
                inputs = [self.grids[source] for source in chain[-1].args if isinstance(source, fx.Node)]
                self._replace(chain, str(chain[-1].target), frozen_gate(producer, inputs, y), y)
            elif isinstance(producer, GlobalAveragePool):
                self._freeze_pool(chain, y, producer.window)
            elif isinstance(producer, FloatIsland):
                inputs = [self.grids[source] for source in chain[-1].all_input_nodes]
                self._replace(chain, str(chain[-1].target), FrozenFloat(producer, inputs, y), y)

    def _limits(
        self, chain: list[fx.Node], step: float, offset: float, zero_point: int, largest: int
    ) -> tuple[int, int]:
        """Return the codes of the bounds of a ReLU or hard sigmoid in front of the quantizer, or all codes.

        Zero need not be the lowest code: an interval may begin below it, and unsigned values may share their grid
        with signed ones.
        """
        low, high = 0, largest
        for node in chain[1:]:
            kind, module = kind_of(self.model, node), module_of(self.model, node)
            if kind in ("relu", "hard sigmoid"):
                most = 1.0 if kind == "hard sigmoid" else math.inf
                bounds = getattr(module, "min_val", 0.0), getattr(module, "max_val", most)
                low, high = (
                    int(np.clip(np.rint((bound - offset) / step) + zero_point, 0, largest)) for bound in bounds
                )
        return low, high

    def _chain(self, node: fx.Node) -> list[fx.Node]:
        """Return `node` and its predecessors, back to the layer, addition, pooling or island that made the value."""
        chain = [node]
        while kind_of(self.model, chain[-1]) in ("bn", "relu", "hard sigmoid", "pass"):
            if input_of(chain[-1]) in self.grids:
                break
            chain.append(input_of(chain[-1]))
        return chain

    def _freeze_layer(self, chain: list[fx.Node], y: Grid | None, step: float, offset: float) -> None:
        producer = chain[-1]
        layer = module_of(self.model, producer)
        norms = [node for node in chain if kind_of(self.model, node) == "bn"]
        norm: Any = module_of(self.model, norms[0]) if norms else None
        if not isinstance(layer, QuantConv2d | QuantLinear):
            raise TypeError(f"{producer.target!r} is no quantized layer")
        if any(kind_of(self.model, part) == "hard sigmoid" for part in chain):
            # Codes of x / 6 + 1/2 are those of x on a grid six times as wide.
            step, offset = 6 * step, 6 * offset - 3
        frozen = FrozenLayer(layer, norm, self.grids[input_of(producer)], y, step, offset)
        self._replace(chain, str(producer.target), frozen, y)
        for node in norms:
            self.model.delete_submodule(str(node.target))

    def _freeze_rescale(self, node: fx.Node, quantizer: ActivationQuantizer) -> None:
        x = self.grids[input_of(node)]
        step, offset = _interval_grid(quantizer)
        ratio, pruned, largest = float(x.scale) / step, offset / step, 255 + int(x.zero_point)
        factor = shrink_factor([largest * ratio, pruned])
        ratio, pruned = factor * ratio, factor * pruned
        q = choose_denominator([largest * ratio, pruned])
        y = _low_bit_grid(quantizer, 0, quantizer.largest_code)
        frozen = FrozenRescale(x, y, step, nearest_numerator(ratio, q), q, round(pruned * q))
        self._replace([node], str(node.target), frozen, y)

    def _freeze_add(self, chain: list[fx.Node], y: Grid) -> None:
        a, b = (self.grids[source] for source in chain[-1].args if isinstance(source, fx.Node))
        ratios = [float(x.scale) / float(y.scale) for x in (a, b)]
        largest = [255 + int(x.zero_point) for x in (a, b)]
        factor = shrink_factor([code * ratio for code, ratio in zip(largest, ratios, strict=True)])
        ratios = [factor * ratio for ratio in ratios]
        terms = [code * ratio for code, ratio in zip(largest, ratios, strict=True)]
        q = choose_denominator([*terms, float(y.zero_point)])
        p_a, p_b = (nearest_numerator(ratio, q) for ratio in ratios)
        self._replace(chain, str(chain[-1].target), FrozenAdd(a, b, y, p_a, p_b, q), y)

    def _freeze_pool(self, chain: list[fx.Node], y: Grid, window: int) -> None:
        x = self.grids[input_of(chain[-1])]
        if window > _LARGEST_WINDOW:
            raise UnsupportedModelError(
                f"{chain[-1].target!r} averages maps of {window:,} pixels; ONNX Runtime averages {_LARGEST_WINDOW:,} "
                "at most. Pool them in two steps."
            )
        ratio, largest = float(x.scale) / (window * float(y.scale)), 255 * window
        p, q = nearest_fraction(ratio, largest, int(y.zero_point))
        if (p / q - ratio) * min(largest, 255 / ratio) > 1:
            raise UnsupportedModelError(
                f"{chain[-1].target!r} averages maps of {window:,} pixels, too many for an exact mean: no "
                f"fraction that is safe from ties comes near 1/{1 / ratio:.0f} of a code per code of a pixel. Pool "
                "them in two steps."
            )
        frozen = FrozenGlobalAveragePool(x, y, window, p, q)
        self._replace(chain, str(chain[-1].target), frozen, y)

    def _replace(self, chain: list[fx.Node], name: str, module: nn.Module, grid: Grid | None) -> None:
        """Replace `chain` (last node first) by `module`, registered as `name`, followed by its moves."""
        self.model.add_submodule(name, module)
        moves = [node for node in reversed(chain) if kind_of(self.model, node) == "pass"]
        calls = [(name, shape_of(chain[-1] if moves else chain[0])), *((str(m.target), shape_of(m)) for m in moves)]
        new, sources = chain[0], tuple(chain[-1].args)
        for target, shape in calls:
            with self.model.graph.inserting_after(new):
                new = self.model.graph.call_module(target, sources)
            new.meta["shape"], sources = shape, (new,)
            if grid is not None:
                self.grids[new] = grid
        chain[0].replace_all_uses_with(new)
        for node in chain:
            if users_of(node):
                raise UnsupportedModelError(f"{node.name!r} is read inside {name!r} and elsewhere too.")
            self.model.graph.erase_node(node)


def _interval_grid(quantizer: ActivationQuantizer) -> tuple[float, float]:
    """Return step (float32-representable) and offset of an interval: code `X` represents `offset + X * step`."""
    distance, center = float(quantizer.distance.detach()), float(quantizer.center.detach())
    return float(np.float32(2 * distance / quantizer.largest_code)), center - distance


def _low_bit_grid(quantizer: ActivationQuantizer, low: int, high: int) -> Grid:
    """Return the grid read by a layer after an interval: codes `0..q` represent `0/q..q/q`."""
    return Grid(1.0 / quantizer.largest_code, 0, low, high, low_bit=True)


def _joined(grids: list[Grid]) -> Grid:
    """Return the grid of a concatenation of tensors that share scale and zero point."""
    lows, highs = zip(*(grid.limits() for grid in grids), strict=True)
    first = grids[0]
    return Grid(float(first.scale), int(first.zero_point), min(lows), max(highs), low_bit=first.low_bit)
