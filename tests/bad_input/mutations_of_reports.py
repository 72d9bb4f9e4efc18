"""Damaged and hostile reports, made from a valid one of any command: seeded, and of every kind in turn.

What is changed are values, keys, numbers and lists of the JSON, in one place or in all of a name, and the text itself.
"""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Callable, Iterator
from typing import Any

from .mutations_of_models import VALUES, changed_json, places

NUMBERS = (0, -1, 1, 2**31, 2**53, 2**63, 10**300, 10**400, 0.0, -0.0, 5e-324, 1.7e308, float("nan"), float("inf"))
TEXTS = (
    *(
        "",
        "x",
        "a\0b",
        "\ud800",
        "\x1b[2J\x1b]0;title\a",
        "<script>alert(1)</script>",
        "x" * 300_000,
        "../../../etc/passwd",
    ),
    *("/dev/zero", "native", "all", "qil_deploy.verify/2", "qil_deploy.device/2", "0" * 64, "\u202egnp.exe", "NaN"),
)


def mutations(content: bytes, count: int, seed: int) -> Iterator[tuple[str, bytes]]:
    """Yield damaged versions of a report, each with a description of the damage.

    Args:
        content: the bytes of a report.
        count: how many.
        seed: the same ones for the same seed.
    """
    generator = random.Random(seed)
    report = json.loads(content)
    kinds = [*_OF_JSON, *_OF_TEXT]
    for index in range(count):
        kind = kinds[index % len(kinds)]
        if kind in _OF_TEXT:
            done, damaged = _OF_TEXT[kind](content, generator)
        else:
            changed = copy.deepcopy(report)
            done = _OF_JSON[kind](changed, generator)
            damaged = json.dumps(changed).encode(errors="surrogatepass")
        yield f"{kind}: {done}", damaged


def _holder(report: Any, way: tuple[Any, ...]) -> Any:  # noqa: ANN401 - whatever JSON holds
    for key in way[:-1]:
        report = report[key]
    return report


def _one_of(report: Any, generator: random.Random, *kinds: type) -> tuple[Any, ...] | None:  # noqa: ANN401 - as above
    """Return the place of a value of some types."""
    found = [way for way in places(report) if type(_holder(report, way)[way[-1]]) in kinds]
    return generator.choice(found) if found else None


def _number(report: Any, generator: random.Random) -> str:  # noqa: ANN401 - as above
    """Change one number, or all with its name."""
    way = _one_of(report, generator, int, float)
    if way is None:
        return "nothing"
    number, everywhere = generator.choice(NUMBERS), generator.random() < 0.3
    namesakes = [other for other in places(report) if other[-1] == way[-1]] if everywhere else [way]
    for other in namesakes:
        if type(_holder(report, other)[other[-1]]) in (int, float):
            _holder(report, other)[other[-1]] = number
    return f"{way[-1]} is {number!r}{', everywhere' if everywhere else ''}"[:90]


def _text(report: Any, generator: random.Random) -> str:  # noqa: ANN401 - as above
    way = _one_of(report, generator, str)
    if way is None:
        return "nothing"
    text = generator.choice(TEXTS)
    _holder(report, way)[way[-1]] = text
    return f"{way[-1]} is {text!r}"[:90]


def _list(report: Any, generator: random.Random) -> str:  # noqa: ANN401 - as above
    way = _one_of(report, generator, list)
    if way is None:
        return "nothing"
    holder, key = _holder(report, way), way[-1]
    entries: list[Any] = holder[key]
    changes: dict[str, list[Any]] = {
        "none": [],
        "one less": entries[:-1],
        "twice": [*entries, *entries],
        "first again": [*entries, *entries[:1]],
        "reversed": entries[::-1],
        "something else": [*entries, generator.choice(VALUES)],
        "many": entries[:1] * 2000,
    }
    change = generator.choice(list(changes))
    holder[key] = changes[change]
    return f"{key}: {change}"


def _null(report: Any, generator: random.Random) -> str:  # noqa: ANN401 - as above
    """Replace a value by null, or null by a value."""
    way = generator.choice(list(places(report)))
    holder = _holder(report, way)
    holder[way[-1]] = None if holder[way[-1]] is not None else generator.choice(VALUES)
    return f"{way[-1]} is {holder[way[-1]]!r}"[:90]


def _swap(report: Any, generator: random.Random) -> str:  # noqa: ANN401 - as above
    """Swap two values."""
    ways = generator.choices(list(places(report)), k=2)
    if ways[0][: len(ways[1])] == ways[1] or ways[1][: len(ways[0])] == ways[0]:
        return "nothing"
    first, second = (_holder(report, way) for way in ways)
    first[ways[0][-1]], second[ways[1][-1]] = second[ways[1][-1]], first[ways[0][-1]]
    return f"{ways[0][-1]} and {ways[1][-1]} swapped"


def _schema(report: Any, generator: random.Random) -> str:  # noqa: ANN401 - as above
    schema = generator.choice((*TEXTS, *VALUES, "qil_deploy.bench/1", "qil_deploy.verify/1", "qil_deploy.report/1"))
    if isinstance(report, dict):
        report["schema"] = schema
    return f"schema is {schema!r}"[:90]


def _flip(content: bytes, generator: random.Random) -> tuple[str, bytes]:
    damaged = bytearray(content)
    found = [generator.randrange(len(damaged)) for _ in range(generator.randint(1, 3))]
    for place in found:
        damaged[place] = generator.randrange(256)
    return f"bytes {found} changed", bytes(damaged)


def _cut(content: bytes, generator: random.Random) -> tuple[str, bytes]:
    length = generator.choice((0, 1, generator.randrange(len(content)), len(content) - 2))
    return f"cut to {length} bytes", content[:length]


def _other_text(_content: bytes, generator: random.Random) -> tuple[str, bytes]:
    contents = (
        b"[]",
        b"3",
        b"null",
        b'"x"',
        b"NaN",
        b"[" * 200_000,
        b'{"a":' * 100_000,
        b"{}",
        b"1" * 5000,
        b"\xff\xfe",
    )
    content = generator.choice(contents)
    return f"{content[:20]!r}", content


def _key_twice(content: bytes, generator: random.Random) -> tuple[str, bytes]:
    keys = [key for key in (b'"images"', b'"schema"', b'"model"', b'"models"', b'"environment"') if key in content]
    key = generator.choice(keys) if keys else b'"schema"'
    return f"{key!r} twice", content.replace(key, key + b": 3, " + key, 1)


_OF_JSON: dict[str, Callable[[Any, random.Random], str]] = {
    "value": changed_json,
    "number": _number,
    "text": _text,
    "list": _list,
    "null": _null,
    "swap": _swap,
    "schema": _schema,
}
_OF_TEXT: dict[str, Callable[[bytes, random.Random], tuple[str, bytes]]] = {
    "flipped": _flip,
    "cut": _cut,
    "other text": _other_text,
    "key twice": _key_twice,
}
