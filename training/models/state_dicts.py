"""Find a network's weights in a saved file, by the keys and prefixes in common use.

    {"state_dict": ...}, {"model": ...}, {"model_state_dict": ...}     dictionaries in dictionaries
    module.conv1.weight, _orig_mod.conv1.weight                        DataParallel and similar, torch.compile
    model.conv1.weight, criterion.margin                               a network inside of another (Lightning)
    state_dict_ema, ema, n_averaged                                    moving averages of the weights
    conv1.total_ops                                                    left by operation counters

Each candidate is judged by how many of the network's names it has. Of equally good ones, the least deeply nested one
that is no moving average is taken.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from qil_deploy.errors import CheckpointError
from qil_deploy.untrusted_text import excerpt

_COMPILED = "_orig_mod."  # torch.compile's prefix for the names of a module that it compiled
_COUNTER = "num_batches_tracked"
_LEFTOVERS = ("total_ops", "total_params", _COUNTER, "n_averaged")
_TRAINING_ONLY = ("aux1.", "aux2.", "AuxLogits.", "aux_classifier.")
_AVERAGES = ("ema", "average", "swa", "shadow")
_DEEPEST = 4
_ANCHORS = 3
_PREFIXES = 1000


@dataclass(frozen=True, kw_only=True)
class FoundWeights:
    """Tensors by their names in a network, and sentences about the steps taken to get them."""

    tensors: dict[str, Tensor]
    notes: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class _Candidate:
    """A dictionary of tensors inside a file: the keys that lead to it, a prefix, and the tensors with this prefix.

    Attributes:
        keys: from the outside in.
        prefix: that all of `tensors` had.
        tensors: without the prefix.
        others: names of other tensors.
        known: how many of the network's names are among `tensors`.
    """

    keys: tuple[str, ...]
    prefix: str
    tensors: dict[str, Tensor]
    others: tuple[str, ...]
    known: int

    @property
    def place(self) -> str:
        """Description of its place in the file; empty for the usual one."""
        under = f" under {excerpt('.'.join(self.keys), 60)}" if self.keys else ""
        behind = f" with the prefix '{excerpt(self.prefix, 60)}'" if self.prefix else ""
        return under + behind

    @property
    def rank(self) -> tuple[int, bool, int, int]:
        """Preference: smaller is better."""
        words = ".".join((*self.keys, self.prefix)).lower()
        return (-self.known, any(word in words for word in _AVERAGES), len(self.keys), len(self.prefix))


def find_weights(content: Mapping[Any, object], expected: Mapping[str, Tensor], source: str) -> FoundWeights:
    """Return the weights in a file's content, as far as they can be found; the caller checks whether they fit.

    Args:
        content: as it was read; tensors and anything else.
        expected: the network's state_dict.
        source: names the file in messages.

    Raises:
        CheckpointError: no tensors, or tensors of a kind that a float network cannot start from.
    """
    candidates = sorted(
        (each for keys, tensors in _dictionaries(content) for each in _with_prefixes(keys, tensors, expected)),
        key=lambda candidate: candidate.rank,
    )
    if not candidates:
        raise CheckpointError(f"weights {source} hold {_kinds(content)}; save the state_dict alone.")
    best = candidates[0]
    notes = [f"Took the tensors{best.place} of {source}."] if best.place else []
    rivals = [each.place or " at the top" for each in candidates[1:] if each.known == best.known > 0]
    if rivals:
        notes.append(f"There are as good ones{rivals[0]}; to start from those, save them alone.")
    if best.others:
        notes.append(f"{len(best.others)} tensors beside them were left out, {excerpt(best.others[0], 60)} for one.")
    surplus = [name for name in best.tensors if name not in expected]
    left_out = [name for name in surplus if name.endswith(_LEFTOVERS) or name.startswith(_TRAINING_ONLY)]
    heads = [name for name in left_out if name.startswith(_TRAINING_ONLY)]
    if heads:
        notes.append(f"{len(heads)} tensors of heads that serve training only were left out, {heads[0]} for one.")
    kept = {name: tensor for name, tensor in best.tensors.items() if name not in left_out}
    tensors = {name: _plain(name, tensor, expected.get(name), source) for name, tensor in kept.items()}
    notes += _conversions(kept, expected)
    return FoundWeights(tensors=tensors, notes=tuple(notes))


def _dictionaries(
    content: Mapping[Any, object], keys: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], dict[str, Tensor]]]:
    """Yield every dictionary that holds tensors, with the keys that lead to it."""
    tensors = {
        name.replace(_COMPILED, ""): value
        for name, value in content.items()
        if isinstance(name, str) and isinstance(value, Tensor)
    }
    if tensors:
        yield keys, tensors
    if len(keys) < _DEEPEST:
        for key, value in content.items():
            if isinstance(key, str) and isinstance(value, Mapping):
                yield from _dictionaries(value, (*keys, key))


def _with_prefixes(
    keys: tuple[str, ...], tensors: dict[str, Tensor], expected: Mapping[str, Tensor]
) -> Iterator[_Candidate]:
    """Yield a dictionary's tensors under every prefix that one of the network's names has in it, or no prefix."""
    wanted = [name for name in expected if not name.endswith(_COUNTER)]
    anchors = wanted[:_ANCHORS]
    prefixes = {name[: -len(anchor)] for anchor in anchors for name in tensors if name.endswith(f".{anchor}")}
    for prefix in ["", *sorted(prefixes, key=len)[:_PREFIXES]]:
        inside = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
        others = tuple(name for name in tensors if not name.startswith(prefix) and not name.endswith(_LEFTOVERS))
        known = sum(name in inside for name in wanted)
        yield _Candidate(keys=keys, prefix=prefix, tensors=inside, others=others, known=known)


def _kinds(content: Mapping[Any, object]) -> str:
    """Describe the content of a file without tensors."""
    if not content:
        return "nothing"
    entries = [f"{excerpt(str(key), 40)} ({type(value).__name__})" for key, value in list(content.items())[:4]]
    more = f" and {len(content) - 4} more" if len(content) > 4 else ""
    return f"{', '.join(entries)}{more}, which are no tensors"


def _plain(name: str, tensor: Tensor, expected: Tensor | None, source: str) -> Tensor:
    """Convert a tensor to the network's type, or refuse it."""
    reason = ""
    if tensor.is_meta:
        reason = "has no values (device 'meta')"
    elif tensor.is_quantized:
        reason = f"is quantized ({str(tensor.dtype).removeprefix('torch.')})"
    elif tensor.is_complex():
        reason = "is complex"
    elif expected is not None and expected.is_floating_point() and not tensor.is_floating_point():
        reason = f"holds whole numbers ({str(tensor.dtype).removeprefix('torch.')})"
    if reason:
        raise CheckpointError(
            f"weights {source}: tensor '{excerpt(name, 60)}' {reason}; a float network starts from float weights, so "
            "name those that it was made from."
        )
    if expected is None or tensor.shape != expected.shape:
        return tensor
    dense = tensor.detach() if tensor.layout == torch.strided else tensor.detach().to_dense()
    return dense.to(expected.dtype)


def _conversions(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> Iterator[str]:
    """Describe the converted types and layouts."""
    both = [(found[name], expected[name]) for name in found if name in expected and not name.endswith(_COUNTER)]
    for dtype in sorted({tensor.dtype for tensor, own in both if tensor.dtype != own.dtype}, key=str):
        count = sum(tensor.dtype == dtype for tensor, _ in both)
        yield f"{count} tensors were {str(dtype).removeprefix('torch.')}, and were converted."
    sparse = sum(tensor.layout != torch.strided for tensor, _ in both)
    if sparse:
        yield f"{sparse} tensors were sparse, and were written out."
