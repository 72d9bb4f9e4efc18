"""Options of a measurement, on any target."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from qil_deploy.errors import ConfigError

from .report import COLD, WARM

MOST_THREADS = 1024  # ONNX Runtime takes any number, and ends the process when the system has no more


@dataclass(frozen=True, kw_only=True)
class BenchOptions:
    """Options of a measurement.

    Attributes:
        threads: thread counts to measure with.
        caches: states of the caches to measure in, `WARM` and `COLD`.
        batch: images per run, for models whose first dimension is free.
        repeats: measured rounds: runs of each model in each setting.
        warmup: rounds before them that are not counted.
        seed: of the random inputs, of the order within a round and of the bootstrap.
        processes: how many are started with each model for its load time and peak memory.
        timeout: seconds that one of them may take.
        profile: whether to profile each model as well.

    Raises:
        ConfigError: one of them is out of range.
    """

    threads: tuple[int, ...] = (1,)
    caches: tuple[str, ...] = (WARM, COLD)
    batch: int = 1
    repeats: int = 100
    warmup: int = 10
    seed: int = 0
    processes: int = 3
    timeout: float = 120.0
    profile: bool = False

    def __post_init__(self) -> None:
        if not self.threads:
            raise ConfigError("no number of threads; name at least one.")
        if not self.caches or set(self.caches) - {WARM, COLD}:
            raise ConfigError(f"caches are {list(self.caches)}; choose from {WARM}, {COLD}.")
        check_unique("threads", self.threads)
        check_unique("caches", self.caches)
        if max(self.threads) > MOST_THREADS:
            raise ConfigError(f"threads is {max(self.threads)}; it must be at most {MOST_THREADS}.")
        check_least("threads", min(self.threads), 1)
        for name, least in {"batch": 1, "repeats": 1, "warmup": 0, "seed": 0, "processes": 1}.items():
            check_least(name, getattr(self, name), least)
        check_timeout(self.timeout)


def check_least(name: str, value: int, least: int) -> None:
    """Raise `ConfigError` if a number is too small."""
    if value < least:
        raise ConfigError(f"{name} is {value}; it must be at least {least}.")


def check_timeout(seconds: float) -> None:
    """Raise `ConfigError` unless a time is positive."""
    if not seconds > 0:
        raise ConfigError(f"the timeout is {seconds:g} seconds; it must be positive.")


def check_unique(name: str, values: Sequence[object]) -> None:
    """Raise `ConfigError` if a value occurs twice."""
    if len(set(values)) != len(values):
        raise ConfigError(f"{name} are {list(values)}; name each once.")
