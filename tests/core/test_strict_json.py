"""Strict JSON: invalid or excessive content leads to a clause."""

from __future__ import annotations

import pytest

from qil_deploy.strict_json import parse_json


@pytest.mark.parametrize("text", ['{"a": [1, 2.5, null, true, "é"]}', b'{"a": [1, 2.5, null, true, "\xc3\xa9"]}'])
def test_json_is_parsed(text: str | bytes) -> None:
    assert parse_json(text) == {"a": [1, 2.5, None, True, "é"]}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "Expecting value"),
        ("{'a': 1}", "Expecting property name"),
        ("NaN", "NaN is not a finite float64 number"),
        ("[-Infinity]", "-Infinity is not a finite float64 number"),
        ('{"a": {"b": 1, "b": 1}}', "the key 'b' occurs twice in one object"),
        ("[" * 10**5 + "]" * 10**5, "nested too deep"),
        ('{"a":' * 10**5, "nested too deep"),
        ("9" * 5000, "Exceeds the limit"),
        (b"\xff\xfe", "'utf-8' codec can't decode"),
        ('{"' + "\x1b" * 9, "Invalid control character"),
    ],
)
def test_what_is_refused(text: str | bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        parse_json(text)
    assert len(str(caught.value)) < 300
    assert "\x1b" not in str(caught.value)
