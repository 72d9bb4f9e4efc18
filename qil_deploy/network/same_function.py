"""Compare a captured graph with its network, in evaluation mode and in training mode.

The graph is what the network did once, on one shape, in evaluation mode. A network can do more: hooks
change results, code may look at numbers or at the training mode, and a path that is dropped at random in training is
missing. Quantized, it would be another network.
"""

from __future__ import annotations

import copy
import random
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch.overrides import TorchFunctionMode

from qil_deploy.errors import UnsupportedModelError

from .callers_state import evaluation_mode, modes_kept
from .captured_graph import user_line
from .outputs import tensors_of

RELATIVE_TOLERANCE: Final = 1e-5
TRAINING_TOLERANCE: Final = 1e-2  # BatchNorm over two images may magnify differences of float sums
_LAYERS = (nn.Conv2d, nn.Linear, nn.BatchNorm2d)
_DROPOUTS = ("dropout", "dropout1d", "dropout2d", "dropout3d", "feature_dropout")
_RANDOM = (
    "alpha_dropout",
    "bernoulli",
    "bernoulli_",
    "feature_alpha_dropout",
    "multinomial",
    "normal",
    "normal_",
    "rand",
    "rand_like",
    "randint",
    "randn",
    "randn_like",
    "randperm",
    "uniform_",
)


@torch.no_grad()
def require_same_function(network: nn.Module, graph: nn.Module, example: Tensor) -> None:
    """Compare a network and the graph captured from it in evaluation mode, on an example and on noise.

    In the graph nothing is written in place. The two may differ by `RELATIVE_TOLERANCE` of the network's largest
    output: float sums need not have one order. If a network magnifies float32's rounding errors, and they differ by
    more, copies of both are compared in float64; if it magnifies even those of float64, from one layer to the next
    (`_same_between_layers`).

    Args:
        network: the user's.
        graph: what was captured from it; it may share modules with the network.
        example: inputs, float32 [N, C, H, W]; the first is used.

    Raises:
        UnsupportedModelError: they differ, or the network does not return finite numbers.
    """
    device = next((parameter.device for parameter in network.parameters()), example.device)
    noise = torch.randn(
        example[:1].shape, dtype=torch.float32, device="cpu", generator=torch.Generator().manual_seed(0)
    )
    inputs = {"the example input": example[:1].to(device), "noise": noise.to(device)}
    try:
        _compare_on(network, graph, inputs)
    except _DifferentValuesError:
        # Copies share what the originals share.
        network, graph = copy.deepcopy(nn.ModuleList([network, graph])).double()
        doubles = {name: x.double() for name, x in inputs.items()}
        try:
            _compare_on(network, graph, doubles)
        except _DifferentValuesError:
            if not isinstance(graph, fx.GraphModule):
                raise
            if not all(_same_between_layers(network, graph, x) for x in doubles.values()):
                raise


class _DifferentValuesError(UnsupportedModelError):
    """Outputs that differ only in their values."""


def _compare_on(network: nn.Module, graph: nn.Module, inputs: Mapping[str, Tensor]) -> None:
    with evaluation_mode(network, graph):
        expected = {name: _run(network, x.clone(), name) for name, x in inputs.items()}
        with _nothing_written_in_place(graph):
            for name, x in inputs.items():
                _compare(expected[name], tensors_of(graph(x.clone())), name)


