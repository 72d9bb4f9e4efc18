"""A network's forward pass as `torch.export` captures it: ATen operators without side effects, any number of images.

Writes in place have become plain operators (`writes_in_place`), so that the order in which a tensor is written and
read is the graph's. Every node knows which of the user's modules it came from, and which line.
"""

from __future__ import annotations

import inspect
import logging
import re
import sysconfig
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, fx, nn
from torch.export.graph_signature import InputKind

from qil_deploy.errors import UnsupportedModelError
from qil_deploy.untrusted_text import excerpt

from .drop_path import DropPath
from .outputs import Returned, returned_by
from .writes_in_place import without_writes

_FRAME = re.compile(r'File "([^"]+)", line (\d+), in (\w+)')
_LIBRARIES = (*(sysconfig.get_path(name) for name in ("purelib", "platlib", "stdlib")), str(Path(__file__).parent))


@dataclass(frozen=True)
class Origin:
    """Module call that a node comes from.

    Attributes:
        call: the call of the user's module, different for each call of the same one.
        path: the module's name; empty for the network itself.
        module: the module.
    """

    call: str
    path: str
    module: nn.Module

    @property
    def is_leaf(self) -> bool:
        """Whether the module is taken as a whole: PyTorch's, or our substitute for stochastic depth."""
        if isinstance(self.module, nn.Sequential | nn.ModuleList | nn.ModuleDict):
            return False
        return isinstance(self.module, DropPath) or type(self.module).__module__.startswith("torch.nn")


@dataclass(frozen=True, kw_only=True)
class CapturedGraph:
    """A captured network.

    Attributes:
        network: the user's.
        graph: its ATen operators.
        image: the node that is read first.
        outputs: the nodes that are returned.
        returned: their names, and the containers that they come in.
        tensors: name and value of every node that is a parameter, buffer or constant.
        data: the nodes whose value is a tensor that depends on the image.
        images: how many images the shapes of nodes are for.
    """

    network: nn.Module
    graph: fx.Graph
    image: fx.Node
    outputs: tuple[fx.Node, ...]
    returned: Returned
    tensors: dict[fx.Node, tuple[str, Tensor]]
    images: int
    data: set[fx.Node] = field(default_factory=set)

    def calls(self) -> Iterator[fx.Node]:
        """Return every node that computes something, in order."""
        return (node for node in self.graph.nodes if node.op == "call_function")

    def shape(self, node: fx.Node) -> tuple[int, ...]:
        """Return the shape of a node's tensor, for one image."""
        sizes = [int(size) for size in node.meta["val"].shape]
        return (sizes[0] // self.images, *sizes[1:]) if sizes and node in self.data else tuple(sizes)

    def origin(self, node: fx.Node) -> Origin:
        """Return the module call that a node comes from."""
        stack: dict[object, tuple[str, object]] = node.meta.get("nn_module_stack", {})
        call, path = "", ""
        for key, (found, _) in stack.items():
            call, path = str(key), str(found).partition("@")[0]
        try:
            return Origin(call, path, self.network.get_submodule(path))
        except AttributeError:  # a module that the network makes on the way
            return Origin(call, "", self.network)

    def describe(self, node: fx.Node) -> str:
        """Describe a node in a message: the module or operation, and the line of the user's file."""
        origin, line = self.origin(node), user_line(node.meta.get("stack_trace") or "")
        where = f" ({line})" if line else ""
        if origin.is_leaf:
            return f"module {origin.path!r} ({type(origin.module).__name__})"
        inside = f" of module {origin.path!r}" if origin.path else ""
        return f"operation {operation_name(node)!r}{inside}{where}"


def operation_name(node: fx.Node) -> str:
    """Return the name of the ATen operator that a node calls, without overload."""
    name = str(getattr(node.target, "__name__", node.target)).partition(".")[0]
    return name.strip("_")


def user_line(trace: str) -> str:
    """Return `file, line N` of the last frame of a stack trace that is outside libraries; '' if there is none."""
    frames = [match for match in _FRAME.finditer(trace) if not match[1].startswith(_LIBRARIES)]
    return f"{Path(frames[-1][1]).name}, line {frames[-1][2]}" if frames else ""


def capture_graph(network: nn.Module, example: Tensor) -> CapturedGraph:
    """Capture a network in evaluation mode.

    Args:
        network: float32, in evaluation mode.
        example: images [N, C, H, W], for their shape.

    Raises:
        UnsupportedModelError: it does not run on such images, depends on values or on the number of images, draws
            random numbers, changes its buffers, or returns anything but tensors of floats.
    """
    _require_one_input(network)
    program = _exported(network, example)
    program.graph.eliminate_dead_code()
    tensors = dict(_tensors(network, program))
    inputs = [spec for spec in program.graph_signature.input_specs if spec.kind is InputKind.USER_INPUT]
    nodes = {node.name: node for node in program.graph.nodes}
    image = nodes[inputs[0].arg.name]
    (results,) = (node for node in program.graph.nodes if node.op == "output")
    outputs, returned = returned_by(list(results.args[0]), program.call_spec.out_spec)
    captured = CapturedGraph(
        network=network,
        graph=program.graph,
        image=image,
        outputs=tuple(outputs),
        returned=returned,
        tensors={nodes[name]: found for name, found in tensors.items()},
        images=int(image.meta["val"].shape[0]),
    )
    _mark_data(captured)
    _refuse_contexts(captured)
    _refuse_random_numbers(captured)
    for name, output in zip(returned.names, outputs, strict=True):
        if output not in captured.data:
            if len(outputs) == 1:
                raise UnsupportedModelError("the network returns nothing that depends on the image.")
            raise UnsupportedModelError(
                f"output {name!r} of the network does not depend on the image; keep it beside the network, not among "
                "what forward returns."
            )
    return captured


def _require_one_input(network: nn.Module) -> None:
    parameters = inspect.signature(network.forward).parameters.values()
    needed = [
        p.name for p in parameters if p.default is p.empty and p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)
    ]
    if len(needed) > 1:
        raise UnsupportedModelError(
            f"the network has {len(needed)} inputs ({', '.join(needed)}); one image in is "
            "supported. Wrap it in a module whose forward takes the image alone."
        )


