"""A model of two operators, to try a runtime with."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from qil_deploy.onnx_io import INPUT_NAME, METADATA_KEY, METADATA_SCHEMA, OUTPUT_NAME, parse_model

_FLOAT, _UINT8, _INT = 1, 2, 2
_SHAPE = (1, 2, 2)


def write_trial_model(folder: Path) -> tuple[Path, Path]:
    """Write a model whose logits are its pixels, and an image; return both paths."""
    model = parse_model(b"")
    model.ir_version = 8
    model.opset_import.add(domain="", version=13)
    model.graph.name = "trial"
    model.graph.node.add(op_type="Flatten", name="flatten", input=[INPUT_NAME], output=["pixels"])
    cast = model.graph.node.add(op_type="Cast", name="cast", input=["pixels"], output=[OUTPUT_NAME])
    cast.attribute.add(name="to", i=_FLOAT, type=_INT)
    values = [(model.graph.input, INPUT_NAME, _UINT8, _SHAPE), (model.graph.output, OUTPUT_NAME, _FLOAT, (4,))]
    for field, name, element, sizes in values:
        tensor = field.add(name=name).type.tensor_type
        tensor.elem_type = element
        tensor.shape.dim.add(dim_param="batch")
        for size in sizes:
            tensor.shape.dim.add(dim_value=size)
    pixels = dict(zip(("channels", "height", "width"), _SHAPE, strict=True)) | {"scale": 1.0, "zero_point": 0}
    about = {
        "schema": METADATA_SCHEMA,
        "format": "float",
        "input": "uint8",
        "preprocessing": pixels,
        "class_names": ["a", "b", "c", "d"],
    }
    model.metadata_props.add(key=METADATA_KEY, value=json.dumps(about))
    path, images = folder / "trial.onnx", folder / "trial.npy"
    path.write_bytes(model.SerializeToString())
    np.save(images, np.array([3, 9, 1, 2], np.uint8).reshape(1, *_SHAPE))
    return path, images
