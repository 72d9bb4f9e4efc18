"""Reports as JSON: dataclasses out, the same dataclasses back in, damaged files refused."""

from __future__ import annotations

import dataclasses
import json
import sys
import types
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Final, Protocol, TypeVar

from .errors import DataError, OtherSchemaError
from .files import write_text
from .untrusted_text import excerpt


class Report(Protocol):
    """A dataclass whose first field is `schema`, equal to the class's `SCHEMA`."""

    SCHEMA: ClassVar[str]
    __dataclass_fields__: ClassVar[dict[str, Any]]


_LARGEST: Final = sys.float_info.max  # JSON turns 1e999 into infinity, and whole numbers have no end

ReportType = TypeVar("ReportType", bound=Report)


def write_report(path: Path, report: Report) -> None:
    """Write a report as JSON, whole or not at all.

    Raises:
        OutputError: `path` cannot be written.
    """
    write_text(path, json.dumps(dataclasses.asdict(report), indent=2, allow_nan=False) + "\n")


def read_report(path: Path, report_class: type[ReportType]) -> ReportType:
    """Read a report that `write_report` wrote, now or before a class had the fields that have defaults.

    Raises:
        DataError: the file is missing, is no JSON, or does not have the fields and types of `report_class`.
    """
    return read_report_of(path, (report_class,))


def read_report_of(path: Path, report_classes: Sequence[type[ReportType]]) -> ReportType:
    """Read a report of whichever of some classes its schema names.

    Raises:
        OtherSchemaError: it names another.
        DataError: as `read_report`.
    """
    try:
        text = path.read_text(encoding="utf-8")
        content = json.loads(text, parse_constant=_refuse, object_pairs_hook=_once)
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path} cannot be read as a report: {excerpt(str(error), 300)}.") from error
    schema = content.get("schema") if isinstance(content, dict) else None
    for report_class in report_classes:
        if schema == report_class.SCHEMA:
            try:
                return typing.cast(ReportType, _restore(report_class, content, "report"))
            except ValueError as error:
                raise DataError(f"{path} is damaged: {error}.") from error
    expected = ", ".join(repr(report_class.SCHEMA) for report_class in report_classes)
    raise OtherSchemaError(f"{path} has schema {excerpt(repr(schema))}; {expected} was expected.", schema)


def _refuse(number: str) -> typing.NoReturn:
    raise ValueError(f"{excerpt(number)} is no number that a report may hold")


def _once(entries: list[tuple[str, object]]) -> dict[str, object]:
    """Make an object of its entries, none of which may be there twice: readers would disagree on which one counts."""
    content = dict(entries)
    if len(content) != len(entries):
        names = [name for name, _ in entries]
        raise ValueError(f"an object has the entry {excerpt(max(names, key=names.count))} twice")
    return content


def _restore(kind: type[object] | types.UnionType, value: object, where: str) -> object:
    """Build `kind` (a dataclass, tuple[X, ...], X | None or a plain type) from decoded JSON, checking every type."""
    if isinstance(kind, types.UnionType):
        (option,) = set(typing.get_args(kind)) - {types.NoneType}
        return None if value is None else _restore(option, value, where)
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        hints = typing.get_type_hints(kind)
        fields = dataclasses.fields(kind)
        names = [field.name for field in fields]
        needed = {field.name for field in fields if field.default is dataclasses.MISSING}
        if not isinstance(value, dict) or not needed <= set(value) <= set(names):
            raise ValueError(f"{where} must be an object with the entries {', '.join(names)}")
        return kind(**{name: _restore(hints[name], value[name], f"{where}.{name}") for name in names if name in value})
    if typing.get_origin(kind) is tuple:
        if not isinstance(value, list):
            raise ValueError(f"{where} must be a list")
        item = typing.get_args(kind)[0]
        return tuple(_restore(item, entry, f"{where}[{index}]") for index, entry in enumerate(value))
    if isinstance(value, int | float) and abs(value) > _LARGEST:
        raise ValueError(f"{where} is larger than any number that a report may hold")
    if kind is float and type(value) is int:
        return float(value)
    if type(value) is not kind:
        raise ValueError(f"{where} must be of type {kind.__name__}, and is {excerpt(repr(value))}")
    return value
