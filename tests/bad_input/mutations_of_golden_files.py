"""Damaged and hostile golden vectors, made from valid ones: seeded, and of every kind in turn.

What is changed is the archive (bytes, entries, sizes, checksums, how they are packed), the headers of its arrays, the
arrays themselves, or what the file says of itself.
"""

from __future__ import annotations

import io
import json
import random
import zipfile
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .mutations_of_models import VALUES, changed_json

Arrays = dict[str, NDArray[Any]]
Entries = dict[str, bytes]
Generator = random.Random

NAMES = ("", "x", "..", "/etc/passwd", "../../x.npy", "\x1b[2J", "n" * 5000, "logits", "images", "about", "folder/")
PACKINGS = (zipfile.ZIP_STORED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA)
HEADERS = (
    b"\x93NUMPY\x01\x00\x10\x00{'descr': '|u1'}",
    b"\x93NUMPY\x02\x00\xff\xff\xff\xff{",
    b"\x93NUMPY\x09\x00\x10\x00{}",
    b"\x93NUMPY\x01\x00\xff\xff" + b"(" * 65535,
    b"\x93NUMPY",
    b"",
    b"\x80\x04K\x03.",
)
SHAPES = (
    "(-1,)",
    "(2**40,)",
    "(1099511627776,)",
    "(0, 99999999999)",
    "(1.5,)",
    "((1,),)",
    "'x'",
    "(True,)",
    "(" + "1," * 99 + ")",
)
TYPES = ("<f2", "<f8", ">i4", "<c8", "|O", "<U9", "|S9", "|V4", "<M8[s]", "?", "<i8", "nonsense")


def mutations(content: bytes, count: int, seed: int) -> Iterator[tuple[str, bytes]]:
    """Yield damaged versions of golden vectors, each with a description of the damage.

    Args:
        content: the bytes of an .npz file of golden vectors.
        count: how many.
        seed: the same ones for the same seed.
    """
    generator = random.Random(seed)
    kinds = [*_OF_BYTES, *_OF_ENTRIES, *_OF_ARRAYS]
    with np.load(io.BytesIO(content), allow_pickle=False) as archive:
        arrays: Arrays = dict(archive)
    for index in range(count):
        kind = kinds[index % len(kinds)]
        if kind in _OF_BYTES:
            done, damaged = _OF_BYTES[kind](content, generator)
        elif kind in _OF_ENTRIES:
            entries = {f"{name}.npy": _stored(array) for name, array in arrays.items()}
            done, damaged = _OF_ENTRIES[kind](entries, generator)
        else:
            changed = dict(arrays)
            done = _OF_ARRAYS[kind](changed, generator)
            damaged = _packed({f"{name}.npy": _stored(array) for name, array in changed.items()})
        yield f"{kind}: {done}", damaged


def _stored(array: NDArray[Any]) -> bytes:
    stream = io.BytesIO()
    np.lib.format.write_array(stream, np.asanyarray(array), allow_pickle=True)
    return stream.getvalue()


def _packed(entries: Entries, packing: int = zipfile.ZIP_DEFLATED) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", packing) as archive:
        for name, content in entries.items():
            archive.writestr(name, content)
    return stream.getvalue()


def _flip(content: bytes, generator: Generator) -> tuple[str, bytes]:
    damaged = bytearray(content)
    found = [generator.randrange(len(damaged)) for _ in range(generator.randint(1, 4))]
    for place in found:
        damaged[place] ^= 1 << generator.randrange(8)
    return f"bits at {found} flipped", bytes(damaged)


def _flip_directory(content: bytes, generator: Generator) -> tuple[str, bytes]:
    """Change bytes of the archive's directory, which holds names, sizes and offsets."""
    damaged = bytearray(content)
    start = content.find(b"PK\x01\x02")
    place = generator.randrange(max(start, 0), len(damaged))
    damaged[place : place + 4] = generator.choice((b"\xff\xff\xff\xff", bytes(4), generator.randbytes(4)))
    return f"directory changed at {place}", bytes(damaged[: len(content)])


