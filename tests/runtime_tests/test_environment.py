from __future__ import annotations

import platform
from pathlib import Path

import pytest

from qil_deploy.runtime_tests.environment import cpu_name, describe_environment


@pytest.mark.parametrize(
    ("content", "name"),
    [
        (
            "processor\t: 0\nmodel name\t: Fast CPU @ 3 GHz: new\nmodel name\t: other\n",
            "Fast CPU @ 3 GHz: new",
        ),
        ("processor\t: 0\nBogoMIPS\t: 38.40\nHardware\t: BCM2711\n", "BCM2711"),
    ],
)
def test_the_processor_is_named_as_the_system_names_it(tmp_path: Path, content: str, name: str) -> None:
    (tmp_path / "cpuinfo").write_text(content)
    assert cpu_name(tmp_path / "cpuinfo") == name


def test_a_processor_without_a_name_is_described_by_its_board_or_its_instruction_set(tmp_path: Path) -> None:
    fallback = platform.processor() or platform.machine()
    (tmp_path / "cpuinfo").write_text("processor\t: 0\nmodel name\t:\n")
    assert cpu_name(tmp_path / "cpuinfo", tmp_path / "absent") == fallback
    assert cpu_name(tmp_path / "absent", tmp_path / "absent") == fallback
    (tmp_path / "board").write_bytes(b"Raspberry Pi 4 Model B Rev 1.4\0")
    assert cpu_name(tmp_path / "cpuinfo", tmp_path / "board") == "Raspberry Pi 4 Model B Rev 1.4"


def test_the_environment_names_versions_and_counts_processors() -> None:
    found = describe_environment()
    assert found.python == platform.python_version()
    assert found.machine == platform.machine()
    assert found.cpus >= 1
