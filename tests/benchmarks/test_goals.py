"""Goals for speed and size, with made-up measurements on either side of the bound."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from goals import GOALS, SizeGoal, SpeedGoal, Verdict, judge
from qil_deploy.runtime_tests import BenchReport

NAMES = {f"folder/{name}.onnx": name for name in ("float", "ours")}


@pytest.fixture
def bench(make_bench: Callable[..., BenchReport]) -> BenchReport:
    return make_bench({"float": (40_000_000, {1: 12.0, 2: 6.0}), "ours": (10_000_000, {1: 3.0, 2: 2.0})})


def test_speed_is_judged_for_each_number_of_threads(bench: BenchReport) -> None:
    goal = SpeedGoal(model="ours", peer="float", at_least=4.0)
    assert judge([goal], NAMES, bench) == [
        Verdict(goal="ours: at least 4 times as fast as float, 1 thread", bound=4.0, measured=4.0, met=True),
        Verdict(goal="ours: at least 4 times as fast as float, 2 threads", bound=4.0, measured=3.0, met=False),
    ]


def test_speed_is_judged_only_for_the_threads_of_the_goal(bench: BenchReport) -> None:
    goal = SpeedGoal(model="ours", peer="float", at_least=4.5, threads=(1, 8))
    verdict = Verdict(goal="ours: at least 4.5 times as fast as float, 1 thread", bound=4.5, measured=4.0, met=False)
    assert judge([goal], NAMES, bench) == [verdict]


@pytest.mark.parametrize(("at_most", "met"), [(10.0, True), (9.9, False)])
def test_size_is_judged_in_megabytes(bench: BenchReport, at_most: float, met: bool) -> None:
    verdict = Verdict(goal=f"ours: at most {at_most:g} MB", bound=at_most, measured=10.0, met=met)
    assert judge([SizeGoal(model="ours", at_most=at_most)], NAMES, bench) == [verdict]


@pytest.mark.parametrize(("at_most", "met"), [(0.25, True), (0.24, False)])
def test_size_is_judged_beside_a_peer(bench: BenchReport, at_most: float, met: bool) -> None:
    verdict = Verdict(goal=f"ours: at most {at_most:g} of the size of float", bound=at_most, measured=0.25, met=met)
    assert judge([SizeGoal(model="ours", at_most=at_most, peer="float")], NAMES, bench) == [verdict]


def test_goals_of_missing_models_are_left_out(bench: BenchReport) -> None:
    goals: list[SpeedGoal | SizeGoal] = [
        SpeedGoal(model="ours", peer="brevitas", at_least=4.0),
        SizeGoal(model="ours", at_most=0.5, peer="brevitas"),
        SizeGoal(model="others", at_most=1.0),
    ]
    assert judge(goals, NAMES, bench) == []


def test_goals_name_models_that_the_benchmark_makes() -> None:
    made = {"float", "onnxruntime_int8", "w4a4_qlinear", "w2a2_qlinear", "w4a4_qdq", "brevitas_w4a4"}
    named = {name for goals in GOALS.values() for goal in goals for name in (goal.model, goal.peer) if name is not None}
    assert named <= made
