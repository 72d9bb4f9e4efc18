"""The table of ONNX operators agrees with ONNX Runtime and the standard."""

from __future__ import annotations

import ast
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st

import qil_deploy
from qil_deploy.onnx_io.model_file import Node
from qil_deploy.reference import OPERATORS, Effect, effect_of, names_of, operator_of, range_of_result
from qil_deploy.reference.operator_row import Operator

EXECUTED = [operator for operator in OPERATORS.values() if operator.is_executed and operator.domain != "qil"]
STANDARD = [operator for operator in OPERATORS.values() if not operator.domain]


def node(op_type: str, inputs: int = 1, **attributes: int | str) -> Node:
    names = tuple(f"x{index}" for index in range(inputs))
    return Node(op_type=op_type, domain="", name="n", inputs=names, outputs=("y",), attributes=dict(attributes))


@pytest.mark.parametrize("operator", STANDARD, ids=lambda operator: operator.name)
def test_grids_weights_and_biases_stand_where_the_standard_has_them(operator: Operator) -> None:
    names = [formal.name for formal in onnx.defs.get_schema(operator.name).inputs]
    for grid in operator.grids:
        assert "scale" in names[grid.scale]
        assert "zero_point" in names[grid.zero_point]
    if operator.weights is not None:
        assert names[operator.weights].lower() in ("w", "b")
    if operator.bias is not None:
        assert names[operator.bias].lower() in ("b", "c")


@pytest.mark.parametrize("operator", STANDARD, ids=lambda operator: operator.name)
def test_operators_have_at_least_the_inputs_that_the_standard_requires(operator: Operator) -> None:
    assert operator.least_inputs <= max(onnx.defs.get_schema(operator.name).min_input, 1)


def test_what_an_operator_is_fused_to_is_in_the_table() -> None:
    for operator in OPERATORS.values():
        assert not operator.fused_to or operator.fused_to in OPERATORS, operator.name


def test_an_operator_without_a_row_says_nothing() -> None:
    unknown = operator_of(node("Gelu"))
    assert (unknown.effect, unknown.is_executed, unknown.is_quantized) == (Effect.COMPUTES, False, False)


def test_kernels_from_codes_to_codes_are_known_by_their_names() -> None:
    assert effect_of(node("QLinearReduceMean")) is Effect.QUANTIZES
    assert operator_of(node("QOrderedMatMul")).is_quantized


def test_without_a_grid_for_its_result_a_layer_makes_no_codes() -> None:
    assert effect_of(node("QGemm", 9)) is Effect.QUANTIZES
    assert effect_of(node("QGemm", 7)) is Effect.COMPUTES


RANGES = st.tuples(st.integers(0, 255), st.integers(0, 255)).map(lambda ends: (min(ends), max(ends)))


@given(
    name=st.sampled_from(sorted(names_of(Effect.MOVES, Effect.CHOOSES, Effect.JOINS))),
    ranges=st.lists(RANGES, min_size=1, max_size=3),
)
def test_what_moves_or_chooses_codes_keeps_their_range(name: str, ranges: list[tuple[int, int]]) -> None:
    found = range_of_result(node(name, len(ranges)), ranges, (0, 255), lambda _: None)
    lowest = min(low for low, _ in ranges) if name != "Pad" else 0
    assert found == (lowest, max(high for _, high in ranges))


@pytest.mark.parametrize(
    ("made_by", "expected"),
    [
        (node("Clip", 3), (3, 9)),
        (node("Pad", 3), (2, 12)),
        (node("QLinearAdd", 8), (0, 255)),
        (node("Resize", mode="cubic"), (0, 255)),
        (node("Resize", mode="nearest"), (2, 12)),
        (node("Cast"), (0, 255)),
    ],
    ids=lambda value: value.op_type if isinstance(value, Node) else "",
)
def test_ranges(made_by: Node, expected: tuple[int, int]) -> None:
    constants = {1: 3.0, 2: 9.0}
    assert range_of_result(made_by, [(2, 12)], (0, 255), constants.get) == expected


def test_no_other_file_lists_what_moves_codes() -> None:
    """A set of operators that move codes, kept anywhere else, would be forgotten when a row is added."""
    moves = names_of(Effect.MOVES)
    root = Path(next(iter(qil_deploy.__path__)))
    folders = [root, *(folder.resolve() for folder in root.iterdir() if folder.is_symlink())]
    for path in (path for folder in folders for path in folder.rglob("*.py")):
        for part in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(part, ast.Set | ast.Tuple | ast.List):
                names = {item.value for item in part.elts if isinstance(item, ast.Constant)}
                listed = names & moves
                allowed = path.parent.name == "reference" or "check_weights" in path.name
                assert allowed or len(listed) < 3, f"{path.name} lists {sorted(map(str, listed))}"


def test_every_executed_row_has_a_cost() -> None:
    for operator in EXECUTED:
        assert operator.cost.__name__ != "nothing", operator.name


def test_types_of_results_are_those_of_the_standard() -> None:
    for operator in STANDARD:
        if operator.result_type:
            schema = onnx.defs.get_schema(operator.name)
            kind = schema.outputs[0].type_str
            allowed = {name for each in schema.type_constraints if each.type_param_str == kind
                       for name in each.allowed_type_strs} or {kind}  # fmt: skip
            assert allowed == {f"tensor({np.dtype(operator.result_type).name})"}, operator.name
