"""Validate the arguments of an export before any work starts: every mistake is reported in a sentence."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from os import PathLike
from pathlib import Path

from torch import fx, nn

from qil_deploy.errors import ConfigError
from qil_deploy.files import ensure_writable
from qil_deploy.integers import FreezingReport
from qil_deploy.metrics import BoxDecoder
from qil_deploy.network import INPUT_GRID, shape_of
from qil_deploy.preprocessing import Preprocessing
from qil_deploy.quantizers import InputQuantizer
from qil_deploy.untrusted_text import excerpt


def checked_path(path: object) -> Path:
    """Return the path to write to.

    Raises:
        ConfigError: no path.
        OutputError: nothing can be written there.
    """
    if not isinstance(path, str | PathLike) or isinstance(path, bytes) or not str(path):
        raise ConfigError(f"path is {path!r}; name the file to write, for example Path('model.onnx').")
    output = Path(path)
    ensure_writable(output)
    return output


def checked_preprocessing(preprocessing: object) -> Preprocessing:
    """Return a preprocessing, or raise ConfigError for anything else."""
    if not isinstance(preprocessing, Preprocessing):
        raise ConfigError(
            f"preprocessing is {_kind(preprocessing)}; give the qil_deploy.Preprocessing that makes the network's "
            "input from uint8 images, which the model was trained with."
        )
    return preprocessing


def checked_names(class_names: object, logits: int | None) -> tuple[str, ...]:
    """Return the names of the classes; with `logits` None there may be any number of them.

    Raises:
        ConfigError: no names, names that are no text, or another number of them than of logits.
    """
    if isinstance(class_names, str | bytes) or not isinstance(class_names, Iterable):
        wanted = "names, which may be empty" if logits is None else f"{logits} names, one for each logit"
        raise ConfigError(f"class_names is {_kind(class_names)}; give a list of {wanted}.")
    names = tuple(class_names)
    for index, name in enumerate(names):
        if not isinstance(name, str):
            raise ConfigError(f"class_names[{index}] is {_kind(name)}; names are text.")
    if logits is not None and len(names) != logits:
        raise ConfigError(f"class_names has {len(names)} names, but the model has {logits} logits.")
    return tuple(map(str, names))


def check_details(data: object, freezing: object) -> None:
    """Raise ConfigError unless these are valid metadata about a data set and about freezing."""
    if data is not None and not isinstance(data, str):
        raise ConfigError(f"data is {_kind(data)}; give the name of the data set as text, or None.")
    if freezing is not None and not isinstance(freezing, FreezingReport):
        raise ConfigError(
            f"freezing is {_kind(freezing)}; give the FreezingReport that compare_freezing returns, or None."
        )


def check_boxes(boxes: object, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Raise ConfigError unless a decoder matches some outputs; `shapes` are those of all outputs, by name."""
    if boxes is None:
        return
    if not isinstance(boxes, BoxDecoder):
        raise ConfigError(f"boxes is {_kind(boxes)}; give the BoxDecoder of a detector, or None.")
    for index, name in enumerate(boxes.outputs):
        if name not in shapes:
            raise ConfigError(f"boxes are in output {name!r}, but the model returns {', '.join(shapes)}.")
        if len(shapes[name]) != 3 or shapes[name][0] != boxes.channels(index):
            raise ConfigError(
                f"boxes are in output {name!r} of shape {list(shapes[name])}, but boxes of {boxes.classes} "
                f"classes need [{boxes.channels(index)}, H, W]."
            )


def check_same_input(model: fx.GraphModule, preprocessing: Preprocessing) -> None:
    """Require a model to take the images of `preprocessing`: metadata would be wrong otherwise.

    A model in `paper` placement has only its own record of it (`prepared_model.INPUT_GRID`).

    Args:
        model: from `prepare` or `freeze`.
        preprocessing: the one to write.

    Raises:
        ConfigError: another shape of images, scale or zero point than the model was prepared with; both are named.
    """
    image = next(node for node in model.graph.nodes if node.op == "placeholder")
    known = model.meta.get(INPUT_GRID)
    quantizer = next((module for module in model.modules() if isinstance(module, InputQuantizer)), None)
    said = InputQuantizer.of(preprocessing)
    if quantizer is None:
        quantizer = InputQuantizer.of(known if isinstance(known, Preprocessing) else preprocessing)
    shape = shape_of(image)[1:]
    if preprocessing.shape != shape or not said.maps_like(quantizer):
        raise ConfigError(
            f"preprocessing says images of {_describe(preprocessing.shape, said)}, but the model was prepared for "
            f"{_describe(shape, quantizer)}; export it with the Preprocessing that prepare was given, or prepare the "
            "network anew."
        )


def _describe(shape: tuple[int, ...], quantizer: InputQuantizer) -> str:
    return f"shape {'x'.join(map(str, shape))} with {quantizer.describe()}"


def _kind(value: object) -> str:
    """Describe a value in a few words."""
    if value is None or isinstance(value, int | float):
        return repr(value)
    if isinstance(value, str):
        return f"the text '{excerpt(value)}'"
    if isinstance(value, nn.Module):
        return f"a network ({type(value).__name__})"
    return f"a {type(value).__name__}"