def _cut(content: bytes, generator: Generator) -> tuple[str, bytes]:
    length = generator.choice((0, 1, 4, generator.randrange(len(content)), len(content) - 1))
    return f"cut to {length} bytes", content[:length]


def _spliced(content: bytes, generator: Generator) -> tuple[str, bytes]:
    start = generator.randrange(len(content))
    stop = min(len(content), start + generator.choice((1, 30, 3000)))
    middle = generator.choice((b"", bytes(stop - start), generator.randbytes(64), content[start:stop] * 3))
    return f"bytes {start} to {stop} replaced by {len(middle)}", content[:start] + middle + content[stop:]


def _no_archive(_content: bytes, generator: Generator) -> tuple[str, bytes]:
    array = _stored(np.zeros((2, 1, 28, 28), generator.choice((np.uint8, np.float32))))
    content = generator.choice(
        (b"", b"PK", b"PK\x05\x06" + bytes(18), bytes(999), b"[" * 999, *HEADERS, array, array[:90])
    )
    return f"{content[:20]!r}", content


def _other_entries(entries: Entries, generator: Generator) -> tuple[str, bytes]:
    name = generator.choice(list(entries))
    action = generator.choice(("drop", "rename", "add", "garbage", "empty", "longer", "shorter"))
    if action == "drop":
        del entries[name]
    elif action == "rename":
        entries[generator.choice(NAMES)] = entries.pop(name)
    elif action == "add":
        entries[generator.choice(NAMES)] = entries[name]
    else:
        changed = {"garbage": generator.randbytes(200), "empty": b"", "longer": entries[name] + b"\0"}
        entries[name] = changed.get(action, entries[name][:-1])
    return f"{name}: {action}", _packed(entries)


def _other_packing(entries: Entries, generator: Generator) -> tuple[str, bytes]:
    packing = generator.choice(PACKINGS)
    return f"packed by method {packing}", _packed(entries, packing)


def _twice(entries: Entries, generator: Generator) -> tuple[str, bytes]:
    """Store an entry twice under one name."""
    name = generator.choice(list(entries))
    stand_in = name[:-1] + "X"
    content = _packed({stand_in: entries[name], **entries})
    return f"{name} twice", content.replace(stand_in.encode(), name.encode())


def _many(entries: Entries, generator: Generator) -> tuple[str, bytes]:
    count = generator.choice((100, 1000))
    return f"{count} more entries", _packed({**entries, **{f"{index}.npy": b"x" for index in range(count)}})


def _lied(entries: Entries, generator: Generator) -> tuple[str, bytes]:
    """Give the archive's directory other sizes, checksums or flags than the entries have."""
    stream = io.BytesIO()
    field = generator.choice(("file_size", "compress_size", "CRC", "flag_bits", "header_offset", "compress_type"))
    value = generator.choice((0, 1, 8, 2**16 - 1, 2**31 - 1, 2**32 - 1))
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in entries.items():
            archive.writestr(name, content)
        told = archive.infolist()[generator.randrange(len(entries))]
        setattr(told, field, min(value, 2**16 - 1) if field in ("flag_bits", "compress_type") else value)
    return f"{told.filename}: {field} is {value}", stream.getvalue()


def _bomb(entries: Entries, generator: Generator) -> tuple[str, bytes]:
    """Compress many zeros, as an additional entry or in place of one."""
    size = generator.choice((2**20, 2**24, 2**26))
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for name, content in entries.items():
            archive.writestr(name, content)
        with archive.open(generator.choice(("blank.npy", "x")), "w", force_zip64=True) as entry:
            for _ in range(size >> 20):
                entry.write(bytes(2**20))
    return f"{size:,} zeros", stream.getvalue()


