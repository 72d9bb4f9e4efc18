"""Setting up ONNX Runtime Web: complete and tried, or not at all."""

from __future__ import annotations

import hashlib
import json
import sys
import tarfile
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path
from types import MappingProxyType

import numpy as np
import pytest

from qil_deploy.errors import TargetError
from qil_deploy.runtime_tests.browser import run as run_module
from qil_deploy.runtime_tests.browser import set_up_browser
from qil_deploy.runtime_tests.browser.trial_model import write_trial_model
from qil_deploy.runtime_tests.exported_model import read_exported_model
from qil_deploy.runtime_tests.phone import web_runtime
from qil_deploy.runtime_tests.phone.web_runtime import FILES, VERSION, runtime_files, runtime_state, set_up_runtime
from qil_deploy.runtime_tests.targets import find_target, set_up_target, target_names, target_state

NPM = """#!{python}
import shutil, sys
assert sys.argv[1:3] == ["pack", "onnxruntime-web@{version}"], sys.argv
sys.stderr.write("{words}")
if {code} == 0:
    shutil.copy("{package}", "onnxruntime-web-{version}.tgz")
sys.exit({code})
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder for targets, and a package with the expected digests."""
    monkeypatch.setenv("QIL_DEPLOY_TARGETS", str(tmp_path / "targets"))
    digests = {name: hashlib.sha256(name.encode()).hexdigest() for name in FILES}
    monkeypatch.setattr(web_runtime, "FILES", MappingProxyType(digests))
    return tmp_path / "targets"


def write_package(path: Path, contents: Mapping[str, bytes]) -> Path:
    with tarfile.open(path, "w:gz") as archive:
        for name, content in contents.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, BytesIO(content))
    return path


def install_npm(
    folder: Path, package: Path, monkeypatch: pytest.MonkeyPatch, *, code: int = 0, words: str = ""
) -> None:
    """Put an npm on the PATH that has one package and no network."""
    npm = folder / "bin" / "npm"
    npm.parent.mkdir()
    npm.write_text(NPM.format(python=sys.executable, version=VERSION, package=package, code=code, words=words))
    npm.chmod(0o755)
    monkeypatch.setenv("PATH", str(npm.parent))


WHOLE = {f"package/dist/{name}": name.encode() for name in FILES} | {"../../evil": b"x", "package/README.md": b"x"}


def test_three_files_of_the_package_are_taken_and_tried(
    here: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install_npm(tmp_path, write_package(tmp_path / "whole.tgz", WHOLE), monkeypatch)
    assert runtime_state() == "it is not set up; run: python -m qil_deploy target setup wasm"
    tried: list[bytes] = []
    said: list[str] = []

    folder = set_up_runtime(said.append, lambda files: tried.extend(path.read_bytes() for path in files.values()))

    assert folder == here / "wasm"
    assert runtime_state() is None
    assert [path.read_bytes() for path in runtime_files().values()] == tried == [name.encode() for name in FILES]
    assert sorted(path.name for path in folder.iterdir()) == sorted([*FILES, "about.json"])
    assert [path.name for path in here.iterdir()] == ["wasm"]
    assert said == [f"onnxruntime-web {VERSION}, from npm", "a trial"]
    with pytest.raises(TargetError, match=r"wasm is set up already, in .*; remove that folder"):
        set_up_target("wasm")


def test_without_a_browser_it_is_set_up_for_phones_untried(
    here: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install_npm(tmp_path, write_package(tmp_path / "whole.tgz", WHOLE), monkeypatch)
    assert set_up_target("wasm") == here / "wasm"
    assert runtime_state() is None
    assert str(target_state(find_target("wasm"))).startswith("there is no Chromium on the PATH")


PACKAGES: dict[str, tuple[bytes | dict[str, bytes], str]] = {
    "damaged": (b"no archive", "the npm package onnxruntime-web .* is damaged"),
    "incomplete": ({"package/dist/ort.wasm.min.mjs": b"ort.wasm.min.mjs"}, "is damaged: .*simd-threaded.mjs"),
    "changed": (dict.fromkeys(WHOLE, b"other"), r"ort\.wasm\.min\.mjs of .* has SHA-256 .*not the file that was tried"),
}


@pytest.mark.parametrize("case", PACKAGES)
def test_packages_that_are_not_the_one_that_was_tried_leave_nothing(
    case: str, here: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    contents, message = PACKAGES[case]
    package = tmp_path / "package.tgz"
    if isinstance(contents, bytes):
        package.write_bytes(contents)
    else:
        write_package(package, contents)
    install_npm(tmp_path, package, monkeypatch)
    with pytest.raises(TargetError, match=message):
        set_up_browser(lambda _: None)
    assert list(here.iterdir()) == []


def test_what_fails_leaves_nothing_and_says_its_last_words(
    here: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(TargetError, match=r"setting up wasm needs npm, which comes with Node\.js"):
        set_up_browser(lambda _: None)
    assert not here.exists()
    install_npm(tmp_path, tmp_path / "x", monkeypatch, code=1, words="npm error 404")
    with pytest.raises(TargetError, match=r"npm pack failed with exit code 1: npm error 404"):
        set_up_browser(lambda _: None)
    assert list(here.iterdir()) == []


def test_a_trial_that_fails_leaves_nothing(here: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install_npm(tmp_path, write_package(tmp_path / "whole.tgz", WHOLE), monkeypatch)

    def fail(_: Mapping[str, Path]) -> None:
        raise TargetError("it does not work.")

    monkeypatch.setattr(run_module, "_try", fail)
    with pytest.raises(TargetError, match="it does not work"):
        set_up_browser(lambda _: None)
    assert list(here.iterdir()) == []


def test_damaged_folders_are_named(here: Path) -> None:
    folder = here / "wasm"
    folder.mkdir(parents=True)
    for content, message in (
        ("{", "about.json is damaged"),
        ("[]", "about.json is damaged"),
        ("{}", "about.json is damaged"),
        (json.dumps({"version": "1.0"}), f"it is set up with ONNX Runtime Web 1.0, and {VERSION} is needed"),
        (json.dumps({"version": VERSION}), "ort.wasm.min.mjs is gone; remove"),
    ):
        (folder / "about.json").write_text(content)
        assert message in str(runtime_state())
        with pytest.raises(TargetError, match="ONNX Runtime Web cannot be used: "):
            runtime_files()


def test_the_trial_is_a_model_like_any_other(tmp_path: Path) -> None:
    path, images = write_trial_model(tmp_path)
    logits = read_exported_model(path).onnx_predictor()(np.load(images))
    assert logits.tolist() == [[3, 9, 1, 2]]


def test_wasm_is_a_target() -> None:
    assert target_names("wasm") == ("wasm",)
    assert "wasm" in target_names("all")