def _draws_nothing(node: fx.Node) -> bool:
    """Whether a node that can draw random numbers draws none: dropout outside training, or with rate 0."""
    schema = node.target._schema.arguments  # type: ignore[union-attr] # it has tags
    given = {argument.name: argument.default_value for argument in schema}
    given |= dict(zip((argument.name for argument in schema), node.args, strict=False)) | node.kwargs
    told = [given[name] for name in ("train", "training") if name in given]
    return any(value is False for value in told) or 0.0 in (given.get("p"), given.get("dropout_p"))


def _exported(network: nn.Module, example: Tensor) -> torch.export.ExportedProgram:
    parameter = next(network.parameters(), example)
    images = torch.cat([example[:1]] * 2).to(parameter.device)  # for a single image the number would be a constant
    logger = logging.getLogger("torch")
    level = logger.level
    try:
        logger.setLevel(logging.CRITICAL)
        with warnings.catch_warnings(), torch.enable_grad():
            warnings.simplefilter("ignore")
            batch = ({0: torch.export.Dim("batch", min=1, max=2**20)},)
            program = torch.export.export(network, (images,), dynamic_shapes=batch)
            program = without_writes(program)
            if program.graph_signature.buffers_to_mutate:
                changed = ", ".join(map(repr, program.graph_signature.buffers_to_mutate.values()))
                raise UnsupportedModelError(
                    f"the network changes its buffers {changed} in evaluation mode; a quantized network has none that "
                    "change."
                )
            return program
    except UnsupportedModelError:
        raise
    except Exception as error:  # of the user's code, or of torch.export
        raise UnsupportedModelError(_explain(network, example, error)) from error
    finally:
        logger.setLevel(level)


