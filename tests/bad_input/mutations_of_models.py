"""Damaged and hostile ONNX files, made from a valid one of ours: seeded, and of every kind in turn.

Most are valid protobuf messages, since a parser notices what is none: fields changed, shapes, attributes, names and
types made extreme, nodes dropped, doubled and wired elsewhere, the metadata changed, initializers stored in other ways,
and small constants that nodes expand to gigabytes.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

Model = onnx.ModelProto
Mutation = Callable[[Model, random.Random], str]

SIZES = (0, 1, -1, 2, 7, 255, 256, 2**15, 2**20, 2**31 - 1, 2**31, 2**32, 2**40, 2**62, 2**63 - 1, -(2**63))
NUMBERS = (0.0, -0.0, 1.0, -1.0, 0.5, 1e-45, 1e38, 3e38, float("nan"), float("inf"), float("-inf"))
VALUES: tuple[object, ...] = (
    *(None, True, False, [], {}, [[]], [{}], "", "x", "\x1b[2J", "\u202e", "\ud800", "x" * 300_000),
    *(0, -1, 1, 255, 256, 2**31, 2**63, 10**30, 0.5, -0.5, 1e-300, 1e300, float("nan"), float("inf")),
)
NAMES = ("", "x", "image", "logits", "\x1b[31mred\x1b[0m\n", "\u202etxt.exe", "/" * 999, "n" * 300_000, "a/b/c")
OPERATORS = (
    *("QLinearConv", "QGemm", "QLinearAdd", "QLinearGlobalAveragePool", "QLinearAveragePool", "MatMulNBits", "Clip"),
    *(
        "MaxPool",
        "QuantizeLinear",
        "DequantizeLinear",
        "Flatten",
        "Reshape",
        "Identity",
        "Concat",
        "Cast",
        "Mul",
        "Sub",
    ),
    *(
        "ReduceSum",
        "Resize",
        "Pad",
        "Transpose",
        "Expand",
        "Add",
        "Conv",
        "Gemm",
        "Tile",
        "ConstantOfShape",
        "Loop",
        "",
    ),
)
DOMAINS = ("", "ai.onnx", "com.microsoft", "example.org", "qil")
TYPES = (*range(27), 99, -1)
FACTORS = (2**10, 2**16, 2**22, 2**27, 2**29, 2**31, 2**40)


def mutations(content: bytes, count: int, seed: int) -> Iterator[tuple[str, bytes]]:
    """Yield damaged versions of a model, each with a description of the damage.

    Args:
        content: the bytes of an exported model.
        count: how many.
        seed: the same ones for the same seed.
    """
    generator = random.Random(seed)
    kinds = [*_MUTATIONS, *_BYTES]
    for index in range(count):
        kind = kinds[index % len(kinds)]
        if kind in _BYTES:
            yield _BYTES[kind](content, generator)
            continue
        model = onnx.load_from_string(content)
        done = [_MUTATIONS[kind](model, generator)]
        if generator.random() < 0.2:
            done.append(_MUTATIONS[generator.choice(list(_MUTATIONS))](model, generator))
        yield f"{kind}: {'; '.join(done)}", model.SerializeToString()


def _shown(value: object) -> str:
    return repr(value)[:60]


def _node(model: Model, generator: random.Random) -> onnx.NodeProto:
    nodes = model.graph.node
    found: onnx.NodeProto = nodes[generator.randrange(len(nodes))] if nodes else nodes.add()
    return found


def _initializer(model: Model, generator: random.Random) -> TensorProto:
    tensors = model.graph.initializer
    found: TensorProto = tensors[generator.randrange(len(tensors))] if tensors else tensors.add()
    return found


def _any_name(model: Model, generator: random.Random) -> str:
    """Return a name in the graph, or one that does not exist."""
    known: list[str] = [name for node in model.graph.node for name in (*node.input, *node.output)]
    return generator.choice([*known, *NAMES] if generator.random() < 0.7 else NAMES)


def _drop_node(model: Model, generator: random.Random) -> str:
    index = generator.randrange(len(model.graph.node)) if model.graph.node else 0
    del model.graph.node[index : index + 1]
    return f"node {index} dropped"


def _repeat_node(model: Model, generator: random.Random) -> str:
    node = onnx.NodeProto()
    node.CopyFrom(_node(model, generator))
    times = generator.choice((1, 2, 1000))
    for number in range(times):
        if generator.random() < 0.5 and node.output:
            node.output[0] = f"again_{number}"
        model.graph.node.insert(generator.randrange(len(model.graph.node) + 1), node)
    return f"{node.name[:40]!r} {times} times more"


def _move_node(model: Model, generator: random.Random) -> str:
    nodes = list(model.graph.node)
    generator.shuffle(nodes) if generator.random() < 0.2 else nodes.reverse()
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    return "nodes in another order"


def _rewire(model: Model, generator: random.Random) -> str:
    node, name = _node(model, generator), _any_name(model, generator)
    ends = generator.choice((node.input, node.input, node.output))
    action = generator.choice(("set", "add", "drop", "clear"))
    if action == "set" and ends:
        ends[generator.randrange(len(ends))] = name
    elif action == "add":
        ends.append(name)
    elif action == "drop" and ends:
        del ends[generator.randrange(len(ends)) :]
    else:
        del ends[:]
    return f"{node.name[:40]!r}: {action} {_shown(name)}"


def _rename(model: Model, generator: random.Random) -> str:
    name = generator.choice(NAMES)
    target: Any = generator.choice(
        [_node(model, generator), _initializer(model, generator), *model.graph.input, *model.graph.output]
    )
    target.name = name
    return f"called {_shown(name)}"


def _change_operator(model: Model, generator: random.Random) -> str:
    node = _node(model, generator)
    before = node.op_type
    node.op_type, node.domain = generator.choice(OPERATORS), generator.choice((node.domain, *DOMAINS))
    return f"{before} becomes {node.domain} {node.op_type}"


def _change_attribute(model: Model, generator: random.Random) -> str:
    nodes = [node for node in model.graph.node if node.attribute]
    if not nodes:
        return "nothing"
    node = generator.choice(nodes)
    attribute = node.attribute[generator.randrange(len(node.attribute))]
    name = generator.choice(
        (attribute.name, attribute.name, *("axis", "group", "mode", "N", "K", "bits", "to", "perm"))
    )
    value: Any = generator.choice(
        (
            *(generator.choice(SIZES), generator.choice(NUMBERS), "text", "\x1b[2J", b"\xff"),
            *([generator.choice(SIZES) for _ in range(generator.choice((1, 2, 3, 4, 8, 1000)))],) * 4,
            *([generator.choice(NUMBERS)], np.zeros(3, np.int64), np.float32(1)),
        )
    )
    if isinstance(value, np.ndarray | np.generic):
        value = numpy_helper.from_array(np.asarray(value))
    changed = helper.make_attribute(name or "x", value)
    attribute.CopyFrom(changed)
    if generator.random() < 0.1:
        attribute.type = generator.choice((0, 1, 2, 3, 4, 5, 6, 7, 8, 10, 14))
    return f"{node.op_type} {name} is {_shown(value)}"


def _drop_attribute(model: Model, generator: random.Random) -> str:
    node = generator.choice([node for node in model.graph.node if node.attribute] or [_node(model, generator)])
    del node.attribute[:1]
    return f"{node.op_type} without its first attribute"


def _stored_otherwise(model: Model, generator: random.Random) -> str:
    tensor = _initializer(model, generator)
    action = generator.choice(
        ("type", "dims", "cut", "longer", "typed", "both", "external", "segment", "twice", "gone")
    )
    if action == "type":
        tensor.data_type = generator.choice(TYPES)
    elif action == "dims":
        tensor.dims[:] = [generator.choice(SIZES) for _ in range(generator.choice((0, 1, 2, 4, 5, 33, 200)))]
    elif action == "cut":
        tensor.raw_data = tensor.raw_data[: len(tensor.raw_data) // 2]
    elif action == "longer":
        tensor.raw_data += bytes(generator.choice((1, 3, 4096)))
    elif action in ("typed", "both"):
        if action == "typed":
            tensor.ClearField("raw_data")
        tensor.int32_data.extend([generator.choice((0, 1, -1, 300, 2**31 - 1))] * generator.choice((1, 10, 999)))
    elif action == "external":
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value=generator.choice(("/etc/passwd", "../../x", "weights.bin", "")))
    elif action == "segment":
        tensor.segment.begin = 1
    elif action == "twice":
        model.graph.initializer.append(tensor)
    else:
        model.graph.initializer.remove(tensor)
    return f"{tensor.name[:40]!r}: {action}"


def _other_numbers(model: Model, generator: random.Random) -> str:
    """Replace the content of an initializer by as many bytes of another type."""
    tensor = _initializer(model, generator)
    if tensor.data_type == TensorProto.FLOAT:
        number = generator.choice(NUMBERS)
        tensor.raw_data = np.full(len(tensor.raw_data) // 4, number, np.float32).tobytes()
        return f"{tensor.name[:40]!r} is full of {number}"
    byte = generator.choice((0, 1, 127, 128, 255))
    tensor.raw_data = bytes([byte]) * len(tensor.raw_data)
    return f"{tensor.name[:40]!r} is full of bytes {byte}"


def _constant(model: Model, value: Any) -> str:  # noqa: ANN401 - whatever an array is made of
    name = f"made_{len(model.graph.initializer)}"
    model.graph.initializer.append(numpy_helper.from_array(np.asarray(value), name))
    return name


def _insert(model: Model, operator: str, inputs: Sequence[str], place: int, **attributes: Any) -> str:  # noqa: ANN401
    name = f"made_{len(model.graph.node)}_{len(model.graph.initializer)}"
    model.graph.node.insert(place, helper.make_node(operator, list(inputs), [name], name=name, **attributes))
    return name


def _column(model: Model, count: int, dtype: type[np.generic], axes: int) -> str:
    return _constant(model, np.ones((count, *[1] * (axes - 1)), dtype))


def _sizes(model: Model, *sizes: float, dtype: type[np.generic] = np.int64) -> str:
    return _constant(model, np.array(sizes, dtype))


NEAREST = {"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
# Operators that make a tensor larger: their inputs, and attributes, for a tensor and a factor.
GROWING: dict[str, Callable[[Model, str, int], tuple[list[str], dict[str, Any]]]] = {
    "Expand": lambda model, source, factor: ([source, _sizes(model, factor, 1, 1, 1)], {}),
    "Tile": lambda model, source, factor: ([source, _sizes(model, factor, 1, 1, 1)], {}),
    "Concat": lambda _, source, factor: ([source] * min(factor, 4096), {"axis": 0}),
    "Add": lambda model, _, factor: (  # int32 alone may be added
        [_column(model, min(factor, 2**14), np.int32, 2), _constant(model, np.ones((1, min(factor, 2**14)), np.int32))],
        {},
    ),
    "Mul": lambda model, source, factor: ([_column(model, min(factor, 2**14), np.int8, 5), source], {}),
    "Cast": lambda _, source, factor: ([source], {"to": (7, 11, 1, 6, 8, 99)[factor % 6]}),
    "ConstantOfShape": lambda model, _, factor: ([_sizes(model, factor, 64)], {}),
    "Resize": lambda model, source, factor: (
        [source, "", _sizes(model, 1, 1, min(factor, 2**20), 2, dtype=np.float32)],
        NEAREST,
    ),
    "Pad": lambda model, source, factor: ([source, _sizes(model, *[factor // 2] * 8)], {}),
    "Reshape": lambda model, source, factor: ([source, _sizes(model, 1, -1, factor)], {}),
}


def _expanded(model: Model, generator: random.Random) -> str:
    """Expand an input of a node, a constant or a tensor of the network."""
    node = generator.choice([node for node in model.graph.node if node.input] or [_node(model, generator)])
    place = list(model.graph.node).index(node)
    index = generator.randrange(len(node.input)) if node.input else 0
    source = node.input[index] if node.input else ""
    steps = [generator.choice(list(GROWING)) for _ in range(generator.choice((1, 1, 2, 5)))]
    for step in steps:
        inputs, attributes = GROWING[step](model, source, generator.choice(FACTORS))
        source = _insert(model, step, inputs, place, **attributes)
        place += 1
    if node.input and generator.random() < 0.7:
        node.input[index] = source
    return f"{node.op_type} input {index} behind {', '.join(steps)}"


def _doubled(model: Model, generator: random.Random) -> str:
    """Double a constant again and again."""
    operator, times = generator.choice(("Concat", "Add", "Mul")), generator.choice((12, 26, 34, 60, 900))
    source = _constant(model, np.ones((1, 4), np.int32))
    for place in range(times):
        inputs = [source, source]
        source = _insert(model, operator, inputs, place, **({"axis": 0} if operator == "Concat" else {}))
    return f"{times} {operator} in a row"


def _many(model: Model, generator: random.Random) -> str:
    """Attach thousands of nodes to the network, in sequence or in parallel."""
    times, row = generator.choice((500, 3000)), generator.random() < 0.5
    operator = generator.choice(("Identity", "Identity", "Gemm", "QuantizeLinear", "Clip", "Transpose"))
    source = generator.choice(("image", *(node.output[0] for node in model.graph.node if node.output)))
    nodes = []
    for number in range(times):
        name = f"many_{number}"
        nodes.append(
            helper.make_node(operator, [source] if operator != "Gemm" else [source, source], [name], name=name)
        )
        source = name if row else source
    model.graph.node.extend(nodes)
    return f"{times} {operator} {'in a row' if row else 'side by side'}"


def _image_size(model: Model, generator: random.Random) -> str:
    """Change size or batch of the images in the graph and in the metadata alike."""
    metadata = _metadata(model)
    pixels = metadata.get("preprocessing")
    dimensions = model.graph.input[0].type.tensor_type.shape.dim if model.graph.input else []
    if not isinstance(pixels, dict) or len(dimensions) != 4:
        return "nothing"
    if generator.random() < 0.5:
        batch = generator.choice((1, 2, 100, 2**13, 2**15, 2**18, 2**25, 2**31 - 1))
        for info in (*model.graph.input, *model.graph.output):
            info.type.tensor_type.shape.dim[0].dim_value = batch
        metadata["batch"] = batch
        done = f"batches of {batch}"
    else:
        size = generator.choice((1, 2, 60, 2000, 8000, 2**14, 2**20))
        dimensions[2].dim_value = dimensions[3].dim_value = size
        pixels["height"] = pixels["width"] = size
        done = f"images of {size}x{size}"
    _set_metadata(model, json.dumps(metadata))
    return done


def _ends(model: Model, generator: random.Random) -> str:
    """Change inputs and outputs of the graph."""
    infos = generator.choice((model.graph.input, model.graph.output))
    action = generator.choice(("none", "twice", "type", "shape", "rank", "no tensor", "constant"))
    if action == "none" or not infos:
        del infos[:]
    elif action == "twice":
        infos.append(infos[0])
    elif action == "type":
        infos[0].type.tensor_type.elem_type = generator.choice(TYPES)
    elif action == "shape":
        size = generator.choice(SIZES)
        infos[0].type.tensor_type.shape.dim.add(dim_value=size)
    elif action == "rank":
        infos[0].type.tensor_type.ClearField("shape")
    elif action == "constant":
        infos.append(helper.make_tensor_value_info(_initializer(model, generator).name or "x", 1, [1]))
    else:
        infos[0].type.ClearField("value")
    return f"{'input' if infos is model.graph.input else 'output'}: {action}"


def _versions(model: Model, generator: random.Random) -> str:
    """Change the file format, operator sets, functions and everything else outside the graph."""
    action = generator.choice(("none", "microsoft alone", "version", "twice", "ir", "no graph", "functions", "sparse"))
    if action == "none":
        del model.opset_import[:]
    elif action == "microsoft alone":
        del model.opset_import[:]
        model.opset_import.add(domain="com.microsoft", version=1)
    elif action == "version":
        model.opset_import[0].version = generator.choice(SIZES)
    elif action == "twice":
        model.opset_import.add(domain=generator.choice(DOMAINS), version=generator.choice((1, 13, 21, 99)))
    elif action == "ir":
        model.ir_version = generator.choice(SIZES)
    elif action == "no graph":
        model.ClearField("graph")
    elif action == "functions":  # each calls the one before it twice
        for number in range(30):
            body = [helper.make_node(f"f{number - 1}" if number else "Identity", ["x"], ["y"], domain="f"[:number])]
            body.append(helper.make_node(f"f{number - 1}" if number else "Identity", ["y"], ["z"], domain="f"[:number]))
            opsets = [helper.make_opsetid("", 21), helper.make_opsetid("f", 1)]
            model.functions.append(helper.make_function("f", f"f{number}", ["x"], ["z"], body, opsets))
        model.opset_import.add(domain="f", version=1)
        model.graph.node.insert(0, helper.make_node("f29", ["image"], ["f_image"], domain="f"))
    else:
        model.graph.sparse_initializer.add()
    return action


def _metadata(model: Model) -> Any:  # noqa: ANN401 - whatever JSON holds
    for entry in model.metadata_props:
        if entry.key == "qil_deploy":
            try:
                return json.loads(entry.value)
            except (ValueError, RecursionError):
                return {}
    return {}


def _set_metadata(model: Model, text: str) -> None:
    del model.metadata_props[:]
    model.metadata_props.add(key="qil_deploy", value=text.encode(errors="replace").decode())


def places(value: object, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the paths of all values in decoded JSON."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, child in items:
        yield (*path, key)
        yield from places(child, (*path, key))


def changed_json(content: Any, generator: random.Random) -> str:  # noqa: ANN401 - whatever JSON holds
    """Change decoded JSON in one place; return the place and the change."""
    found = list(places(content))
    if not found:
        return "nothing"
    *way, last = generator.choice(found)
    holder = content
    for key in way:
        holder = holder[key]
    action = generator.choice(("value", "value", "value", "drop", "add", "repeat"))
    value = generator.choice(VALUES)
    if action == "drop":
        del holder[last]
    elif action == "add" and isinstance(holder, dict):
        holder[generator.choice(("surprise", "\x1b[2J", "k" * 10_000))] = value
    elif action == "repeat" and isinstance(holder, list):
        holder.extend([holder[last]] * generator.choice((1, 2, 1000)))
    else:
        holder[last] = value
    return f"{'.'.join(map(str, (*way, last)))[:60]}: {action} {_shown(value)}"


def _change_metadata(model: Model, generator: random.Random) -> str:
    metadata = _metadata(model)
    done = changed_json(metadata, generator)
    _set_metadata(model, json.dumps(metadata))
    return done


def _metadata_text(model: Model, generator: random.Random) -> str:
    text = generator.choice(
        ("", "{", "[]", "3", "null", '"x"', "[" * 100_000, '{"a":' * 50_000, "NaN", "1" * 5000, '{"schema": 2}', "{}")
    )
    _set_metadata(model, text)
    return _shown(text)


def _flip(content: bytes, generator: random.Random) -> tuple[str, bytes]:
    """Change bytes, mostly at the beginning and the end, where names, sizes and field numbers are."""
    damaged = bytearray(content)
    found = []
    for _ in range(generator.randint(1, 4)):
        end = generator.choice((min(4000, len(damaged)), len(damaged)))
        place = generator.randrange(end) if generator.random() < 0.5 else len(damaged) - 1 - generator.randrange(end)
        damaged[place] = generator.randrange(256)
        found.append(place)
    return f"bytes {found} changed", bytes(damaged)


def _cut(content: bytes, generator: random.Random) -> tuple[str, bytes]:
    length = generator.randrange(len(content))
    return f"cut to {length} bytes", content[:length]


def _spliced(content: bytes, generator: random.Random) -> tuple[str, bytes]:
    """Repeat, remove or blank a part of the file, or insert noise."""
    start = generator.randrange(len(content))
    stop = min(len(content), start + generator.choice((1, 7, 100, 5000)))
    action = generator.choice(("repeat", "drop", "blank", "noise", "again"))
    middle = {
        "repeat": content[start:stop] * generator.choice((2, 50)),
        "drop": b"",
        "blank": bytes(stop - start),
        "noise": generator.randbytes(stop - start),
        "again": content[start:stop] + content,
    }[action]
    return f"{action} from {start} to {stop}", content[:start] + middle + content[stop:]


def _nested(content: bytes, generator: random.Random) -> tuple[str, bytes]:
    """Nest graphs in attributes of graphs, deeper than parsers allow; protobuf merges the outermost into the file's."""
    depth = generator.choice((1, 5, 40, 200, 5000))
    graph = b""
    for level in range(depth):
        attribute = _field(1, b"then_branch") + _field(6, graph) + b"\xa0\x01\x05"
        graph = _field(
            1, _field(1, b"image") + _field(2, f"y{level}".encode()) + _field(4, b"If") + _field(5, attribute)
        )
    return f"{depth} graphs in one another", content + _field(7, graph)


def _field(number: int, content: bytes) -> bytes:
    """Encode a protobuf field that holds bytes."""
    size, length = len(content), bytearray()
    while size > 127:
        length.append(size & 127 | 128)
        size >>= 7
    return bytes([number << 3 | 2, *length, size]) + content


_MUTATIONS: dict[str, Mutation] = {
    "node dropped": _drop_node,
    "node repeated": _repeat_node,
    "order": _move_node,
    "rewired": _rewire,
    "named": _rename,
    "operator": _change_operator,
    "attribute": _change_attribute,
    "attribute dropped": _drop_attribute,
    "stored": _stored_otherwise,
    "numbers": _other_numbers,
    "expanded": _expanded,
    "doubled": _doubled,
    "many": _many,
    "image": _image_size,
    "ends": _ends,
    "versions": _versions,
    "metadata": _change_metadata,
    "metadata text": _metadata_text,
}
_BYTES: dict[str, Callable[[bytes, random.Random], tuple[str, bytes]]] = {
    "flipped": _flip,
    "cut": _cut,
    "spliced": _spliced,
}
