"""A device after `pip install qil-deploy` without extras: the installed packages, and the commands that run.

Wheel and source archive are built as `make dist` does. The wheel is installed into an environment of its own, with what
it depends on, from the index that pip is configured with; the source archive into a second one, which finds the rest in
the first.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import venv
from dataclasses import dataclass
from pathlib import Path

import pytest

from qil_deploy.datasets.fashion_mnist import FASHION_MNIST_FOLDER

ROOT = Path(__file__).parents[2]
ZOO = ROOT / "zoo" / "fashion_mnist"
MODEL = ZOO / "w2a2.onnx"

# Without what would hide the installed package, from Python and from pip.
ENVIRONMENT = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"} | {"COLUMNS": "200"}

pytestmark = pytest.mark.slow  # an environment is made and filled

LARGE = ("torch", "onnx", "torchvision", "matplotlib", "onnxscript", "sklearn", "scipy", "accelerate", "tensorboard")
# typer brings pydantic, whose core is compiled, and jinja2 markupsafe; all of these have wheels for x86-64 and aarch64.
COMPILED = {"markupsafe", "msgspec", "numpy", "onnxruntime", "protobuf", "psutil", "pydantic_core"}

FIND = "import sys; from importlib.util import find_spec; print(*[name for name in sys.argv[1:] if find_spec(name)])"
LIST_COMPILED = """
from importlib.metadata import distributions
for found in distributions():
    if "Root-Is-Purelib: false" in (found.read_text("WHEEL") or ""):
        print(found.name.lower().replace("-", "_"))
"""
LOADED = """
import sys
import qil_deploy, qil_deploy.runtime_tests
print(*sorted(name for name in sys.modules if "." not in name))
"""
WRITE_GOLDEN = """
import sys
from pathlib import Path
import numpy as np
from qil_deploy.runtime_tests.golden import write_golden
images = np.random.default_rng(0).integers(0, 256, (2, 1, 28, 28), dtype=np.uint8)
write_golden(Path(sys.argv[1]), images, "noise", Path(sys.argv[2]))
"""


@dataclass(frozen=True, kw_only=True)
class Device:
    """A new environment, and the empty folder in which everything is started."""

    python: Path
    folder: Path

    def run(self, *arguments: object, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
        """Run its Python, in its own folder or a given one."""
        return subprocess.run(
            [str(self.python), *map(str, arguments)],
            cwd=cwd or self.folder,
            env=ENVIRONMENT,
            capture_output=True,
            text=True,
            check=False,
            timeout=300,
        )

    def packages(self) -> Path:
        """Return the folder of installed packages."""
        (folder,) = self.python.parents[1].glob("lib/python*/site-packages")
        return folder

    def qil(self, *arguments: object, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
        """Run the command line."""
        return self.run("-m", "qil_deploy", *arguments, cwd=cwd)


@dataclass(frozen=True, kw_only=True)
class Archives:
    """The archives of a release."""

    wheel: Path
    source: Path


@pytest.fixture(scope="module")
def archives(tmp_path_factory: pytest.TempPathFactory) -> Archives:
    """Build both from a copy, without the results of earlier builds beside the sources."""
    folder = tmp_path_factory.mktemp("archives")
    copied = folder / "copied"
    for name in ("qil_deploy", "training", "export", "runtime_tests"):
        shutil.copytree(ROOT / name, copied / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copied)
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder), str(copied)]
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (wheel,), (source,) = folder.glob("*.whl"), folder.glob("*.tar.gz")
    return Archives(wheel=wheel, source=source)


def _pip(python: Path, *arguments: str) -> None:
    """Run this environment's pip for another one."""
    options = ["--quiet", "--disable-pip-version-check", "--python", str(python)]
    command = [sys.executable, "-m", "pip", *options, *arguments]
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def _environment(folder: Path) -> Device:
    """Make an empty environment."""
    venv.create(folder / "venv")
    (folder / "home").mkdir()
    return Device(python=folder / "venv" / "bin" / "python", folder=folder / "home")


@pytest.fixture(scope="module")
def device(tmp_path_factory: pytest.TempPathFactory, archives: Archives) -> Device:
    """Install the wheel into a fresh environment."""
    made = _environment(tmp_path_factory.mktemp("device"))
    _pip(made.python, "install", str(archives.wheel))
    return made


@pytest.fixture(scope="module")
def from_source(tmp_path_factory: pytest.TempPathFactory, archives: Archives, device: Device) -> Device:
    """Install the source archive into a second environment, which finds all other packages in the first."""
    made = _environment(tmp_path_factory.mktemp("from_source"))
    _pip(made.python, "install", "--no-deps", str(archives.source))
    (made.packages() / "dependencies.pth").write_text(f"{device.packages()}\n")
    return made


def _installed(packages: Path) -> dict[str, bytes]:
    """Return the files of the project in an environment, by name."""
    found = (packages / "qil_deploy").rglob("*")
    return {
        str(path.relative_to(packages)): path.read_bytes() for path in found if path.suffix != ".pyc" and path.is_file()
    }


def test_the_source_archive_installs_what_the_wheel_does(device: Device, from_source: Device) -> None:
    installed = _installed(from_source.packages())
    assert installed == _installed(device.packages())
    assert {"qil_deploy/py.typed", "qil_deploy/training/recipes/digits_resnet14.toml"} <= installed.keys()


def test_only_what_a_device_needs_is_installed(device: Device) -> None:
    assert device.run("-c", FIND, *LARGE).stdout.split() == []
    assert set(device.run("-c", LIST_COMPILED).stdout.split()) <= COMPILED


