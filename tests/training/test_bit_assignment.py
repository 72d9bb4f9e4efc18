"""Widths within a budget: as good as trying every combination."""

from __future__ import annotations

import itertools

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from qil_deploy.training.bit_assignment import Choice, choose_widths

# Costs are whole numbers, so that sums are exact in whatever order they are made.
choices = st.builds(Choice, size=st.integers(0, 40), cost=st.integers(0, 30).map(float))
networks = st.lists(st.lists(choices, min_size=1, max_size=4), min_size=1, max_size=6)


@given(layers=networks, budget=st.integers(0, 200))
def test_no_combination_within_the_budget_is_better(layers: list[list[Choice]], budget: int) -> None:
    combinations = [
        (sum(choice.cost for choice in chosen), sum(choice.size for choice in chosen))
        for chosen in itertools.product(*layers)
    ]
    best = min((pair for pair in combinations if pair[1] <= budget), default=None)
    indices = choose_widths(layers, budget)
    assert (indices is None) == (best is None)
    if indices is not None:
        found = [options[index] for options, index in zip(layers, indices, strict=True)]
        assert (sum(choice.cost for choice in found), sum(choice.size for choice in found)) == best


def test_a_deep_network_of_unlike_layers(rng: np.random.Generator) -> None:
    counts = rng.integers(1_000, 2_000_000, 60)
    costs = rng.random((60, 4))
    layers = [
        [Choice(size=int(count) * width // 8, cost=float(cost)) for width, cost in zip((8, 4, 3, 2), row, strict=True)]
        for count, row in zip(counts, np.sort(costs, 1), strict=True)
    ]
    budget = int(counts.sum()) * 3 // 8
    indices = choose_widths(layers, budget)
    assert indices is not None
    found = [options[index] for options, index in zip(layers, indices, strict=True)]
    size, cost = sum(choice.size for choice in found), sum(choice.cost for choice in found)
    assert size <= budget
    # No layer can be improved by itself, nor any two by an exchange.
    for i, j in itertools.combinations(range(60), 2):
        for a, b in itertools.product(layers[i], layers[j]):
            other = cost + a.cost + b.cost - found[i].cost - found[j].cost
            assert other > cost - 1e-9 or size + a.size + b.size - found[i].size - found[j].size > budget
