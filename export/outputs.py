"""Outputs of a model's future file: the node, name, shape and kind of each."""

from __future__ import annotations

from torch import fx

from qil_deploy.config import QuantConfig
from qil_deploy.integers import FrozenDequantize
from qil_deploy.network import CONFIG, input_of, module_of, outputs_of, returned_of, shape_of
from qil_deploy.onnx_io import NetworkOutput, OutputKind


def network_outputs(model: fx.GraphModule) -> list[tuple[fx.Node, NetworkOutput]]:
    """Return the outputs of a prepared or frozen model, each with the node that makes it.

    A frozen model returns floats; if the file is to return codes, they are its last module's input.
    """
    config = model.meta.get(CONFIG)
    wants_codes = isinstance(config, QuantConfig) and config.outputs == "codes"
    found: list[tuple[fx.Node, NetworkOutput]] = []
    for name, node in zip(returned_of(model.graph).names, outputs_of(model.graph), strict=True):
        shape = shape_of(node)[1:]
        module = module_of(model, node) if node.op == "call_module" else None
        if wants_codes and len(shape) > 1 and isinstance(module, FrozenDequantize):
            scale, zero_point = float(module.x.scale), int(module.x.zero_point)
            output = NetworkOutput(name=name, shape=shape, kind="codes", scale=scale, zero_point=zero_point)
            found.append((input_of(node), output))
        else:
            kind: OutputKind = "logits" if len(shape) == 1 else "dense logits"
            found.append((node, NetworkOutput(name=name, shape=shape, kind=kind)))
    return found