def test_the_package_loads_little(device: Device) -> None:
    """Calling `verify` needs neither the command line nor tables, pydantic or a web server."""
    loaded = set(device.run("-c", LOADED).stdout.split())
    assert {"qil_deploy", "numpy", "onnxruntime"} <= loaded
    assert loaded.isdisjoint({"typer", "rich", "pydantic", "http", "PIL"})


def test_help(device: Device) -> None:
    done = device.qil("--help")
    assert done.returncode == 0, done.stderr
    for command in ("verify", "bench", "inspect", "doctor", "report", "phone", "target"):
        assert f" {command} " in done.stdout
        assert device.qil(command, "--help").returncode == 0


def test_verify_with_golden_vectors(device: Device) -> None:
    golden = device.folder / "golden.npz"
    assert device.run("-c", WRITE_GOLDEN, MODEL, golden).returncode == 0
    done = device.qil("verify", MODEL, "--golden", golden)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("No difference between golden vectors and ONNX Runtime") == 4


def _device_commands() -> list[list[str]]:
    """The page's commands for a device, as the words after `python`."""
    page = (ROOT / "docs" / "device.md").read_text().partition("\n## ")[0]
    commands = [line.removeprefix("$ python ").split() for line in page.splitlines() if line.startswith("$ python ")]
    assert len(commands) >= 4
    return commands


def _run_as_shown(device: Device, command: list[str], cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run a command of the page on a model of the zoo and golden vectors of noise."""
    golden = device.folder / "resnet20_w4a4.golden.npz"
    if not golden.exists():
        assert device.run("-c", WRITE_GOLDEN, MODEL, golden).returncode == 0
    named = {"resnet20_w4a4.onnx": str(MODEL), golden.name: str(golden)}
    return device.run(*[named.get(word, word) for word in command], cwd=cwd)


@pytest.mark.parametrize("command", _device_commands(), ids=lambda command: command[2])
@pytest.mark.parametrize("where", ["an empty folder", "the root of a checkout"])
def test_the_commands_of_the_page(device: Device, tmp_path: Path, command: list[str], where: str) -> None:
    """Started from a checkout, Python finds the folder `qil_deploy/` before the installed package."""
    done = _run_as_shown(device, command, ROOT if where == "the root of a checkout" else tmp_path)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("command", _device_commands(), ids=lambda command: command[2])
def test_the_commands_of_the_page_from_the_source_archive(
    from_source: Device, tmp_path: Path, command: list[str]
) -> None:
    done = _run_as_shown(from_source, command, tmp_path)
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(not FASHION_MNIST_FOLDER.is_dir(), reason="Debian's package dataset-fashion-mnist is not installed")
def test_verify_with_a_data_set(device: Device) -> None:
    report = device.folder / "verify.json"
    done = device.qil("verify", MODEL, "--limit", 50, "--json", report)
    assert done.returncode == 0, done.stderr
    content = json.loads(report.read_text())
    assert (content["exact"], content["images"]) == (True, 50)


def test_bench_inspect_and_doctor(device: Device) -> None:
    for command in (["bench", MODEL, ZOO / "float.onnx", "--repeats", 3], ["inspect", MODEL], ["doctor", MODEL]):
        report = device.folder / f"{command[0]}.json"
        done = device.qil(*command, "--json", report)
        assert done.returncode == 0, done.stderr
        assert json.loads(report.read_text())["schema"].startswith(f"qil_deploy.{command[0]}/")


def test_report(device: Device) -> None:
    report, page = device.folder / "sources" / "doctor.json", device.folder / "report.html"
    assert device.qil("doctor", MODEL, "--json", report).returncode == 0
    done = device.qil("report", report, "-o", page)
    assert done.returncode == 0, done.stderr
    assert page.read_text().startswith("<!DOCTYPE html>")


@pytest.mark.parametrize(
    "command",
    [
        ["train", "digits_resnet14"],
        ["export", ZOO / "w2a2.safetensors", "-o", "model.onnx"],
        ["sensitivity", ZOO / "w2a2.safetensors"],
        ["verify", MODEL, "--checkpoint", ZOO / "w2a2.safetensors"],
        ["demo"],
    ],
    ids=lambda command: command[0],
)
def test_what_needs_an_extra_names_it(device: Device, command: list[object]) -> None:
    before = sorted(device.folder.iterdir())
    done = device.qil(*command)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        "Error: this command needs the package 'torch'; install it with: pip install 'qil-deploy[train,export]'.\n"
    )
    assert sorted(device.folder.iterdir()) == before


@pytest.mark.parametrize(
    "command", [["phone", MODEL], ["bench", MODEL, "--target", "wasm"]], ids=lambda command: command[0]
)
def test_what_needs_the_extra_of_browsers_names_it(device: Device, command: list[object]) -> None:
    done = device.qil(*command)
    assert (done.returncode, done.stdout) == (2, "")
    assert re.fullmatch(
        r"Error: this command needs the package '\w+'; install it with: pip install 'qil-deploy\[browser\]'\.\n",
        done.stderr,
    )


@pytest.mark.parametrize(("data", "needs"), [("pictures", "Pillow: pip install pillow"), ("digits", "scikit-learn")])
def test_data_sets_that_need_a_package_name_it(device: Device, data: str, needs: str) -> None:
    (device.folder / "pictures" / "test" / "cat").mkdir(parents=True, exist_ok=True)
    done = device.qil("verify", MODEL, "--data", data)
    assert (done.returncode, done.stdout) == (2, "")
    assert needs in done.stderr
    assert done.stderr.count("\n") == 1
