"""Linear layers as MatMulNBits: the integers of QGemm, at every optimization level; exceptions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from qil_deploy.export.emitter import QIL_DOMAIN, Emitter
from qil_deploy.export.passes.matmul_nbits import MAX_BITS, MIN_WEIGHTS, MatMulNBits, pack_blocks
from qil_deploy.onnx_io.model_file import read_model
from qil_deploy.reference import IntegerReference
from qil_deploy.reference.matmul_nbits import unpack_blocks
from qil_deploy.runtime_tests.sessions import OPTIMIZATION_LEVELS

from .conftest import run_runtime
from .rewriting import lowered, rewritten, stored

Array = NDArray[Any]


def linear(
    inputs: int, outputs: int, bits: int, largest: int, *, logits: bool = False, spread: bool = False, seed: int = 0
) -> ir.Model:
    """A graph of one `qil.Gemm` on codes `image` [batch, inputs]."""
    rng, emitter, q = np.random.default_rng(seed), Emitter(), 2 ** (bits - 1) - 1
    image = ir.Value(name="image", shape=ir.Shape(["batch", inputs]), type=ir.TensorType(ir.DataType.UINT8))
    attributes: dict[str, Any] = {"x_scale": 0.02, "x_zero_point": 0, "x_high": largest, "weight_bits": bits}
    if not logits:
        y_scale = 0.02 * largest * q * float(np.sqrt(inputs)) / 100
        attributes |= {"y_scale": y_scale, "y_zero_point": 3, "low": 0, "high": 200}
    constants: dict[str, Array] = {
        "codes": rng.integers(-q, q, (outputs, inputs), np.int8, endpoint=True),
        "spread": rng.integers(1, 5, outputs, np.int8) if spread else np.ones(outputs, np.int8),
        "bias": rng.integers(-500, 500, outputs, np.int32),
        "w_scale": rng.uniform(0.5, 1.5, outputs).astype(np.float32),
    }
    operands = [image, *(emitter.constant(array, f"fc_{name}") for name, array in constants.items())]
    y = emitter.op("Gemm", operands, "fc", domain=QIL_DOMAIN, attributes=attributes)
    y.shape = ir.Shape(["batch", outputs])
    y.type = ir.TensorType(ir.DataType.FLOAT if logits else ir.DataType.UINT8)
    return emitter.model([image], [y], {"": 13, QIL_DOMAIN: 1}, ir_version=7)


def write(model: ir.Model, path: Path) -> Path:
    written = stored(lowered(model))
    written.graph.opset_imports.clear()
    written.graph.opset_imports.update({"": 13, "com.microsoft": 1})
    ir.save(written, path, format="protobuf")
    return path


@given(
    inputs=st.one_of(st.integers(1, 700), st.sampled_from((127, 128, 254, 255, 508))),
    outputs=st.integers(1, 40),
    bits=st.integers(2, MAX_BITS),
    largest=st.sampled_from((1, 3, 15, 31, 127)),
    form=st.fixed_dictionaries({"logits": st.booleans(), "spread": st.booleans(), "seed": st.integers(0, 99)}),
    rows=st.integers(1, 5),
)
@settings(max_examples=60)
def test_the_codes_of_qgemm(
    inputs: int, outputs: int, bits: int, largest: int, form: dict[str, Any], rows: int,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:  # fmt: skip
    folder = tmp_path_factory.mktemp("matmul")
    model = linear(inputs, outputs, bits, largest, **form)
    changed, notes = rewritten(model, MatMulNBits(min_weights=1))
    assert notes.rewritten == ["fc"]
    plain, packed = write(model, folder / "plain.onnx"), write(changed, folder / "packed.onnx")
    assert "MatMulNBits" in {node.op_type for node in onnx.load(packed).graph.node}
    x = np.random.default_rng(rows).integers(0, largest, (rows, inputs), np.uint8, endpoint=True)
    expected = IntegerReference(read_model(plain)).run(x)
    np.testing.assert_array_equal(IntegerReference(read_model(packed)).run(x), expected, strict=True)
    (output,) = (value.name for value in onnx.load(packed).graph.output)
    for level in OPTIMIZATION_LEVELS:
        np.testing.assert_array_equal(run_runtime(onnx.load(packed), x, level)[output], expected, strict=True)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"bits": 5}, "its weights have 5 bits, more than 4"),
        ({"largest": 128}, "the codes it reads reach 128, above 127"),
        ({"inputs": 10_000, "largest": 127}, "its sums may reach 16,777,216, where float32 rounds integers"),
    ],
)
def test_layers_that_are_left_alone(change: dict[str, int], reason: str) -> None:
    layer = {"inputs": 300, "outputs": 8, "bits": 4, "largest": 15} | change
    model = linear(layer["inputs"], layer["outputs"], layer["bits"], layer["largest"])
    assert rewritten(model, MatMulNBits(min_weights=1))[1].left_alone == {reason: ["fc"]}


def test_small_layers_are_left_alone() -> None:
    assert MIN_WEIGHTS == 2**20
    small = rewritten(linear(1024, 1023, 4, 15), MatMulNBits())[1]
    assert (small.rewritten, small.left_alone) == ([], {"it has fewer than 1,048,576 weights": ["fc"]})
    assert rewritten(linear(1024, 1024, 4, 15), MatMulNBits())[1].rewritten == ["fc"]


@pytest.mark.parametrize("bits", [2, 4])
def test_every_code_is_packed_and_unpacked(bits: int) -> None:
    lowest, count = -(2 ** (bits - 1)), 2**bits
    codes = np.resize(np.arange(lowest, lowest + count, dtype=np.int8), (3, 2, 128))
    np.testing.assert_array_equal(unpack_blocks(pack_blocks(codes, bits), (3, 256), bits, 128), codes)
