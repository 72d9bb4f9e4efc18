from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from qil_deploy.errors import ConfigError, ModelFileError
from qil_deploy.runtime_tests.sessions import OPTIMIZATION_LEVELS, create_session, run_session


@pytest.mark.parametrize("level", OPTIMIZATION_LEVELS)
def test_a_session_has_the_level_and_the_threads_it_was_asked_for(write_model: Callable[..., Path], level: str) -> None:
    options = create_session(write_model(), threads=2, level=level).get_session_options()
    assert options.graph_optimization_level == OPTIMIZATION_LEVELS[level]
    assert options.intra_op_num_threads == 2


def test_levels_are_the_four_that_onnx_runtime_documents() -> None:
    assert list(OPTIMIZATION_LEVELS) == ["disabled", "basic", "extended", "all"]


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match=r"there is no model file .*absent\.onnx"):
        create_session(tmp_path / "absent.onnx")


def test_a_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match="is a folder; name a model file in it"):
        create_session(tmp_path)


def test_a_truncated_file_is_refused_on_one_line(write_model: Callable[..., Path]) -> None:
    path = write_model()
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ModelFileError, match=r"cannot load .*model\.onnx at optimization level 'all'") as caught:
        create_session(path)
    assert "\n" not in str(caught.value)


def test_loading_a_damaged_file_prints_nothing(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "damaged.onnx"
    path.write_bytes(b"\x00" * 64)
    with pytest.raises(ModelFileError):
        create_session(path)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("threads", [0, -1])
def test_threads_below_one_are_refused(write_model: Callable[..., Path], threads: int) -> None:
    with pytest.raises(ConfigError, match=f"threads is {threads}; it must be at least 1"):
        create_session(write_model(), threads=threads)


def test_an_unknown_level_is_refused(write_model: Callable[..., Path]) -> None:
    with pytest.raises(ConfigError, match="unknown optimization level 'most'; choose from disabled, basic"):
        create_session(write_model(), level="most")


def test_inputs_that_do_not_fit_are_refused_with_their_shape(write_model: Callable[..., Path]) -> None:
    path = write_model()
    session = create_session(path)
    with pytest.raises(ModelFileError, match=r"cannot run .* on image uint8\[1, 4, 8, 8\]"):
        run_session(session, {"image": np.zeros((1, 4, 8, 8), np.uint8)}, path=path)


def test_the_package_needs_neither_torch_nor_onnx() -> None:
    code = (
        "import sys, qil_deploy.runtime_tests.tables\n"
        "sys.exit(', '.join({'torch', 'onnx', 'onnx_ir', 'pydantic'} & set(sys.modules)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
