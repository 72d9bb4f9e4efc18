"""Safetensors files: reading returns what was written, and any header leads to tensors or a clause."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load, save_file
from torch import Tensor

from qil_deploy.checkpoint.safetensors_file import (
    HEADER_LIMIT,
    DamagedFileError,
    TensorEntry,
    file_content,
    has_digest,
    matches_digest,
    read_contents,
    read_into,
    read_tensors,
)

TENSORS = {
    "a": torch.arange(6, dtype=torch.float32).reshape(2, 3),
    "scalar": torch.tensor(2, dtype=torch.int64),
    "empty": torch.zeros(0, 3),
    "flags": torch.tensor([True, False]),
    "small": torch.tensor([1, -1], dtype=torch.int8),
    "half": torch.ones(3, dtype=torch.bfloat16),
    "complex": torch.ones(2, dtype=torch.complex64),
}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "a.safetensors"
    path.write_bytes(file_content(TENSORS, {"about": "é"}))
    return path


def test_what_was_written_is_read(path: Path) -> None:
    contents = read_contents(path)
    assert contents.metadata["about"] == "é"
    assert has_digest(contents)
    assert contents.tensors == {name: TensorEntry.of(tensor) for name, tensor in TENSORS.items()}
    assert contents.values == sum(tensor.numel() for tensor in TENSORS.values())
    found = read_tensors(path)
    assert all(
        torch.equal(found[name], tensor) and found[name].dtype == tensor.dtype for name, tensor in TENSORS.items()
    )
    assert load(path.read_bytes()).keys() == TENSORS.keys()


def test_the_same_tensors_are_the_same_bytes() -> None:
    assert len({file_content(TENSORS, {"a": "1", "b": "2", "c": "3"}) for _ in range(20)}) == 1


def test_files_of_others_have_no_digest_and_are_read(tmp_path: Path) -> None:
    save_file({"a": torch.ones(2)}, tmp_path / "a.safetensors")
    contents = read_contents(tmp_path / "a.safetensors")
    assert not has_digest(contents)
    assert contents.metadata == {}
    assert torch.equal(read_tensors(tmp_path / "a.safetensors")["a"], torch.ones(2))


@pytest.mark.parametrize("change", ["value", "metadata", "name", "dtype"])
def test_the_digest_is_of_everything(path: Path, change: str) -> None:
    content = path.read_bytes()
    changed = {
        "value": content[:-1] + bytes([content[-1] ^ 1]),
        "metadata": content.replace(b'"about":"\\u00e9"', b'"about":"\\u00e8"'),
        "name": content.replace(b'"small"', b'"smell"'),
        "dtype": content.replace(b'"dtype":"I8"', b'"dtype":"U8"'),
    }[change]
    assert changed != content
    path.write_bytes(changed)
    read_contents(path)
    with pytest.raises(DamagedFileError, match="its bytes are not those that were written"):
        read_tensors(path)


ENTRY = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ("[]", "no JSON object"),
        ("{", "no JSON"),
        ('{"a": 1, "a": 2}', "the key 'a' occurs twice in one object"),
        ("[" * 10**5, "nested too deep"),
        ('{"a": NaN}', "NaN is not a finite float64 number"),
        (f'{{"a": {"9" * 5000}}}', "Exceeds the limit"),
        (json.dumps({"__metadata__": {"a": 1}}), "metadata is no table of texts"),
        (json.dumps({"a": 3}), "'a' is not described by dtype, shape and data_offsets"),
        (json.dumps({"a": ENTRY | {"more": 1}}), "is not described by"),
        (json.dumps({"a": ENTRY | {"dtype": "Q4"}}), "dtype 'Q4', which no network here has"),
        (json.dumps({"a": ENTRY | {"dtype": []}}), "has dtype"),
        (json.dumps({"a": ENTRY | {"shape": [-2]}}), r"has shape \[-2\]"),
        (json.dumps({"a": ENTRY | {"shape": [True, 2]}}), "has shape"),
        (json.dumps({"a": ENTRY | {"shape": [2.0]}}), "has shape"),
        (json.dumps({"a": ENTRY | {"shape": [1] * 17}}), "has shape"),
        (json.dumps({"a": ENTRY | {"shape": [2**40, 2**40]}}), "takes 4,835,703,278,458,516,698,824,704 bytes, not 8"),
        (json.dumps({"a": ENTRY | {"data_offsets": [8, 0]}}), "takes 8 bytes, not -8"),
        (json.dumps({"a": ENTRY | {"data_offsets": [0]}}), "has offsets"),
        (json.dumps({"a": ENTRY | {"data_offsets": [8, 16]}}), "begin at 8, not at 0"),
        (json.dumps({"a": ENTRY, "b": ENTRY}), "begin at 0, not at 8"),
        (json.dumps({}), "end at byte 0 of 8"),
        (json.dumps({"x" * 10**6: 3}), r"tensor 'x*\.\.\. \(1,000,000 characters\)'"),
        (json.dumps({"\x1b[31m": 3}), r"tensor '\\x1b\[31m'"),
    ],
)
def test_headers_that_are_refused(tmp_path: Path, header: str, message: str) -> None:
    content = header.encode()
    (tmp_path / "a").write_bytes(len(content).to_bytes(8, "little") + content + bytes(8))
    with pytest.raises(DamagedFileError, match=message) as caught:
        read_contents(tmp_path / "a")
    assert len(str(caught.value)) < 500


def test_a_header_that_is_too_large_is_not_parsed(tmp_path: Path) -> None:
    content = b"{}" + b" " * HEADER_LIMIT
    (tmp_path / "a").write_bytes(len(content).to_bytes(8, "little") + content)
    with pytest.raises(DamagedFileError, match="its header has 8,388,610 bytes; at most 8,388,608 are read"):
        read_contents(tmp_path / "a")


@pytest.mark.parametrize("length", [0, 1, 7, 8, 9, 50])
def test_files_that_are_cut(path: Path, length: int) -> None:
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(DamagedFileError, match="fewer than its header asks for"):
        read_contents(path)


@given(position=st.integers(0, 10**6), value=st.integers(0, 255))
def test_any_other_byte_is_refused_or_read_as_something_else(
    tmp_path_factory: pytest.TempPathFactory, position: int, value: int
) -> None:
    path = tmp_path_factory.getbasetemp() / "changed.safetensors"
    content = bytearray(file_content(TENSORS, {"about": "x"}))
    content[position % len(content)] = value
    path.write_bytes(content)
    try:
        contents, found = read_contents(path), read_tensors(path)
    except DamagedFileError:
        return
    assert {name: TensorEntry.of(tensor) for name, tensor in found.items()} == dict(contents.tensors)


def test_shared_and_strided_tensors_are_written_out(tmp_path: Path) -> None:
    base = torch.arange(12.0).reshape(3, 4)
    tensors: dict[str, Tensor] = {"a": base, "b": base, "c": base.t(), "d": base[:, 1], "e": torch.ones(1).expand(4)}
    (tmp_path / "a").write_bytes(file_content(tensors, {}))
    found = read_tensors(tmp_path / "a")
    assert all(torch.equal(found[name], tensor) for name, tensor in tensors.items())


def test_tensors_are_read_into_those_that_are_there(tmp_path: Path) -> None:
    kept: dict[str, Tensor] = {
        "a": torch.randn(3, 4),
        "b": torch.arange(6, dtype=torch.int64).reshape(2, 3),
        "scalar": torch.tensor(True),
        "empty": torch.zeros(0, 3),
        "half": torch.randn(5).bfloat16(),
        "strided": torch.randn(2, 3, 4, 5),
    }
    path = tmp_path / "x.safetensors"
    path.write_bytes(file_content(kept, {"key": "value"}))
    found = {name: torch.zeros_like(tensor) for name, tensor in kept.items()}
    found["strided"] = found["strided"].contiguous(memory_format=torch.channels_last)
    storages = {name: tensor.data_ptr() for name, tensor in found.items()}
    contents = read_contents(path)
    assert not matches_digest(contents, found)
    read_into(path, contents, found)
    for name, tensor in kept.items():
        assert torch.equal(found[name], tensor), name
        assert found[name].data_ptr() == storages[name], name
    assert matches_digest(contents, found)


def test_a_file_that_becomes_shorter_while_it_is_read(path: Path) -> None:
    contents = read_contents(path)
    tensors = read_tensors(path)
    targets = {name: torch.zeros_like(tensor) for name, tensor in tensors.items()}
    del tensors
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(DamagedFileError, match="it ends within tensor"):
        read_into(path, contents, targets)
