"""CIFAR in its binary version: reading, downloading, refusals."""

from __future__ import annotations

import contextlib
import hashlib
import tarfile
import threading
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from qil_deploy.datasets import cifar, load_images, preprocessing_for
from qil_deploy.errors import DataError

COARSE_AND_FINE = {"cifar10": 1, "cifar100": 2}


@pytest.fixture(autouse=True)
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty data folder."""
    folder = tmp_path / "data"
    folder.mkdir()
    monkeypatch.setenv("QIL_DEPLOY_DATA", str(folder))
    return folder


def write_set(name: str, root: Path, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Write small files in the layout of the archive; return the records of each by its name."""
    archive = cifar.ARCHIVES[name]
    folder = root / archive.folder
    folder.mkdir(parents=True)
    (folder / archive.names).write_text("\n".join(f"class {index}" for index in range(10)) + "\n\n")
    records = {}
    for file in (*archive.files["train"], *archive.files["test"]):
        labels = rng.integers(0, 10, (4, COARSE_AND_FINE[name]), np.uint8)
        records[file] = np.hstack([labels, rng.integers(0, 256, (4, 3072), np.uint8)])
        (folder / file).write_bytes(records[file].tobytes())
    return records


@contextlib.contextmanager
def serving(folder: Path) -> Iterator[str]:
    """Serve a folder by HTTP from this machine to itself."""
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(SimpleHTTPRequestHandler, directory=folder)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.mark.parametrize("name", cifar.ARCHIVES)
def test_records_become_images(name: str, root: Path, rng: np.random.Generator) -> None:
    records = write_set(name, root, rng)
    train, test = load_images(name, "train"), load_images(name, "test")
    batches = 5 if name == "cifar10" else 1
    assert train.images.shape == (4 * batches, 3, 32, 32)
    assert test.images.shape == (4, 3, 32, 32)
    assert train.class_names == tuple(f"class {index}" for index in range(10))
    labels = COARSE_AND_FINE[name]
    (file,) = cifar.ARCHIVES[name].files["test"]
    assert test.labels.dtype == np.int64
    np.testing.assert_array_equal(test.labels, records[file][:, labels - 1])
    # Red, then green, then blue, each row by row.
    assert test.images[2, 1, 3, 4] == records[file][2, labels + 1024 + 3 * 32 + 4]
    assert preprocessing_for(name, test).zero_point in (121, 122)
    assert load_images(name, "test", shape=(1, 28, 28)).images.shape == (4, 1, 28, 28)


def test_a_missing_set_is_downloaded(
    root: Path, tmp_path: Path, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    write_set("cifar10", tmp_path / "server", rng)
    packed = tmp_path / "server" / "cifar-10-binary.tar.gz"
    with tarfile.open(packed, "w:gz") as tar:
        tar.add(tmp_path / "server" / "cifar-10-batches-bin", "cifar-10-batches-bin")
    md5 = hashlib.md5(packed.read_bytes(), usedforsecurity=False).hexdigest()
    with serving(packed.parent) as address:
        here = replace(cifar.ARCHIVES["cifar10"], url=f"{address}/{packed.name}", md5="0" * 32)
        monkeypatch.setitem(cifar.ARCHIVES, "cifar10", here)
        with pytest.raises(DataError, match=r"'cifar10' could not be downloaded .*corrupted"):
            load_images("cifar10", "train")
        monkeypatch.setitem(cifar.ARCHIVES, "cifar10", replace(here, md5=md5))
        assert len(load_images("cifar10", "train")) == 20
    assert (root / "cifar-10-batches-bin" / "test_batch.bin").is_file()


def test_without_a_network_it_is_said_what_to_unpack(monkeypatch: pytest.MonkeyPatch) -> None:
    unreachable = replace(cifar.ARCHIVES["cifar10"], url="http://127.0.0.1:9/cifar-10-binary.tar.gz")
    monkeypatch.setitem(cifar.ARCHIVES, "cifar10", unreachable)
    with pytest.raises(
        DataError, match=r"'cifar10' could not be downloaded .*; unpack http.* QIL_DEPLOY_DATA"
    ) as caught:
        load_images("cifar10")
    assert "\n" not in str(caught.value)


def test_damaged_files_are_refused(root: Path, rng: np.random.Generator) -> None:
    write_set("cifar10", root, rng)
    folder = root / "cifar-10-batches-bin"
    path = folder / "test_batch.bin"
    content = path.read_bytes()
    for damaged in (content[:-1], b""):
        path.write_bytes(damaged)
        with pytest.raises(DataError, match=r"test_batch\.bin has \d+ bytes, but whole records of 3073 are wanted"):
            load_images("cifar10", "test")
    path.write_bytes(b"\xff" + content[1:])
    with pytest.raises(DataError, match=r"has the label 255, but batches\.meta\.txt names 10 classes"):
        load_images("cifar10", "test")
    path.unlink()
    with pytest.raises(DataError, match=r"test_batch\.bin cannot be read"):
        load_images("cifar10", "test")
