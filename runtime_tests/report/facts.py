"""Descriptions of machines in reports, as pairs of names and texts, for any fields."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import fields, is_dataclass

from qil_deploy.runtime_tests.machine import Activity, Cache

from .figures import Environment, Fact

_FACT_NAMES = {
    "onnxruntime": "ONNX Runtime",
    "numpy": "NumPy",
    "python": "Python",
    "cpu": "processor",
    "cpus": "logical processors",
    "machine": "instruction set",
    "features": "extensions",
    "flags": "extensions of the processor",
    "virtual": "virtual machine",
}
_ACTIVITY_NAMES = {
    "cpus": "measured on processors",
    "others": "time that other processes took",
    "steal": "time that other virtual machines took",
}


def describe_place(target: str, measured: str, *parts: object) -> Environment:
    """Describe where a report was made: all fields of its dataclasses about that, as text."""
    return Environment(target=target, measured=(measured,), facts=tuple(_facts(parts)))


def _facts(parts: Iterable[object]) -> Iterable[Fact]:
    """Yield every field of some dataclasses as text, except None and empty ones."""
    for part in parts:
        names = _ACTIVITY_NAMES if isinstance(part, Activity) else _FACT_NAMES
        for name, value in _items(part):
            text = _text(value) if not isinstance(part, Activity) or not isinstance(value, float) else f"{value:.0%}"
            if text:
                yield Fact(name=names.get(name, name.replace("_", " ")), value=text)


def _items(part: object) -> list[tuple[str, object]]:
    return [(field.name, getattr(part, field.name)) for field in fields(part)] if is_dataclass(part) else []


def _text(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.3g}"
    if isinstance(value, tuple):
        return ", ".join(map(_text, value))
    if isinstance(value, Cache):
        return f"L{value.level} {value.kind.lower()} {value.bytes // 1024:,} KiB"
    return str(value)
