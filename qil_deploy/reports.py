"""Reports as JSON: dataclasses are written, read back as the same dataclasses, and refused if damaged.

The dataclasses are the schema: msgspec reads by their type hints, strictly, and nothing is declared a second time.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Final, Protocol, TypeVar

from .errors import DataError, OtherSchemaError
from .files import write_text
from .strict_json import parse_json
from .untrusted_text import excerpt


class Report(Protocol):
    """A dataclass whose first field is `schema`, equal to the class's `SCHEMA`."""

    SCHEMA: ClassVar[str]
    __dataclass_fields__: ClassVar[dict[str, Any]]


ReportType = TypeVar("ReportType", bound=Report)

# How msgspec says what is wrong and where: "Expected `int`, got `str` - at `$.levels[0].images`".
_PLACE: Final = re.compile(r"(.*?)(?: - at `\$(.*)`)?", re.DOTALL)
_OTHER_TYPE: Final = re.compile(r"Expected `(.*)`, got `.*`")
_MISSING: Final = re.compile(r"Object missing required field `(.*)`")
_STEP: Final = re.compile(r"\.(\w+)|\[(\d+)\]")


def report_text(report: Report, indent: int | None = 2) -> str:
    """Return a report as JSON; without `indent` on one line."""
    return json.dumps(dataclasses.asdict(report), indent=indent, allow_nan=False) + "\n"


def write_report(path: Path, report: Report) -> None:
    """Write a report as JSON, whole or not at all.

    Raises:
        OutputError: `path` cannot be written.
    """
    write_text(path, report_text(report))


def read_report(path: Path, report_class: type[ReportType]) -> ReportType:
    """Read a report that `write_report` wrote, now or before a class got its fields with defaults.

    Raises:
        DataError: the file is missing, is no JSON, or does not have the fields and types of `report_class`.
    """
    return read_report_of(path, (report_class,))


def read_report_of(path: Path, report_classes: Sequence[type[ReportType]]) -> ReportType:
    """Read a report of one of several classes, the one that its schema names.

    Raises:
        OtherSchemaError: it names another.
        DataError: as `read_report`.
    """
    try:
        content = parse_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read as a report: {excerpt(str(error), 300)}.") from error
    schema = content.get("schema") if isinstance(content, dict) else None
    for report_class in report_classes:
        if schema == report_class.SCHEMA:
            return _restore(path, content, report_class)
    expected = ", ".join(repr(report_class.SCHEMA) for report_class in report_classes)
    raise OtherSchemaError(f"{path} has schema {excerpt(repr(schema))}; {expected} was expected.", schema)


def _restore(path: Path, content: dict[str, Any], report_class: type[ReportType]) -> ReportType:
    """Build a report from decoded JSON."""
    import msgspec  # a device that only writes reports has none

    try:
        report = msgspec.convert(content, report_class, strict=True)
    except (msgspec.ValidationError, UnicodeEncodeError) as error:
        raise DataError(f"{path} is damaged: {_fault(error, content)}.") from error
    surplus = _surplus_entry(content, dataclasses.asdict(report), "report")
    if surplus is not None:
        raise DataError(f"{path} is damaged: {surplus}.")
    return report


def _fault(error: Exception, content: object) -> str:
    """Describe an error: its place, and the value found there."""
    message, place = _PLACE.fullmatch(str(error)).groups(default="")  # type: ignore[union-attr] # matches any text
    if missing := _MISSING.fullmatch(message):
        return f"report{place} must be an object with the entries of its schema, and has no {missing[1]}"
    found: Any = content
    for name, index in _STEP.findall(place):
        found = found[name or int(index)]
    other_type = _OTHER_TYPE.fullmatch(message)
    wanted = f"must be of type {other_type[1]}" if other_type else f"is refused ({message})"
    return f"report{place} {wanted}, and is {excerpt(repr(found))}"


def _surplus_entry(content: object, known: object, where: str) -> str | None:
    """Return an entry of decoded JSON that the report built from it lacks; None if it has all."""
    parts: list[tuple[object, object, str]] = []
    if isinstance(content, dict) and isinstance(known, dict):
        surplus = next((name for name in content if name not in known), None)
        if surplus is not None:
            return f"{where} must be an object with the entries {', '.join(known)}, and has {excerpt(surplus)}"
        parts = [(value, known[name], f"{where}.{name}") for name, value in content.items()]
    elif isinstance(content, list) and isinstance(known, tuple):
        parts = [(*pair, f"{where}[{at}]") for at, pair in enumerate(zip(content, known, strict=True))]
    return next((found for part in parts if (found := _surplus_entry(*part)) is not None), None)
