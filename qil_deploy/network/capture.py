"""Entry point: convert the user's network to a graph of plain modules that computes the same, or refuse it.

`torch.export` captures what the network does in evaluation mode, for any number of images (`captured_graph`); plain
modules are rebuilt from that under the user's names (`rebuild`, `operators`). The rest of the package sees nothing
else.
"""

from __future__ import annotations

from torch import Tensor, fx, nn

from qil_deploy.errors import UnsupportedModelError

from .callers_state import evaluation_mode
from .captured_graph import capture_graph
from .graph import input_of, row_of
from .outputs import outputs_of, require_maps_of_images, returned_of
from .rebuild import rebuild


def capture_network(
    network: nn.Module,
    example: Tensor,
    *,
    allow_float: bool = False,
    float_gates: bool = False,
    float_scales: bool = False,
    float_rows: bool = False,
) -> fx.GraphModule:
    """Return a graph of plain modules that computes the same as a network and shares its tensors.

    Args:
        network: float32, with one input, in any mode.
        example: float32 [N, C, H, W]; only its shape matters.
        allow_float: whether what cannot be lowered becomes a `FloatIsland`.
        float_gates, float_scales, float_rows: whether gates, or what else `QuantConfig` says, do so, too.

    Raises:
        UnsupportedModelError: the network cannot be captured, or holds a module or operation that cannot be lowered,
            nor kept in float if that is allowed; or an output is no tensor of its own with a row or map for each image.
    """
    modes = {name: module.training for name, module in network.named_modules(remove_duplicate=False)}
    with evaluation_mode(network):
        captured = capture_graph(network, example)
    shapes = [captured.shape(output) for output in captured.outputs]
    require_maps_of_images(list(zip(captured.returned.names, shapes, strict=True)), example[:1].shape)
    graph = rebuild(
        captured,
        modes,
        allow_float=allow_float,
        float_gates=float_gates,
        float_scales=float_scales,
        float_rows=float_rows,
    )
    _require_own_tensors(graph)
    return graph


def _require_own_tensors(graph: fx.GraphModule) -> None:
    """Require every output to be a tensor of its own, which the network computes.

    Raises:
        UnsupportedModelError: it is the image, or another output.
    """
    names: dict[fx.Node, str] = {}
    for name, output in zip(returned_of(graph.graph).names, outputs_of(graph.graph), strict=True):
        node = output
        while (row := row_of(graph, node)) is not None and row.only_trains:
            node = input_of(node)
        if node.op == "placeholder":
            raise UnsupportedModelError(
                f"output {name!r} of the network is the image itself; forward need not return it."
            )
        if node in names:
            raise UnsupportedModelError(
                f"outputs {names[node]!r} and {name!r} of the network are one and the same tensor; return it once."
            )
        names[node] = name
