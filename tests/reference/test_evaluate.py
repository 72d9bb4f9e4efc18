"""IntegerReference: batches, intermediate tensors, and refusals."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper

from qil_deploy.errors import DataError, ModelFileError
from qil_deploy.reference import IntegerReference

if TYPE_CHECKING:
    from tests.reference.conftest import Comparison, Graph

Array = NDArray[Any]


def random_images(rng: np.random.Generator, count: int, size: int = 6) -> Array:
    return rng.integers(0, 256, (count, 3, size, size), np.uint8)


@pytest.fixture
def network(graph: Graph) -> Graph:
    """Three operators on images of three channels."""
    rng = np.random.default_rng(1)
    operands = graph.weights(rng.integers(-63, 64, (4, 3, 3, 3), np.int8), np.float32(0.01))
    grids = graph.grid(1, 0), graph.grid(1, 128)
    y = graph.node("QLinearConv", "images", *grids[0], *operands, *grids[1], pads=[1] * 4)
    y = graph.node("Clip", y, graph.constant(np.uint8(0)), graph.constant(np.uint8(180)))
    graph.node("Flatten", y)
    return graph


def test_a_batch_of_many_blocks_is_its_images(comparison: Comparison, network: Graph, rng: np.random.Generator) -> None:
    images = random_images(rng, 25, size=128)
    found = comparison.check(network, images, levels=("all",))
    reference = IntegerReference(comparison.read(network.model(images)))
    np.testing.assert_array_equal(found, np.concatenate([reference.run(image[None]) for image in images]), strict=True)


def test_no_images_give_no_logits(comparison: Comparison, network: Graph, rng: np.random.Generator) -> None:
    images = random_images(rng, 0)
    logits = IntegerReference(comparison.read(network.model(images))).run(images)
    assert logits.shape == (0, 144)
    assert logits.dtype == np.uint8


def test_a_fixed_batch_is_not_cut(comparison: Comparison, graph: Graph, rng: np.random.Generator) -> None:
    images = random_images(rng, 5, size=128)
    graph.node("Reshape", "images", graph.constant(np.array([5, -1])))
    reference = IntegerReference(comparison.read(graph.model(images, batch=5)))
    np.testing.assert_array_equal(reference.run(images), images.reshape(5, -1), strict=True)


def test_run_all_names_every_tensor(comparison: Comparison, network: Graph, rng: np.random.Generator) -> None:
    images = random_images(rng, 2)
    tensors = IntegerReference(comparison.read(network.model(images))).run_all(images)
    assert list(tensors) == [node.output[0] for node in network.nodes]
    for name, found in tensors.items():
        model = network.model(images, output=name).SerializeToString()
        session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
        np.testing.assert_array_equal(found, session.run(None, {"images": images})[0], strict=True)


@pytest.mark.parametrize(
    "images",
    [np.zeros((2, 3, 6, 6), np.float32), np.zeros((2, 4, 6, 6), np.uint8), np.zeros((3, 6, 6), np.uint8)],
)
def test_images_that_do_not_fit_are_refused(comparison: Comparison, network: Graph, images: Array) -> None:
    reference = IntegerReference(comparison.read(network.model(np.zeros((1, 3, 6, 6), np.uint8))))
    message = r"do not fit the input 'images' of .*it takes uint8 of shape \['batch', 3, 6, 6\]"
    with pytest.raises(DataError, match=message):
        reference.run(images)
    with pytest.raises(DataError, match=message):
        reference.run_all(images)


def refusal(comparison: Comparison, graph: Graph, output: str = "") -> str:
    """Return the message with which a graph is refused, on reading it or at the latest on running it."""
    images = np.zeros((1, 1, 4, 4), np.uint8)
    with pytest.raises(ModelFileError) as caught:
        IntegerReference(comparison.read(graph.model(images, output=output))).run(images)
    return str(caught.value)


WINDOW = {"kernel_shape": [2, 2]}


@pytest.mark.parametrize(
    ("op", "inputs", "attributes", "message"),
    [
        (
            "Softmax",
            ["images"],
            {},
            "node 'Softmax_0' (Softmax): no integer kernel exists for ai.onnx Softmax.",
        ),
        ("QGemm", ["images"], {}, "no integer kernel exists for ai.onnx QGemm."),
        ("Conv", ["images", "shape"], {}, "it has to stand between DequantizeLinear and QuantizeLinear"),
        (
            "MaxPool",
            ["images"],
            WINDOW | {"auto_pad": "SAME_UPPER"},
            "attribute 'auto_pad' is 'SAME_UPPER'; only",
        ),
        ("Flatten", ["images"], {"mystery": 1}, "attribute 'mystery' of Flatten is not supported"),
        ("MaxPool", ["images"], {"kernel_shape": [5, 5]}, "a window of 5x5 does not fit an image of 4x4"),
        ("MaxPool", ["images"], {"kernel_shape": [2]}, "only two-dimensional windows are supported"),
        ("MaxPool", ["images"], WINDOW | {"strides": [0, 1]}, "make no window"),
        ("MaxPool", ["images"], {}, "only two-dimensional windows are supported"),
        ("MaxPool", ["images"], {"kernel_shape": 2}, "(MaxPool): 'int' object is not iterable"),
        ("Reshape", ["images", "nothing"], {}, "nothing before it produces its input 'nothing'"),
        ("Reshape", ["images", "Reshape_0"], {}, "nothing before it produces its input 'Reshape_0'"),
        ("Reshape", ["images"], {}, "input 1 is missing"),
        ("Reshape", ["images", "shape"], {}, "cannot reshape array of size 16"),
        ("Resize", ["images", "", "ones"], {"mode": "linear"}, "only Resize that repeats pixels is supported"),
        ("ReduceSum", ["images", "shape"], {}, "ReduceSum of uint8 is not supported, only of int32"),
        ("Transpose", ["images"], {"perm": [0, 1]}, "(Transpose): "),
        ("Expand", ["images", "shape"], {}, "(Expand): "),
        ("Add", ["images", "images"], {}, "(Add): operands are uint8 and uint8; only int32 is supported"),
        ("Sub", ["hundred", "hundred"], {}, "(Sub): operands are int8 and int8; only int32 is supported"),
        ("Add", ["large", "large"], {}, "results span 3000000000 to 3000000000, beyond int32"),
        ("Cast", ["shape"], {"to": TensorProto.STRING}, "element type number 8 is no numpy type"),
        ("Mul", ["hundred", "hundred"], {}, "products span 10000 to 10000, beyond int8"),
    ],
)
def test_what_cannot_be_computed_is_refused_by_name(
    comparison: Comparison, graph: Graph, op: str, inputs: list[str], attributes: dict[str, Any], message: str
) -> None:
    graph.constant(np.array([1, 17]), "shape")
    graph.constant(np.ones(4, np.float32), "ones")
    graph.constant(np.int8(100), "hundred")
    graph.constant(np.int32(1_500_000_000), "large")
    graph.node(op, *inputs, **attributes)
    assert message in refusal(comparison, graph)


def test_several_outputs_of_one_node_are_refused(comparison: Comparison, graph: Graph) -> None:
    graph.nodes.append(helper.make_node("MaxPool", ["images"], ["y", "indices"], name="pool", kernel_shape=[2, 2]))
    assert "'pool' (MaxPool): 2 outputs are asked for; only the first is supported" in refusal(comparison, graph)


def test_a_graph_without_its_output_is_refused(comparison: Comparison, network: Graph) -> None:
    assert "no node produces the output 'logits'" in refusal(comparison, network, output="logits")


def test_a_name_produced_twice_is_refused(comparison: Comparison, graph: Graph) -> None:
    graph.node("Identity", "images")
    graph.nodes *= 2
    assert "its output 'Identity_0' exists already" in refusal(comparison, graph)


def test_a_graph_of_two_inputs_is_refused(comparison: Comparison, network: Graph) -> None:
    model = network.model(np.zeros((1, 3, 6, 6), np.uint8))
    model.graph.input.append(helper.make_tensor_value_info("more", TensorProto.UINT8, [1]))
    with pytest.raises(ModelFileError, match="has 2 inputs and 1 outputs; an exported network has one input"):
        IntegerReference(comparison.read(model))
