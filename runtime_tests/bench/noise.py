"""Warnings about a measurement: noise, other processes, clock rates."""

from __future__ import annotations

from collections.abc import Sequence

from qil_deploy.runtime_tests.machine import Activity, Machine

from .report import Control, Interval

WIDEST_CONTROL = 0.05
MOST_OTHERS = 0.05
MOST_STEAL = 0.01


def control_warnings(controls: Sequence[Control]) -> list[str]:
    """Warn if the first model differs from itself, or if that was not measured: ratios mean little then."""
    sentences = []
    for control in controls:
        interval = control.ratio_interval
        where = f"{control.target}, {control.threads} {_threads(control.threads)}, caches {control.caches}"
        if interval is None:
            sentences.append(f"too few rounds to say how sure the ratios are ({where}); ask for more with --repeats.")
        elif not interval.low <= 1 <= interval.high:
            sentences.append(
                f"the first model differs from itself ({where}): measured twice in each round, the ratio is "
                f"{_within(interval)}. Ratios as close to 1 as that say nothing; wait until the machine is idle."
            )
        elif interval.high - interval.low > WIDEST_CONTROL:
            sentences.append(
                f"the machine is too noisy to tell small differences ({where}): measured twice in each round, the "
                f"ratio of the first model to itself is {_within(interval)}. Use an idle machine, or more --repeats."
            )
    return sentences


def machine_warnings(machine: Machine, activity: Activity, *, threads: int, processors: int) -> list[str]:
    """Warn about other influences on the figures.

    Args:
        machine: as it was before the measurement.
        activity: of the processors that were used, during it.
        threads: the largest number that was measured with.
        processors: how many the machine has.
    """
    sentences = []
    load = machine.load_average
    if load is not None and load + threads > processors + 0.5:
        sentences.append(
            f"the load average was {load:.2f} before the measurement began; with {threads} {_threads(threads)} more, "
            f"{processors} processors are not enough."
        )
    if activity.others is not None and activity.others > MOST_OTHERS:
        sentences.append(
            f"other processes took {activity.others:.0%} of the time of the processors that were measured "
            f"({', '.join(map(str, activity.cpus))})."
        )
    if activity.steal is not None and activity.steal > MOST_STEAL:
        sentences.append(f"the hypervisor gave {activity.steal:.0%} of the processors' time to other machines.")
    if machine.governor not in (None, "performance"):
        sentences.append(
            f"the frequency governor is {machine.governor!r}: the clock rate follows the load; set 'performance'."
        )
    return sentences


def _within(interval: Interval) -> str:
    return f"between {interval.low:.3f} and {interval.high:.3f}"


def _threads(count: int) -> str:
    return "thread" if count == 1 else "threads"
