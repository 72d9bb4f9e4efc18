"""A call of an operator in a captured graph, in the form that rows of the table receive it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from torch import Tensor, nn

Modules: TypeAlias = list[nn.Module]
"""Modules that one after the other do what a call does; none where nothing has to be done.

A product that is not the first one multiplies what the call reads by what the module in front of it makes.
"""


@dataclass(frozen=True)
class Data:
    """A tensor that the network computes from its input; `shape` is the one for the example."""

    shape: tuple[int, ...]


@dataclass(frozen=True)
class Computed:
    """A tensor that the network computes from parameters alone; `view` is the parameter it reshapes, if any."""

    names: tuple[str, ...]
    view: Tensor | None = None


@dataclass(frozen=True, kw_only=True)
class Call:
    """A call of an ATen operator.

    Attributes:
        arguments: by the names of the operator's schema, defaults filled in. Tensors of the network's data are `Data`,
            parameters and buffers are tensors, and what is computed from these alone is `Computed`.
        shape: of the result.
        module: the user's module that calls the operator.
        result: which of the operator's results is wanted, where it has several.
    """

    arguments: Mapping[str, Any]
    shape: tuple[int, ...]
    module: nn.Module
    result: int = 0

    @property
    def inputs(self) -> list[tuple[int, ...]]:
        """The shapes of the data tensors, each as many times as it is read."""
        found: list[tuple[int, ...]] = []
        for value in self.arguments.values():
            values = value if isinstance(value, list | tuple) else [value]
            found.extend(each.shape for each in values if isinstance(each, Data))
        return found

    def parameter(self, name: str) -> Tensor | None:
        """Return an argument that is a parameter or buffer.

        Raises:
            CallError: it is computed.
        """
        value = self.arguments[name]
        if isinstance(value, Computed):
            raise CallError(f"has a {name} that is computed from {', '.join(map(repr, value.names))}")
        if isinstance(value, Data):
            raise CallError(f"has a {name} that depends on the image")
        tensor: Tensor | None = value
        return tensor

    def pair(self, name: str) -> tuple[int, int]:
        """Return a size that is given once or for both directions."""
        value = self.arguments[name]
        values = [value] if isinstance(value, int) else list(value)
        return (int(values[0]), int(values[-1]))


class CallError(Exception):
    """A reason why a call cannot be lowered: the end of a sentence that begins with 'it'."""
