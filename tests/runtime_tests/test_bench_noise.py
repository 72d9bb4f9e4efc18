"""Conditions in which a measurement is doubtful."""

from __future__ import annotations

import pytest

from qil_deploy.runtime_tests.bench.noise import control_warnings, machine_warnings
from qil_deploy.runtime_tests.bench.report import Control, Interval
from qil_deploy.runtime_tests.machine import Activity, Machine


def control(low: float | None, high: float = 1.0) -> Control:
    interval = None if low is None else Interval(low=low, high=high)
    return Control(target="native", threads=2, caches="cold", ratio=1.0, ratio_interval=interval, samples_ns=(1,))


@pytest.mark.parametrize(
    ("low", "high", "words"),
    [
        (0.99, 1.01, None),
        (0.96, 1.005, None),
        (1.0, 1.0, None),
        (0.97, 1.03, "too noisy to tell small differences (native, 2 threads, caches cold)"),
        (1.01, 1.02, "the first model differs from itself (native, 2 threads, caches cold)"),
        (0.9, 0.999, "the ratio is between 0.900 and 0.999"),
        (None, 0.0, "too few rounds to say how sure the ratios are"),
    ],
)
def test_the_first_model_has_to_be_like_itself(low: float | None, high: float, words: str | None) -> None:
    found = control_warnings([control(low, high)])
    assert len(found) == (words is not None)
    assert words is None or words in found[0]


QUIET = Machine(flags=(), governor=None, caches=(), virtual=True, load_average=0.5)
IDLE = Activity(cpus=(0, 1), others=0.01, steal=0.001)


def warnings(machine: Machine = QUIET, activity: Activity = IDLE, threads: int = 2) -> list[str]:
    return machine_warnings(machine, activity, threads=threads, processors=2)


def machine(**changes: object) -> Machine:
    return Machine(**({**vars(QUIET)} | changes))


def test_an_idle_machine_is_not_doubted() -> None:
    assert warnings() == []
    assert warnings(machine(governor="performance")) == []
    assert warnings(machine(load_average=None), Activity(cpus=(), others=None, steal=None)) == []


def test_load_counts_where_processors_do_not_suffice() -> None:
    assert warnings(machine(load_average=1.2), threads=1) == []
    (sentence,) = warnings(machine(load_average=1.2))
    assert sentence.startswith(
        "the load average was 1.20 before the measurement began; with 2 threads more, 2 processors"
    )


def test_others_the_hypervisor_and_the_governor_are_named() -> None:
    assert warnings(activity=Activity(cpus=(0, 1), others=0.2, steal=0.0)) == [
        "other processes took 20% of the time of the processors that were measured (0, 1)."
    ]
    assert warnings(activity=Activity(cpus=(0,), others=0.0, steal=0.05)) == [
        "the hypervisor gave 5% of the processors' time to other machines."
    ]
    (sentence,) = warnings(machine(governor="powersave"))
    assert "the frequency governor is 'powersave'" in sentence
