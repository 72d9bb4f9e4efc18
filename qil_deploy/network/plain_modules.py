"""Refuse modules whose weights are computed by a wrapper, and name the call that removes it."""

from __future__ import annotations

from torch import nn
from torch.nn.utils import parametrize, prune

from qil_deploy.errors import UnsupportedModelError

_UNDO = {
    "WeightNorm": "torch.nn.utils.remove_weight_norm",
    "SpectralNorm": "torch.nn.utils.remove_spectral_norm",
}
_INNER = {"DataParallel": "module", "DistributedDataParallel": "module", "OptimizedModule": "_orig_mod"}


def require_plain_modules(network: nn.Module) -> None:
    """Require that no module is reparametrized, pruned with its mask left on, or wrapped inside the network.

    Raises:
        UnsupportedModelError: naming the module, and the call that undoes it.
    """
    for name, module in network.named_modules():
        undo = _undoing(module)
        if undo:
            raise UnsupportedModelError(
                f"module {name!r}: {undo} before prepare, so that its weights are parameters of its own."
            )
        inner = _INNER.get(type(module).__name__)
        if inner and hasattr(module, inner):
            raise UnsupportedModelError(
                f"module {name!r} is wrapped in {type(module).__name__}; put the module inside it ({name}.{inner}) in "
                "its place before prepare."
            )


def _undoing(module: nn.Module) -> str:
    """Return the call that makes a module plain; nothing for a plain one."""
    if parametrize.is_parametrized(module):
        tensor = next(iter(dict(module.named_children())["parametrizations"].named_children()))[0]
        undo = "torch.nn.utils.parametrize.remove_parametrizations"
        return f"{tensor} is parametrized; call {undo}(module, {tensor!r})"
    for hook in module._forward_pre_hooks.values():
        tensor = getattr(hook, "name", getattr(hook, "_tensor_name", "weight"))
        if isinstance(hook, prune.BasePruningMethod):
            return f"{tensor} is pruned by a mask; call torch.nn.utils.prune.remove(module, {tensor!r})"
        if type(hook).__name__ in _UNDO:
            return (
                f"{tensor} is computed by {type(hook).__name__}; call {_UNDO[type(hook).__name__]}(module, {tensor!r})"
            )
    return ""
