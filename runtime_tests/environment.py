"""Where a measurement was made: versions and the processor."""

from __future__ import annotations

from dataclasses import dataclass, fields

from . import device_runner


@dataclass(frozen=True, kw_only=True)
class Environment:
    """Software and processor of one report.

    Attributes:
        onnxruntime, numpy, python: versions.
        machine: instruction set, for example "x86_64".
        cpu: the processor's own name, or what the system says when it has none.
        cpus: how many logical processors this process may use.
    """

    onnxruntime: str
    numpy: str
    python: str
    machine: str
    cpu: str
    cpus: int


def describe_environment() -> Environment:
    """Describe the machine this process runs on."""
    found = device_runner.describe_environment()
    return Environment(**{field.name: found[field.name] for field in fields(Environment)})