def _same_between_layers(network: nn.Module, graph: fx.GraphModule, x: Tensor) -> bool:
    """Tell whether every part of a graph, given the network's results before it, gives the network's next results.

    If all parts compute the same, so does the network, however much each of them magnifies the rounding errors of those
    before it. A part ends at a layer that graph and network both have, and with an output.
    """
    made: dict[str, list[Tensor]] = {}
    in_graph = {name: type(module) for name, module in graph.named_modules()}
    with evaluation_mode(network, graph):
        for name, module in network.named_modules():
            kind = type(module)
            if kind in _LAYERS and in_graph.get(name) is kind:
                module.register_forward_hook(partial(_keep, made.setdefault(name, [])))
        expected = tensors_of(network(x.clone()))
        walk = _Walk(graph, {name: results[0] for name, results in made.items() if len(results) == 1})
        with _nothing_written_in_place(graph):
            found = tensors_of(walk.run(x.clone()))
    return walk.same and all(_is_close(*pair, RELATIVE_TOLERANCE) for pair in zip(expected, found, strict=True))


def _keep(made: list[Tensor], _module: nn.Module, _inputs: object, result: Tensor) -> None:
    made.append(result.clone())  # later code may overwrite it


class _Walk(fx.Interpreter):
    """Runs a graph, and after each layer continues with the network's own result.

    Attributes:
        same: whether it was the same each time.
    """

    def __init__(self, graph: fx.GraphModule, made: Mapping[str, Tensor]) -> None:
        super().__init__(graph)
        self.made, self.same = made, True

    def run_node(self, node: fx.Node) -> Any:  # noqa: ANN401 - as in the base class
        result = super().run_node(node)
        if node.op != "call_module" or str(node.target) not in self.made:
            return result
        expected = self.made[str(node.target)]
        self.same = self.same and _is_close(expected, result, RELATIVE_TOLERANCE)
        return expected


@contextmanager
def _nothing_written_in_place(graph: nn.Module) -> Iterator[None]:
    writing = [module for module in graph.modules() if getattr(module, "inplace", False) is True]
    for module in writing:
        module.inplace = False  # type: ignore[assignment] # a flag of ReLU and others, not a tensor
    try:
        yield
    finally:
        for module in writing:
            module.inplace = True  # type: ignore[assignment] # as above


@torch.no_grad()
def require_same_training(network: nn.Module, graph: nn.Module) -> None:
    """Compare a network and the graph captured from it in training mode, without dropout, on noise.

    A network that does not run on two such images in training mode is not compared. Of several results (a network may
    have auxiliary ones in training mode) one has to match the graph's, for each of its outputs.

    Args:
        network: the user's; its tensors, buffers included, are the graph's and stay as they are.
        graph: what was captured from it.

    Raises:
        UnsupportedModelError: they differ, or the network draws random numbers outside dropout.
    """
    shape = next(node.meta["shape"] for node in graph.graph.nodes if node.op == "placeholder")  # type: ignore[union-attr] # a graph
    device = next((parameter.device for parameter in network.parameters()), torch.device("cpu"))
    noise = torch.randn(2, *shape[1:], generator=torch.Generator().manual_seed(1)).to(device)
    statistics = {id(buffer): (buffer, buffer.clone()) for buffer in network.buffers()}
    with modes_kept(network, graph):
        try:
            network.eval()
            with _NoDropout() as evaluated:
                network(noise.clone())
            network.train()
            with _NoDropout() as watch:
                expected = tensors_of(network(noise.clone()))
            graph.train()
            with _NoDropout() as rebuilt:
                found = tensors_of(graph(noise.clone()))
        except Exception:  # noqa: BLE001 - any Python of the user's runs, and may want labels in training mode
            return
        finally:
            for buffer, before in statistics.values():
                buffer.copy_(before)
    if not all(bool(x.isfinite().all()) for x in expected):
        return
    if watch.drawn:
        raise UnsupportedModelError(
            f"the network draws random numbers in training mode: {watch.drawn}. Dropout is the only "
            "randomness that can be trained with; set the probability of dropped paths (stochastic depth) and of other "
            "noise to 0."
        )
    # The graph may drop less often than the network: it has no dropout whose result is unused. Branches of a
    # training mode with several results may have dropout of their own.
    only_in_training = len(expected) == len(found) and watch.calls != evaluated.calls
    if only_in_training or len(rebuilt.dropped) > len(watch.dropped):
        raise UnsupportedModelError(
            f"dropout is called {watch.calls} times in training mode and {evaluated.calls} times in evaluation mode, "
            f"and acts {len(watch.dropped)} times in training mode, {len(rebuilt.dropped)} times in what was captured; "
            "let forward call nn.Dropout, nn.Dropout2d or F.dropout(x, p, self.training) in both modes."
        )
    if not all(any(_is_close(x, output, TRAINING_TOLERANCE) for x in expected) for output in found):
        raise UnsupportedModelError(
            "the network computes something else in training mode than in evaluation mode, beside Dropout and the "
            "statistics of BatchNorm; let forward do the same in both."
        )


