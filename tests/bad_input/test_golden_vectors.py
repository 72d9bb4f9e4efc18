"""Untrusted golden vectors: damaged, of another model, pickled, or larger than memory."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from qil_deploy.errors import DataError
from qil_deploy.runtime_tests.phone.verification import prepare_verification
from qil_deploy.runtime_tests.targets import RunOptions

if TYPE_CHECKING:
    from tests.command_line import Outcome

Arrays = dict[str, NDArray[Any]]

ABOUT: dict[str, object] = {
    "a number": "3",
    "a list": "[]",
    "null": "null",
    "no JSON": "{",
    "endless brackets": "[" * 100_000,
}


def _about(arrays: Arrays, **entries: object) -> NDArray[Any]:
    return np.array(json.dumps(json.loads(str(arrays["about"])) | entries))


# Changes to good golden vectors, and what is said of them.
CHANGES: dict[str, tuple[Callable[[Arrays], Arrays], str]] = {
    "pictures in float": (lambda arrays: {"images": arrays["images"].astype(np.float32)}, "images are float32"),
    "another shape": (lambda arrays: {"images": arrays["images"][..., :27]}, r"of shape [2, 1, 28, 27]"),
    "one number": (lambda _: {"images": np.array(3, np.uint8)}, "of shape []"),
    "no images": (lambda arrays: {"images": arrays["images"][:0]}, "hold no images"),
    "objects": (lambda _: {"images": np.array([{}], object)}, "is pickled, and pickles are never loaded"),
    "objects for logits": (lambda _: {"logits": np.array([{}], object)}, "is pickled, and pickles are never loaded"),
    "tensors that are no list": (lambda arrays: {"about": _about(arrays, tensors=3)}, "are damaged"),
    "a digest that is no text": (lambda arrays: {"about": _about(arrays, sha256=3)}, "does not consist of texts"),
    "logits of other images": (lambda arrays: {"logits": arrays["logits"][:1]}, "not of as many images as there are"),
    "text for logits": (lambda _: {"logits": np.array(["text", "text"])}, "where numbers belong"),
    "another schema": (lambda arrays: {"about": _about(arrays, schema="x")}, "has schema 'x'"),
} | {
    f"about: {name}": (lambda _, text=text: {"about": np.array(text)}, "are damaged") for name, text in ABOUT.items()
}  # fmt: skip


@pytest.mark.parametrize("name", CHANGES)
def test_changes_are_refused(model: Path, golden: Path, refused: Callable[..., str], name: str) -> None:
    with np.load(golden) as archive:
        arrays = dict(archive)
    change, message = CHANGES[name]
    np.savez(golden, **(arrays | change(arrays)))
    sentence = refused("verify", model, "--golden", golden)
    assert str(golden) in sentence
    assert message in sentence


@pytest.mark.parametrize(
    "logits",
    [np.full((2, 10), np.nan, np.float32), np.zeros((2, 9), np.float32), np.zeros((2, 10)), np.zeros([2] + [1] * 29)],
    ids=["NaN", "fewer", "doubles", "many axes"],
)
def test_other_logits_differ(model: Path, golden: Path, call: Callable[..., Outcome], logits: NDArray[Any]) -> None:
    with np.load(golden) as archive:
        arrays = dict(archive)
    np.savez(golden, **(arrays | {"logits": logits}))
    outcome = call("verify", model, "--golden", golden)
    assert outcome.code == 1
    assert outcome.out.count("elements of logits") == 4


def _header(shape: tuple[int, ...]) -> bytes:
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(stream, {"descr": "|u1", "fortran_order": False, "shape": shape})
    return stream.getvalue()


@pytest.mark.parametrize("shape", [(2**50,), (-5,), (2**31, 2**31)])
def test_headers_that_promise_more_than_there_is(
    model: Path, golden: Path, refused: Callable[..., str], shape: tuple[int, ...]
) -> None:
    with zipfile.ZipFile(golden, "w") as archive:
        archive.writestr("about.npy", _header(shape) + b"x")
    assert "are damaged" in refused("verify", model, "--golden", golden)


def test_a_small_archive_of_gigabytes(model: Path, golden: Path, refused: Callable[..., str]) -> None:
    # Few bytes that say that they are many: the sizes stand in the archive's directory, at its end.
    with zipfile.ZipFile(golden, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("images.npy", _header((3 << 30,)))
        archive.getinfo("images.npy").file_size = 3 << 30
    assert "they hold 3,221,225,472 bytes; at most 268," in refused("verify", model, "--golden", golden)


def test_zeros_packed_tightly(model: Path, golden: Path, refused: Callable[..., str], tmp_path: Path) -> None:
    """400 MB of blank images in 400 kB: `verify` and `phone` refuse them before unpacking."""
    with np.load(golden) as archive:
        arrays = dict(archive)
    with zipfile.ZipFile(golden, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        for name, array in arrays.items():
            stream = io.BytesIO()
            np.save(stream, array)
            archive.writestr(f"{name}.npy", stream.getvalue())
        with archive.open("blank.npy", "w", force_zip64=True) as blank:
            blank.write(_header((400, 1000, 1000)))
            for _ in range(400):
                blank.write(bytes(1000 * 1000))
    assert "they hold 400," in refused("verify", model, "--golden", golden)
    with pytest.raises(DataError, match="they hold 400,"):
        prepare_verification(model, golden, RunOptions(), {}, tmp_path, autostart=False)


@pytest.mark.parametrize("archive", [b"", b"PK", b"\x93NUMPY", bytes(999), b"\x80\x04K\x03."])
def test_what_is_no_archive(model: Path, golden: Path, refused: Callable[..., str], archive: bytes) -> None:
    golden.write_bytes(archive)
    assert "are damaged" in refused("verify", model, "--golden", golden)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_cut_and_flipped_archives(
    content: bytes, tmp_path: Path, golden: Path, ends: Callable[..., Outcome], data: st.DataObject
) -> None:
    (tmp_path / "good.onnx").write_bytes(content)
    damaged = bytearray(golden.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.sampled_from([len(damaged), data.draw(st.integers(0, len(damaged)))]))
    path = tmp_path / "damaged.npz"
    path.write_bytes(damaged[:cut])
    ends("verify", tmp_path / "good.onnx", "--golden", path)
