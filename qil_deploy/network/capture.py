"""The door: a network of the user's becomes a graph of plain modules that computes the same, or is refused.

`torch.export` captures what the network does in evaluation mode, for any number of images (`captured_graph`); plain
modules are rebuilt from that under the user's names (`rebuild`, `operators`). Behind this door nobody sees anything
else.
"""

from __future__ import annotations

from torch import Tensor, fx, nn

from qil_deploy.errors import UnsupportedModelError

from .callers_state import evaluation_mode
from .captured_graph import capture_graph
from .rebuild import rebuild


def capture_network(network: nn.Module, example: Tensor, *, allow_float: bool = False) -> fx.GraphModule:
    """Return the graph of plain modules that computes what a network does; its tensors are the network's.

    Args:
        network: float32, with one input and one output, in whatever mode.
        example: float32 [N, C, H, W]; only its shape matters.
        allow_float: whether what cannot be lowered becomes a `FloatIsland`.

    Raises:
        UnsupportedModelError: the network cannot be captured, or holds a module or operation that cannot be lowered,
            nor kept in float if that is allowed.
    """
    modes = {name: module.training for name, module in network.named_modules(remove_duplicate=False)}
    with evaluation_mode(network):
        captured = capture_graph(network, example)
    graph = rebuild(captured, modes, allow_float=allow_float)
    logits = captured.shape(captured.output)
    if len(logits) != 2:
        raise UnsupportedModelError(
            f"the network returns a tensor of shape {list(logits)} for one of shape {list(example[:1].shape)}; it "
            "has to return one row of logits per image."
        )
    return graph