class _NoDropout(TorchFunctionMode):
    """Makes dropout return its input, and records where any other random numbers are drawn.

    Attributes:
        calls: of dropout.
        dropped: the rates of those that would have dropped something.
        drawn: which other random numbers, and where; empty for none.
    """

    def __init__(self) -> None:
        super().__init__()
        self.calls, self.drawn = 0, ""
        self.dropped: list[float] = []
        self.generators = (random.getstate(), repr(np.random.get_state()))  # noqa: NPY002 - the user's, not ours

    def __exit__(self, *details: Any) -> None:  # noqa: ANN401 - as in the base class
        super().__exit__(*details)  # type: ignore[no-untyped-call] # it has no hints
        if not self.drawn and self.generators != (random.getstate(), repr(np.random.get_state())):  # noqa: NPY002 - as above
            self.drawn = "from the generator of Python or NumPy"
        random.setstate(self.generators[0])

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,  # noqa: ANN401 - as in the base class
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401 - as in the base class
        name = getattr(func, "__name__", "")
        if name in _DROPOUTS:
            self.calls += 1
            given = dict(zip(("input", "p", "training"), args, strict=False)) | (kwargs or {})
            if given.get("training", given.get("train", True)) and given.get("p", 0.5) > 0:
                self.dropped.append(float(given.get("p", 0.5)))
            return given["input"]
        if name in _RANDOM and not self.drawn:
            line = user_line("".join(traceback.format_stack()))
            self.drawn = f"{name} ({line})" if line else name
        return func(*args, **(kwargs or {}))


def _run(network: nn.Module, x: Tensor, name: str) -> list[Tensor]:
    try:
        result = network(x)
    except Exception as error:  # any user code runs here
        raise UnsupportedModelError(f"the network fails on {name}, of shape {list(x.shape)}: {error}") from error
    return tensors_of(result)


def _compare(expected: list[Tensor], found: list[Tensor], name: str) -> None:
    if len(expected) != len(found):
        raise UnsupportedModelError(
            f"the network returns {len(expected)} tensors, and {len(found)} when it is captured; let forward return "
            "the same for every image."
        )
    for one, other in zip(expected, found, strict=True):
        _compare_tensors(one, other, name)


def _compare_tensors(expected: Tensor, found: Tensor, name: str) -> None:
    if not bool(expected.isfinite().all()):
        raise UnsupportedModelError(
            f"the network returns NaN or infinity for {name}; it cannot be quantized like this."
        )
    if not _is_close(expected, found, RELATIVE_TOLERANCE):
        largest = float(expected.abs().max())
        difference = float((expected - found).abs().max()) if expected.shape == found.shape else float("inf")
        raise _DifferentValuesError(
            f"the captured graph is not the network: on {name} they differ by {difference:.3g}, where the largest "
            f"output is {largest:.3g}. The reason may be a forward that depends on numbers, or on how many "
            "images there are."
        )


def _is_close(expected: Tensor, found: Tensor, tolerance: float) -> bool:
    """Whether two tensors differ by at most `tolerance` times the largest value."""
    if expected.shape != found.shape:
        return False
    return float((expected - found).abs().max()) <= tolerance * float(expected.abs().max())
