"""Rebuild a captured network from plain modules, under the user's own names.

Each call is looked up in the table of operators, which returns plain modules (Conv2d, BatchNorm2d, ReLU, ...). A layer
is named after the module that owns its weight, any other PyTorch module after itself, and an operation of the user's
code after the operator, with a number. What the table lacks becomes a `FloatIsland`, or is refused.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence

from torch import Tensor, fx, nn

from qil_deploy.errors import UnsupportedModelError

from .captured_call import CallError, Modules
from .captured_graph import CapturedGraph, operation_name
from .cut_out_island import cut_out
from .float_island import FloatIsland
from .graph import free_name, shape_behind, shape_of
from .kept_in_float import makes_gate, makes_rows, makes_scale
from .layers import ChannelAffine, Product
from .moves import Branches, ConstantPad, Reshape
from .operators import SUPPORTED, operator_of
from .outputs import RETURNED
from .rebuild_affine import joined
from .rebuild_layers import padded_convolution
from .rebuild_pools import padded_pool
from .rebuild_rows import in_one_row
from .rebuilt_call import call_of, modules_of_call

_RESERVED = ("calibrated", "meta")
_NAMES = {"upsample_nearest2d": "interpolate", "native_batch_norm_legit_no_training": "batch_norm"}


def rebuild(
    captured: CapturedGraph,
    modes: Mapping[str, bool],
    *,
    allow_float: bool,
    float_gates: bool = False,
    float_scales: bool = False,
    float_rows: bool = False,
) -> fx.GraphModule:
    """Return the graph of plain modules that computes the same as a captured network; tensors are shared.

    Args:
        captured: of the network.
        modes: whether each of the network's modules is in training mode, by name.
        allow_float: whether what cannot be lowered becomes a `FloatIsland`.
        float_gates, float_scales, float_rows: whether gates, or what else `QuantConfig` says, do so, too.

    Raises:
        UnsupportedModelError: what cannot be lowered, nor kept in float if that is allowed.
    """
    keeps = [makes_gate] * float_gates + [makes_scale] * float_scales + [makes_rows] * float_rows
    return _Rebuilder(captured, modes, keeps, allow_float=allow_float).run()


class _Rebuilder:
    def __init__(
        self,
        captured: CapturedGraph,
        modes: Mapping[str, bool],
        keeps: Sequence[Callable[[object, Modules], bool]],
        *,
        allow_float: bool,
    ) -> None:
        self.captured, self.modes, self.allow_float = captured, modes, allow_float
        self.root, self.graph = nn.Module(), fx.Graph()
        self.values: dict[fx.Node, fx.Node] = {}
        self.results = [node for node in captured.calls() if node in captured.data and _is_tensor(node)]
        self.attempts: dict[fx.Node, Modules | CallError] = {
            node: modules_of_call(captured, node, keeps) for node in self.results
        }
        self._take_in_pads()
        self._join_affines()
        self.layers = {self._owner(node) for node in self.results if self._owner(node)}
        self.taken = fx.Graph()  # whose names are unique
        self.taken.placeholder(captured.image.name)
        self.names = {
            node: self.taken.call_module(self._module_name(node) or self._operation(node)).name for node in self.results
        }

    def run(self) -> fx.GraphModule:
        """Rebuild every node."""
        image = self.graph.placeholder(self.captured.image.name)
        image.meta["shape"] = self.captured.shape(self.captured.image)
        self.values[self.captured.image] = image
        parts = self._parts()
        for node in self.results:
            if node in parts:
                if node is parts[node][-1]:
                    self._keep_in_float(parts[node])
            else:
                self._place(node)
        outputs = tuple(self.values[node] for node in self.captured.outputs)
        self.graph.output(outputs if len(outputs) > 1 else outputs[0])
        result = fx.GraphModule(self.root, self.graph)
        result.graph.output_node().meta[RETURNED] = self.captured.returned
        result.graph.eliminate_dead_code()
        result.delete_all_unused_submodules()
        result.recompile()
        result.training = self.modes[""]
        return result

    def _take_in_pads(self) -> None:
        """Merge padding into the convolutions and poolings after it; if other nodes read it too, it stays."""
        for node, modules in list(self.attempts.items()):
            padding = _only(modules)
            readers = [_only(self.attempts.get(user)) for user in node.users]
            if isinstance(padding, nn.ZeroPad2d):
                layers = [padded_convolution(reader, padding.padding) for reader in readers]
                if not self._take_in(node, layers):
                    left, right, top, bottom = padding.padding
                    whole = ConstantPad((left, right, top, bottom), 0.0)
                    self.attempts[node] = self._with_shapes_of_rows(node, node, whole)
            elif isinstance(padding, ConstantPad) and padding.value == -math.inf:
                if not self._take_in(node, [padded_pool(reader, padding.pads) for reader in readers]):
                    self.attempts[node] = CallError("pads with -inf what is read by something else than a pooling")
            elif isinstance(padding, ConstantPad) and not math.isfinite(padding.value):
                self.attempts[node] = CallError(f"pads with {padding.value}")

    def _take_in(self, padding: fx.Node, padded: Sequence[nn.Module | None]) -> bool:
        """Replace the modules after a padding by ones that pad themselves, unless one of them has no such form."""
        ready = [module for module in padded if module is not None]
        if len(ready) < len(padded):
            return False
        for user, module in zip(padding.users, ready, strict=True):
            self.attempts[user] = self._with_shapes_of_rows(user, padding, module)
        self.attempts[padding] = []
        return True

    def _with_shapes_of_rows(self, node: fx.Node, reads: fx.Node, module: nn.Module) -> Modules:
        """Return a module of images for a node, between reshapes if it is one of rows.

        Args:
            node: replaced by the module.
            reads: the first node that it replaces, whose input it reads.
            module: of images.
        """
        source = next(each for each in reads.all_input_nodes if each in self.captured.data)
        shape = self.captured.shape(source)
        return in_one_row(shape, [module], self.captured.shape(node)) if len(shape) == 3 else [module]

    def _join_affines(self) -> None:
        """Merge consecutive scales and shifts into one module."""
        for node, modules in self.attempts.items():
            sources = [source for source in node.all_input_nodes if source in self.captured.data]
            before = self.attempts.get(sources[0]) if len(sources) == 1 else None
            pair = [each[0] if isinstance(each, list) and len(each) == 1 else None for each in (before, modules)]
            first, second = pair
            if isinstance(first, ChannelAffine) and isinstance(second, ChannelAffine) and len(sources[0].users) == 1:
                both = joined(first, second)
                if both is not None:
                    self.attempts[sources[0]], self.attempts[node] = [], [both]

    def _parts(self) -> dict[fx.Node, Sequence[fx.Node]]:
        """Return the parts to keep in float: for each of their nodes, all nodes of its part, in order.

        A PyTorch module is kept whole, whatever part of it is unsupported.
        """
        calls: dict[str, list[fx.Node]] = {}
        for node in self.captured.calls():
            origin = self.captured.origin(node)
            if origin.is_leaf:
                calls.setdefault(origin.call, []).append(node)
        parts: dict[fx.Node, Sequence[fx.Node]] = {}
        for node, attempt in self.attempts.items():
            if isinstance(attempt, CallError) and node not in parts:
                origin = self.captured.origin(node)
                call_node, _ = call_of(node)
                nodes = calls[origin.call] if origin.is_leaf else list(dict.fromkeys([call_node, node]))
                if not self.allow_float:
                    reason = f": it {attempt}" if str(attempt) else ""
                    raise UnsupportedModelError(
                        f"{self.captured.describe(call_node)} cannot be lowered{reason}; supported are {SUPPORTED}, or "
                        "keep it in float with allow_float."
                    )
                last = [each for each in nodes if each in self.attempts]
                whole = [*(each for each in nodes if each not in self.attempts), *last]
                parts |= dict.fromkeys(last, whole)
        return parts

    def _place(self, node: fx.Node) -> None:
        """Replace a node by calls of plain modules, one after another."""
        modules = self.attempts[node]
        if isinstance(modules, CallError):
            raise modules
        call_node, _ = call_of(node)
        sources: list[fx.Node] = []
        fx.node.map_arg((call_node.args, call_node.kwargs), sources.append)
        data = [source for source in sources if source in self.captured.data]
        row = operator_of(modules[0]) if modules else None
        if row is not None and row.kind == "pass":  # it may have read another tensor's shape
            data = data[:1]
        end, inputs = self.values[data[0]], tuple(self.values[source] for source in data)
        lead = next((index for index, module in enumerate(modules) if _has_tensors(module)), 0)
        read = inputs
        for index, module in enumerate(modules):
            if index and isinstance(module, Product):
                inputs = (*read, end)
            shape = self.captured.shape(node)
            if index + 1 < len(modules):
                shape = shape_behind(module, [shape_of(source) for source in inputs])
            if isinstance(module, Branches):
                end = self._branch(node, module, inputs, itertools.count(index + 1))
            else:
                number = 0 if index == lead else index + (index < lead)
                end = self._insert(node, number, module, inputs, shape)
            inputs = (end,)
        self.values[node] = end

    def _branch(
        self, node: fx.Node, branches: Branches, inputs: tuple[fx.Node, ...], numbers: Iterator[int]
    ) -> fx.Node:
        """Insert calls of all modules of several paths after their input; return the module that joins them."""
        ends = []
        for index, path in enumerate(branches.paths):
            way = inputs if len(inputs) == 1 else inputs[index : index + 1]
            for module in path:
                if isinstance(module, Branches):
                    way = (self._branch(node, module, way, numbers),)
                else:
                    shape = shape_behind(module, [shape_of(source) for source in way])
                    way = (self._insert(node, next(numbers), module, way, shape),)
            ends.append(way[0])
        shape = shape_behind(branches.join, [shape_of(end) for end in ends])
        return self._insert(node, next(numbers), branches.join, tuple(ends), shape)

    def _keep_in_float(self, part: Sequence[fx.Node]) -> None:
        island, sources, result = cut_out(self.captured, part)
        inputs = tuple(self.values[source] for source in sources)
        self.values[result] = self._insert(result, 0, island, inputs, self.captured.shape(result))

    def _insert(
        self, node: fx.Node, index: int, module: nn.Module, inputs: tuple[fx.Node, ...], shape: tuple[int, ...]
    ) -> fx.Node:
        """Insert one call of a module, whose result has a given shape, after its inputs.

        Args:
            node: replaced by the module, alone or with others.
            index: 0 for the module that has the node's name, others count.
            module, inputs, shape: of the call.
        """
        own = self._module_name(node)
        target = own or free_name(self.captured.network, self.names[node])
        origin = self.captured.origin(call_of(node)[0])
        module.train(self.modes.get(own or origin.path, self.modes.get(origin.path, self.modes[""])))
        target = self._placed(target if index == 0 else f"{target}_{index}", module)
        # Names as in checkpoints: a module's call has the module's name, and what replaced an operation, or a module
        # that is kept in float, has the next free name.
        is_new = index > 0 or not own or isinstance(module, FloatIsland)
        name = self.taken.call_module(target).name if is_new else self.names[node]
        new = self.graph.create_node("call_module", target, inputs, name=name)
        new.meta["shape"] = shape
        return new

    def _placed(self, target: str, module: nn.Module) -> str:
        """Register a module under a name, or a similar one if that is taken; reuse a module already registered."""
        first, dot, rest = target.partition(".")
        if first in _RESERVED or hasattr(fx.GraphModule, first):
            target = f"{first}_{dot}{rest}"
        for layer in self.layers:
            if target.startswith(f"{layer}."):
                target = f"{layer}_{target[len(layer) + 1 :]}"
        name, number = target, 1
        while (found := _module_at(self.root, name)) is not None:
            if repr(found) == repr(module) and _can_be_shared(found, module):
                return name
            number += 1
            name = f"{target}_{number}"
        owner, _, leaf = name.rpartition(".")
        holder = self.root
        for part in owner.split(".") if owner else ():
            if part not in holder._modules:
                holder.add_module(part, nn.Module())
            holder = holder.get_submodule(part)
        holder.add_module(leaf, module)
        return name

    def _owner(self, node: fx.Node) -> str:
        """Return the name of the module that owns the weight or statistics of a layer; empty for anything else."""
        modules = self.attempts[node]
        if not isinstance(modules, list) or not any(map(_has_tensors, modules)):
            return ""
        if any(isinstance(module, ChannelAffine) for module in modules):
            return ""  # what owns its parameters may hold other modules
        call_node, _ = call_of(node)
        names = [self.captured.tensors[s][0] for s in call_node.all_input_nodes if s in self.captured.tensors]
        return names[0].rpartition(".")[0] if names else ""

    def _module_name(self, node: fx.Node) -> str:
        """Return the name of the user's module that a node stands for; empty for an operation of the user's code."""
        origin = self.captured.origin(call_of(node)[0])
        return origin.path if origin.is_leaf else self._owner(node)

    def _operation(self, node: fx.Node) -> str:
        name = operation_name(call_of(node)[0])
        return _NAMES.get(name, name)


def _only(modules: Modules | CallError | None) -> nn.Module | None:
    """Return the only module of a call; of a call on rows, the one between reshapes."""
    if not isinstance(modules, list):
        return None
    if len(modules) == 3 and isinstance(modules[0], Reshape) and isinstance(modules[2], Reshape):
        return modules[1]
    return modules[0] if len(modules) == 1 else None


def _has_tensors(module: nn.Module) -> bool:
    return any(True for _ in (*module.parameters(), *module.buffers()))


def _is_tensor(node: fx.Node) -> bool:
    return isinstance(node.meta.get("val"), Tensor)


def _module_at(root: nn.Module, name: str) -> nn.Module | None:
    try:
        return root.get_submodule(name)
    except AttributeError:
        return None


def _can_be_shared(a: nn.Module, b: nn.Module) -> bool:
    """Whether two equal modules can be one: a layer that is called twice, or a module without state."""
    row = operator_of(a)
    if row is None or row.kind not in ("conv", "linear", "bn", "relu", "pass"):
        return False
    return list(map(_identity, (*a.parameters(), *a.buffers()))) == list(
        map(_identity, (*b.parameters(), *b.buffers()))
    )


def _identity(tensor: Tensor) -> int:
    """Return a key that is equal for a tensor and its views of other shapes."""
    return tensor.data_ptr() or id(tensor)
