"""Goals for the size and speed of exported files relative to their peers, and whether they are met."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from qil_deploy.runtime_tests import BenchReport


@dataclass(frozen=True, kw_only=True)
class SpeedGoal:
    """`model` is at least `at_least` times as fast as `peer`, with each of these numbers of threads."""

    model: str
    peer: str
    at_least: float
    threads: tuple[int, ...] = (1, 2)


@dataclass(frozen=True, kw_only=True)
class SizeGoal:
    """The file of `model` has at most `at_most` megabytes or, with a `peer`, at most that share of the peer's file."""

    model: str
    at_most: float
    peer: str | None = None


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """One goal and its measurement.

    Attributes:
        goal: the goal in words.
        bound, measured: in the goal's unit: times as fast, megabytes, or share of a file.
        met: whether the goal is reached.
    """

    goal: str
    bound: float
    measured: float
    met: bool


GOALS: Mapping[str, Sequence[SpeedGoal | SizeGoal]] = {
    "resnet18": (
        SpeedGoal(model="w4a4_qlinear", peer="float", at_least=3.5),
        SpeedGoal(model="w4a4_qlinear", peer="onnxruntime_int8", at_least=1.0),
        SizeGoal(model="w4a4_qlinear", at_most=6.3),
        SpeedGoal(model="w2a2_qlinear", peer="float", at_least=3.5),
        SpeedGoal(model="w2a2_qlinear", peer="onnxruntime_int8", at_least=1.0),
        SizeGoal(model="w2a2_qlinear", at_most=3.5),
        SpeedGoal(model="w4a4_qdq", peer="brevitas_w4a4", at_least=4.0),
        SizeGoal(model="w4a4_qdq", at_most=0.55, peer="brevitas_w4a4"),
    ),
    "alexnet": (
        SpeedGoal(model="w2a2_qlinear", peer="onnxruntime_int8", at_least=1.4, threads=(1,)),
        SpeedGoal(model="w2a2_qlinear", peer="float", at_least=4.5, threads=(1,)),
        SizeGoal(model="w2a2_qlinear", at_most=18.0),
        SpeedGoal(model="w4a4_qlinear", peer="onnxruntime_int8", at_least=1.25, threads=(1,)),
        SizeGoal(model="w4a4_qlinear", at_most=33.0),
    ),
    "mobilenet_v3_large": (SpeedGoal(model="w4a4_qlinear", peer="onnxruntime_int8", at_least=1.0),),
    "efficientnet_b0": (SpeedGoal(model="w4a4_qlinear", peer="onnxruntime_int8", at_least=1.0),),
}


def judge(goals: Sequence[SpeedGoal | SizeGoal], names: Mapping[str, str], bench: BenchReport) -> list[Verdict]:
    """Return a verdict for every goal that was measured; speed goals have one per number of threads.

    Args:
        goals: goals to check.
        names: model names by the path of their file in `bench`; goals for missing models are left out.
        bench: sizes and latencies.
    """
    megabytes = {names[latency.model.path]: latency.model.bytes / 1e6 for latency in bench.latencies}
    medians = {(names[latency.model.path], latency.threads): latency.median_ms for latency in bench.latencies}
    verdicts = []
    for goal in goals:
        if goal.model not in megabytes or (goal.peer is not None and goal.peer not in megabytes):
            continue
        if isinstance(goal, SizeGoal):
            verdicts.append(_judge_size(goal, megabytes))
        else:
            measured = sorted({threads for _, threads in medians} & set(goal.threads))
            verdicts += [_judge_speed(goal, threads, medians) for threads in measured]
    return verdicts


def _judge_size(goal: SizeGoal, megabytes: Mapping[str, float]) -> Verdict:
    if goal.peer is None:
        measured, words = megabytes[goal.model], f"{goal.model}: at most {goal.at_most:g} MB"
    else:
        measured = megabytes[goal.model] / megabytes[goal.peer]
        words = f"{goal.model}: at most {goal.at_most:g} of the size of {goal.peer}"
    return Verdict(goal=words, bound=goal.at_most, measured=measured, met=measured <= goal.at_most)


def _judge_speed(goal: SpeedGoal, threads: int, medians: Mapping[tuple[str, int], float]) -> Verdict:
    measured = medians[goal.peer, threads] / medians[goal.model, threads]
    unit = "thread" if threads == 1 else "threads"
    words = f"{goal.model}: at least {goal.at_least:g} times as fast as {goal.peer}, {threads} {unit}"
    return Verdict(goal=words, bound=goal.at_least, measured=measured, met=measured >= goal.at_least)
