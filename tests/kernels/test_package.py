"""The package reports its choices; a set that is unknown, or that the processor lacks, is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from onnx import ModelProto, compose

from .kernel_sets import force
from .models import Convolution, random_convolution, run, session

OPERATORS = ("TernaryConv", "LowBitConv", "LowBitMatMul", "LowBitMaxPool", "ResidualAdd", "LowBitRescale")


def test_the_node_runs_in_the_library(library: Path, monkeypatch: pytest.MonkeyPatch, rng: np.random.Generator) -> None:
    import qil_deploy_kernels

    monkeypatch.setenv("QIL_DEPLOY_KERNELS", "scalar")
    convolution, _ = random_convolution(rng, 1, 3)
    before = qil_deploy_kernels.layers()
    living = session(convolution.model(), library)
    assert living is not None
    (line,) = qil_deploy_kernels.layers()[len(before) :]
    assert f"->{convolution.w.shape[0]} " in line
    assert line.startswith("TernaryConv ")
    assert ": scalar, " in line
    for operator in OPERATORS:
        assert f"scalar for {operator}: runs, but it is there for tests" in qil_deploy_kernels.explain()
        assert f"chosen for {operator}: scalar (QIL_DEPLOY_KERNELS asks for it)" in qil_deploy_kernels.explain()


def test_off_registers_nothing(library: Path, monkeypatch: pytest.MonkeyPatch, rng: np.random.Generator) -> None:
    import qil_deploy_kernels

    monkeypatch.setenv("QIL_DEPLOY_KERNELS", "off")
    before = qil_deploy_kernels.layers()
    living = session(random_convolution(rng, 1, 3)[0].model(), library)
    assert living is not None
    assert qil_deploy_kernels.layers() == before
    for operator in OPERATORS:
        assert f"chosen for {operator}: none (QIL_DEPLOY_KERNELS is off)" in qil_deploy_kernels.explain()


def test_an_operator_that_a_set_has_no_kernels_for_runs_by_its_function(
    library: Path, monkeypatch: pytest.MonkeyPatch, rng: np.random.Generator
) -> None:
    import qil_deploy_kernels

    force("avx512vbmi", monkeypatch)
    assert "avx512vbmi for LowBitConv: has no kernels: " in qil_deploy_kernels.explain()
    assert "chosen for TernaryConv: avx512vbmi (" in qil_deploy_kernels.explain()
    assert "chosen for LowBitConv: none (QIL_DEPLOY_KERNELS asks for avx512vbmi, which" in qil_deploy_kernels.explain()
    model = both_operators(rng)
    before = qil_deploy_kernels.layers()
    living = session(model, library)
    (line,) = qil_deploy_kernels.layers()[len(before) :]
    assert line.startswith("TernaryConv 6->8 3x3, weights -1..1, input 0..3: lookup (AVX-512 VBMI)")
    x = rng.integers(0, 4, (2, 6, 9, 11)).astype(np.uint8)
    np.testing.assert_array_equal(living.run(None, {"x": x})[0], run(model, x))


@pytest.mark.parametrize("kernel_set", ["scalar", "avx2"])
def test_both_operators_of_a_file_run_in_a_set_that_has_kernels_for_them(
    kernel_set: str, library: Path, monkeypatch: pytest.MonkeyPatch, rng: np.random.Generator
) -> None:
    import qil_deploy_kernels

    force(kernel_set, monkeypatch)
    model = both_operators(rng)
    before = qil_deploy_kernels.layers()
    living = session(model, library)
    lines = qil_deploy_kernels.layers()[len(before) :]
    assert sorted(line.split()[0] for line in lines) == ["LowBitConv", "TernaryConv"]
    x = rng.integers(0, 4, (2, 6, 9, 11)).astype(np.uint8)
    np.testing.assert_array_equal(living.run(None, {"x": x})[0], run(model, x))


def both_operators(rng: np.random.Generator) -> ModelProto:
    """Return a file with a TernaryConv, and a LowBitConv of 4 bits that reads its codes."""
    parts: list[ModelProto] = []
    for operator, shape, code in (("TernaryConv", (8, 6, 3, 3), 1), ("LowBitConv", (5, 8, 3, 3), 7)):
        w = rng.integers(-code, code + 1, shape).astype(np.int8)
        layer = Convolution(
            w=w,
            bias=rng.integers(-20, 20, shape[0]).astype(np.int32),
            w_scale=np.ones(shape[0], np.float32),
            y_scale=2.0,
            high=3 if operator == "TernaryConv" else 255,
            pads=[1, 1, 1, 1],
            operator=operator,
        )
        parts.append(compose.add_prefix(layer.model(), f"{operator}_", rename_functions=False))
    model = compose.merge_models(parts[0], parts[1], io_map=[("TernaryConv_y", "LowBitConv_x")])
    model.graph.input[0].name = "x"
    next(node for node in model.graph.node if node.op_type == "TernaryConv").input[0] = "x"
    return model


def test_an_unknown_set_is_refused(library: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QIL_DEPLOY_KERNELS", "mmx")
    with pytest.raises(Exception, match=r"QIL_DEPLOY_KERNELS is none of .*scalar, off"):
        onnxruntime.SessionOptions().register_custom_ops_library(str(library))