def _header(entries: Entries, generator: Generator) -> tuple[str, bytes]:
    """Change the header of an array: its shape, its type, its order, or all of it."""
    name = generator.choice(list(entries))
    content = entries[name]
    size = 10 + int.from_bytes(content[8:10], "little")
    header = {"shape": generator.choice(SHAPES), "descr": f"'{generator.choice(TYPES)}'", "fortran_order": "True"}
    key = generator.choice(("shape", "descr", "fortran_order", "all"))
    if key == "all":
        entries[name] = generator.choice(HEADERS) + content[size:]
        return f"{name}: another header", _packed(entries)
    old = np.lib.format.read_array_header_1_0(io.BytesIO(content[8:size]))
    parts = {"descr": repr(np.lib.format.dtype_to_descr(old[2])), "fortran_order": "False", "shape": repr(old[0])}
    parts[key] = header[key]
    text = f"{{'descr': {parts['descr']}, 'fortran_order': {parts['fortran_order']}, 'shape': {parts['shape']}, }}\n"
    entries[name] = b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text.encode() + content[size:]
    return f"{name}: {key} is {parts[key][:40]}", _packed(entries)


def _other_array(arrays: Arrays, generator: Generator) -> str:
    name = generator.choice(list(arrays))
    array = arrays[name]
    changes: dict[str, Callable[[], NDArray[Any]]] = {
        "fewer": lambda: array[:1],
        "more": lambda: np.concatenate([array] * 3) if array.ndim else array,
        "none": lambda: array[:0] if array.ndim else np.zeros(0),
        "a number": lambda: np.array(3),
        "narrower": lambda: array[..., :-1],
        "one axis more": lambda: array[..., None],
        "fifty axes": lambda: np.zeros([len(array) if array.ndim else 1] + [1] * 49, array.dtype),
        "flat": array.ravel,
        "turned": lambda: np.asfortranarray(array),
        "doubles": lambda: array.astype(np.float64) if array.dtype.kind in "biuf" else array,
        "NaN": lambda: np.full(array.shape, np.nan, np.float32),
        "infinity": lambda: np.full(array.shape, np.inf, np.float32),
        "noise": lambda: np.frombuffer(generator.randbytes(array.nbytes), np.uint8).reshape(*array.shape, -1),
        "objects": lambda: np.array([{}], object),
        "text": lambda: np.array(["x"] * max(len(array), 1) if array.ndim else "x"),
        "records": lambda: np.zeros(array.shape, [("a", "u1")]),
    }
    change = generator.choice(list(changes))
    arrays[name] = changes[change]()
    return f"{name}: {change}"


def _about(arrays: Arrays, generator: Generator) -> str:
    content = json.loads(str(arrays["about"]))
    done = changed_json(content, generator)
    arrays["about"] = np.array(json.dumps(content))
    return done


def _about_text(arrays: Arrays, generator: Generator) -> str:
    text = generator.choice(("", "{", "[]", "3", "null", "[" * 100_000, "1" * 5000, '{"tensors": "x"}', "{}", "\ud800"))
    arrays["about"] = generator.choice(
        (np.array(text), np.array([text, text]), np.array(text.encode(errors="replace")))
    )
    return text[:20]


def _named(arrays: Arrays, generator: Generator) -> str:
    """Change the list of tensors."""
    content = json.loads(str(arrays["about"]))
    names: list[Any] = content["tensors"]
    action = generator.choice(("reversed", "twice", "unknown", "images", "few", "no name", "many"))
    changed = {
        "reversed": names[::-1],
        "twice": [*names, *names],
        "unknown": [generator.choice(NAMES), *names],
        "images": ["images", "about", *names],
        "few": names[-1:],
        "no name": [*names, generator.choice(VALUES)],
        "many": [*(f"t{index}" for index in range(20_000)), *names],
    }
    content["tensors"] = changed[action]
    arrays["about"] = np.array(json.dumps(content))
    return action


_OF_BYTES: dict[str, Callable[[bytes, Generator], tuple[str, bytes]]] = {
    "flipped": _flip,
    "directory": _flip_directory,
    "cut": _cut,
    "spliced": _spliced,
    "no archive": _no_archive,
}
_OF_ENTRIES: dict[str, Callable[[Entries, Generator], tuple[str, bytes]]] = {
    "entries": _other_entries,
    "packing": _other_packing,
    "twice": _twice,
    "many": _many,
    "lied": _lied,
    "bomb": _bomb,
    "header": _header,
}
_OF_ARRAYS: dict[str, Callable[[Arrays, Generator], str]] = {
    "array": _other_array,
    "about": _about,
    "about text": _about_text,
    "named": _named,
}
