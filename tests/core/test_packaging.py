"""The installed package matches pyproject.toml."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
SETUPTOOLS = PYPROJECT["tool"]["setuptools"]


def test_every_folder_with_an_init_is_a_listed_package() -> None:
    found = set()
    for package, folder in SETUPTOOLS["package-dir"].items():
        for init in (ROOT / folder).rglob("__init__.py"):
            below = init.parent.relative_to(ROOT / folder).parts
            found.add(".".join([package, *below]))
    assert sorted(SETUPTOOLS["packages"]) == sorted(found)


def test_every_folder_with_modules_has_an_init() -> None:
    for folder in SETUPTOOLS["package-dir"].values():
        for module in (ROOT / folder).rglob("*.py"):
            assert (module.parent / "__init__.py").is_file(), f"{module.parent} has no __init__.py"


FIND_FROM = """
import json, sys
from importlib.util import find_spec
root, packages = json.loads(sys.argv[1])
sys.path.insert(0, root)
print(json.dumps([find_spec(package).origin for package in packages]))
"""


def test_the_root_of_a_checkout_holds_every_package() -> None:
    """`python -m` searches the current directory before the installed packages."""
    arguments = json.dumps([str(ROOT), SETUPTOOLS["packages"]])
    command = [sys.executable, "-c", FIND_FROM, arguments]
    result = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT.parent)
    assert result.returncode == 0, result.stderr
    for package, origin in zip(SETUPTOOLS["packages"], json.loads(result.stdout), strict=True):
        assert Path(origin) == ROOT.joinpath(*package.split("."), "__init__.py")


def test_links_lead_to_the_folders_that_are_installed() -> None:
    for package, folder in SETUPTOOLS["package-dir"].items():
        assert ROOT.joinpath(*package.split(".")).resolve() == ROOT / folder


def test_package_data_exists() -> None:
    for package, patterns in SETUPTOOLS["package-data"].items():
        for pattern in patterns:
            folder = ROOT / SETUPTOOLS["package-dir"][package]
            assert list(folder.glob(pattern)), f"no {pattern} in {package}"


def test_the_workflow_runs_what_ci_runs_here() -> None:
    """One script, called by both, runs every check that a pull request must pass."""
    workflow = (ROOT / ".github" / "workflows" / "ci.yml").read_text()
    assert re.findall(r"\brun: *(.*)", workflow) == [".ci/run"]
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    made = [line.removeprefix("make ") for line in script.read_text().splitlines() if line.startswith("make ")]
    assert sorted(made) == ["dist", "docs", "lint", "test"]
    targets = {line.partition(":")[0] for line in (ROOT / "Makefile").read_text().splitlines() if ": " in line}
    assert set(made) <= targets


def contract(name: str) -> dict[str, Any]:
    """The import-linter contract whose id is `name`."""
    (found,) = [entry for entry in PYPROJECT["tool"]["importlinter"]["contracts"] if entry["id"] == name]
    return dict(found)


# A device has the base dependencies only. import-linter reads the imports; this runs them.
IMPORT_WITHOUT = """
import importlib, json, sys
module, forbidden = json.loads(sys.argv[1])
sys.modules.update(dict.fromkeys(forbidden))  # None makes an import of that name fail
importlib.import_module(module)
"""


@pytest.mark.parametrize("module", ["qil_deploy", *contract("device")["source_modules"]])
def test_imports_where_torch_and_onnx_are_not_installed(module: str) -> None:
    arguments = json.dumps([module, contract("device")["forbidden_modules"]])
    command = [sys.executable, "-c", IMPORT_WITHOUT, arguments]
    result = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT.parent)
    assert result.returncode == 0, result.stderr