def _explain(network: nn.Module, example: Tensor, error: Exception) -> str:
    """Return a sentence for an error of `torch.export`; running the network shows whether the error is its own."""
    name, shape = type(network).__name__, list(example[:1].shape)
    parameter = next(network.parameters(), example)
    for count in (1, 2):
        try:
            with torch.no_grad(), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                network(torch.cat([example[:1]] * count).to(parameter.device))
        except Exception as own:  # noqa: BLE001 - any Python of the user's runs; the sentence goes on with it
            shape[0] = count
            return f"the network does not run on an input of shape {shape}: {excerpt(str(own))}."
    scripted = next(
        (key for key, module in network.named_modules() if isinstance(module, torch.jit.ScriptModule)), None
    )
    if scripted is not None:
        return (
            f"module {scripted!r} is compiled by torch.jit and cannot be captured; put the Python module in its place."
        )
    first = excerpt(str(error).strip().partition("\n")[0])
    line = _line_of(error)
    where = f" ({line})" if line else ""
    if "Data" in type(error).__name__ or "data-dependent" in str(error):
        return (
            f"{name} cannot be captured{where}: what it does depends on values of tensors, which are not known before "
            "it runs; let it compute the same for every image."
        )
    if "batch" in str(error) and ("Constraint" in str(error) or "specializ" in str(error)):
        return (
            f"{name} cannot be captured for any number of images{where}: {first} Take the number of images from the "
            "input's shape, and let the result not depend on it."
        )
    return f"{name} cannot be captured by torch.export{where}: {first}"


def _line_of(error: BaseException) -> str:
    """Return `file, line N` of the last frame in the user's code of a traceback."""
    found, traceback = "", error.__traceback__
    while traceback is not None:
        code = traceback.tb_frame.f_code
        if not code.co_filename.startswith(_LIBRARIES):
            found = f"{Path(code.co_filename).name}, line {traceback.tb_lineno}"
        traceback = traceback.tb_next
    return found


def _tensors(network: nn.Module, program: torch.export.ExportedProgram) -> Iterator[tuple[str, tuple[str, Tensor]]]:
    """Return, by node name, the name and value of each parameter, buffer and constant."""
    parameters = dict(network.named_parameters(remove_duplicate=False))
    buffers = dict(network.named_buffers(remove_duplicate=False))
    for spec in program.graph_signature.input_specs:
        if spec.kind is InputKind.PARAMETER:
            yield spec.arg.name, (str(spec.target), parameters[str(spec.target)])
        elif spec.kind is InputKind.BUFFER:
            yield spec.arg.name, (str(spec.target), buffers[str(spec.target)])
        elif spec.kind is InputKind.CONSTANT_TENSOR:
            yield spec.arg.name, (str(spec.target), program.constants[str(spec.target)])


def _mark_data(captured: CapturedGraph) -> None:
    captured.data.add(captured.image)
    for node in captured.calls():
        is_tensor = isinstance(node.meta.get("val"), Tensor | tuple | list)
        if is_tensor and any(_tensor_sources(node, captured.data)):
            captured.data.add(node)


def _tensor_sources(node: fx.Node, among: set[fx.Node]) -> Iterable[fx.Node]:
    return (source for source in node.all_input_nodes if source in among)


def _refuse_contexts(captured: CapturedGraph) -> None:
    for node in captured.calls():
        if isinstance(node.target, torch._ops.HigherOrderOperator):
            raise UnsupportedModelError(
                f"{captured.describe(node)} runs a part of the network in a context of its own; take autocast, no_grad "
                "and the like out of forward (parameters that are not trained have requires_grad_(False))."
            )


def _refuse_random_numbers(captured: CapturedGraph) -> None:
    for node in captured.calls():
        if torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ()) and not _draws_nothing(node):
            raise UnsupportedModelError(
                f"{captured.describe(node)} draws random numbers in evaluation mode; a network gives one answer to one "
                "image. Let it draw in training only."
            )
