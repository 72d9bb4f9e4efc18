"""Choose one width per layer, for the least total cost within a size budget.

    minimise sum_i cost[i][k_i]   subject to   sum_i size[i][k_i] <= budget

A knapsack with one choice per layer, solved exactly: layer by layer, over the pairs (size, cost) that no other pair
beats in both. There are never more of them than distinct sums of sizes; sixty layers of unlike sizes leave about a
thousand.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, kw_only=True)
class Choice:
    """One width that a layer may have: its size in bytes, and a cost of any unit, the smaller the better."""

    size: int
    cost: float


def choose_widths(layers: Sequence[Sequence[Choice]], budget: int) -> list[int] | None:
    """Return the index of each layer's choice, of least total cost, or None if even the smallest do not fit.

    Of several with the same cost, a smallest one is returned.

    Args:
        layers: the choices of each layer, at least one.
        budget: bytes that all layers may take together.
    """
    sizes, costs = np.zeros(1, np.int64), np.zeros(1)
    steps: list[tuple[NDArray[np.int64], NDArray[np.int64]]] = []
    for choices in layers:
        size = sizes[:, None] + np.array([choice.size for choice in choices], np.int64)
        cost = costs[:, None] + np.array([choice.cost for choice in choices])
        kept = _unbeaten(size.ravel(), cost.ravel(), budget)
        if len(kept) == 0:
            return None
        steps.append(np.divmod(kept, len(choices)))
        sizes, costs = size.ravel()[kept], cost.ravel()[kept]
    state = len(costs) - 1  # sizes rise and costs fall
    chosen: list[int] = []
    for before, picked in reversed(steps):
        chosen.append(int(picked[state]))
        state = int(before[state])
    return chosen[::-1]


def _unbeaten(sizes: NDArray[np.int64], costs: NDArray[np.float64], budget: int) -> NDArray[np.int64]:
    """Return the indices of pairs within the budget that cost less than every smaller pair, by increasing size."""
    order = np.lexsort((costs, sizes))
    order = order[sizes[order] <= budget]
    least = np.minimum.accumulate(costs[order])
    falls = np.ones(len(order), bool)
    falls[1:] = least[1:] < least[:-1]
    unbeaten: NDArray[np.int64] = order[falls]
    return unbeaten
