"""Bits per layer for a size budget, from measured sensitivity, and the recipe that trains them.

Among the widths that were tried, those with the least summed KL whose packed weights fit the budget are chosen
(`bit_assignment`, exact). The sum assumes that the errors of layers neither cancel nor amplify each other; therefore
the whole assignment is measured as well, next to every layer at one width.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from qil_deploy.checkpoint import CheckpointInfo, read_checkpoint
from qil_deploy.config import LayerBits, LayerOverride, QuantConfig
from qil_deploy.datasets import load_batches
from qil_deploy.errors import CheckpointError, ConfigError
from qil_deploy.onnx_io import stored_bytes

from .bit_assignment import Choice, choose_widths
from .recipe import Recipe, recipe_from_dict
from .sensitivity import LayerSensitivity, Measurement, Probe, Sensitivity

STAGE_EPOCHS = 4
FLOAT_EPOCHS = 20


@dataclass(frozen=True, kw_only=True)
class Uniform:
    """All layers at one width, as far as the plan lowers them: bytes of packed weights, and the measurement."""

    width: int
    bytes: int
    measured: Measurement


@dataclass(frozen=True, kw_only=True)
class Proposal:
    """Bits for every layer.

    Attributes:
        budget: bytes that packed weights may take.
        bytes: what they take.
        bits: by layer.
        summed_kl: of the layers lowered one at a time; what was minimised.
        measured: all of them lowered together.
        uniform: for comparison.
    """

    budget: int
    bytes: int
    bits: dict[str, LayerBits]
    summed_kl: float
    measured: Measurement
    uniform: tuple[Uniform, ...]


def budget_in_bytes(probe: Probe, bits_per_weight: float) -> int:
    """Return the budget, in bytes, for an average number of stored bits per weight over all quantized layers.

    Raises:
        ConfigError: no number of bits.
    """
    if not 0 < bits_per_weight < math.inf:
        raise ConfigError(f"a budget of {bits_per_weight} bits per weight makes no sense; give a number like 3.2.")
    return int(bits_per_weight * sum(probe.weights.values()) / 8)


def propose(probe: Probe, sensitivity: Sensitivity, budget: int) -> Proposal:
    """Choose bits whose packed weights fit into `budget` bytes.

    Raises:
        ConfigError: as `check_budget`.
    """
    check_budget(probe, budget)
    options = [_options(layer) for layer in sensitivity.layers]
    chosen = choose_widths([[choice for _, choice in entries] for entries in options], budget)
    if chosen is None:
        raise RuntimeError(f"no widths for {budget} bytes, although the fewest bits fit")
    picked = [entries[index] for entries, index in zip(options, chosen, strict=True)]
    bits = {layer.name: entry for layer, (entry, _) in zip(sensitivity.layers, picked, strict=True)}
    return Proposal(
        budget=budget,
        bytes=sum(choice.size for _, choice in picked),
        bits=bits,
        summed_kl=sum(choice.cost for _, choice in picked),
        measured=probe.measure(_changes(probe, bits)),
        uniform=tuple(_uniform(probe, width) for width in sorted(set(probe.plan.widths), reverse=True)),
    )


def check_budget(probe: Probe, budget: int) -> None:
    """Raise ConfigError if there is no choice of widths: the budget cannot be met, or is met with nothing lowered."""
    if probe.plan.what == "activations":
        raise ConfigError("a size budget needs weights to be lowered; choose --what both or --what weights.")
    largest, smallest = packed_bytes(probe, probe.bits), packed_bytes(probe, _lowered(probe, min(probe.plan.widths)))
    if budget >= largest:
        raise ConfigError(
            f"a budget of {budget:,} bytes is met with nothing lowered: the packed weights take {largest:,}; "
            "give a smaller one."
        )
    if budget < smallest:
        raise ConfigError(
            f"a budget of {budget:,} bytes cannot be met: with every layer at its fewest bits the packed weights take "
            f"{smallest:,}, {8 * smallest / sum(probe.weights.values()):.3f} bits per weight; give at least that, or "
            "lower more (--bits, --edges)."
        )


def packed_bytes(probe: Probe, bits: dict[str, LayerBits]) -> int:
    """Return the bytes of all packed weights with these bits."""
    return sum(stored_bytes(probe.weights[name], entry.weight_bits) for name, entry in bits.items())


def _options(layer: LayerSensitivity) -> list[tuple[LayerBits, Choice]]:
    kept = (layer.bits, Choice(size=stored_bytes(layer.weights, layer.bits.weight_bits), cost=0.0))
    lowered = [
        (trial.bits, Choice(size=stored_bytes(layer.weights, trial.bits.weight_bits), cost=trial.measured.kl))
        for trial in layer.trials
    ]
    return [kept, *lowered]


def _changes(probe: Probe, bits: dict[str, LayerBits]) -> dict[str, LayerBits]:
    return {name: entry for name, entry in bits.items() if entry != probe.bits[name]}


def _lowered(probe: Probe, width: int) -> dict[str, LayerBits]:
    return {name: probe.lowered(name, width) for name in probe.bits}


def _uniform(probe: Probe, width: int) -> Uniform:
    bits = _lowered(probe, width)
    return Uniform(width=width, bytes=packed_bytes(probe, bits), measured=probe.measure(_changes(probe, bits)))


def recipe_text(probe: Probe, bits: dict[str, LayerBits], checkpoint: Path, name: str) -> str:
    """Return a recipe, in TOML, that trains a network with these bits.

    It starts from the float checkpoint: `checkpoint` itself, or `float.safetensors` next to a quantized one. If there
    is none, the recipe trains the float network first.

    Args:
        probe: of the checkpoint.
        bits: of every quantized layer.
        checkpoint: its file.
        name: of the recipe.

    Raises:
        CheckpointError: the network has arguments that recipes lack.
    """
    info = probe.info
    stage = _most_common(probe, bits)
    start = _float_checkpoint(info, checkpoint)
    model = {"name": info.model_name} | _width(info, checkpoint)
    if start is not None:
        model["weights"] = str(start.resolve())
    size = _image_size(info)
    content = {
        "name": name,
        "data": info.data,
        **({} if size is None else {"image_size": size}),
        "placement": probe.config.placement,
        "method": probe.config.method,
        "train_gamma": probe.config.train_gamma,
        "gradient_scaling": probe.config.gradient_scaling,
        "returning_weights": probe.config.returning_weights,
        "allow_float": probe.config.allow_float,
        "model": model,
        "float_training": {"epochs": FLOAT_EPOCHS if start is None else 0},
        "stages": [{**stage.model_dump(), "epochs": STAGE_EPOCHS, "overrides": _overrides(probe, bits, stage)}],
    }
    recipe = recipe_from_dict(content, "that was proposed")
    return _to_toml(recipe, content, 8 * packed_bytes(probe, bits) / sum(probe.weights.values()), checkpoint)


def _most_common(probe: Probe, bits: dict[str, LayerBits]) -> LayerBits:
    """Return the bits that most inner layers have; the first and last ones have their own."""
    inner = [entry for name, entry in bits.items() if name not in probe.edges] or list(bits.values())
    return Counter(inner).most_common(1)[0][0]


def _overrides(probe: Probe, bits: dict[str, LayerBits], stage: LayerBits) -> dict[str, dict[str, int]]:
    config = QuantConfig(**stage.model_dump(), placement=probe.config.placement, allow_float=probe.config.allow_float)
    return {
        name: LayerOverride(**entry.model_dump()).model_dump()
        for name, entry in bits.items()
        if config.bits_of(name, edge=name in probe.edges) != entry
    }


def _float_checkpoint(info: CheckpointInfo, checkpoint: Path) -> Path | None:
    if info.kind == "float":
        return checkpoint
    beside = checkpoint.with_name("float.safetensors")
    try:
        other, _ = read_checkpoint(beside)
    except CheckpointError:
        return None
    same = (other.kind, other.model_name, other.model_arguments) == ("float", info.model_name, info.model_arguments)
    return beside if same else None


def _width(info: CheckpointInfo, checkpoint: Path) -> dict[str, int]:
    """Return the width that the network was built with, if any; the data determine its other arguments."""
    unknown = info.model_arguments.keys() - {"in_channels", "num_classes", "width"}
    if unknown:
        raise CheckpointError(
            f"the network of {checkpoint} was built with {', '.join(sorted(unknown))}, for which recipes have no "
            "place; write the recipe by hand, with the overrides of --json."
        )
    return {"width": info.model_arguments["width"]} if "width" in info.model_arguments else {}


def _image_size(info: CheckpointInfo) -> int | None:
    """Return the size to which images are resized, or None if it is the data set's."""
    own = load_batches(info.data, "train", batch_size=1).shape
    return None if own == info.preprocessing.shape else info.preprocessing.shape[1]


def _to_toml(recipe: Recipe, content: dict[str, object], bits: float, checkpoint: Path) -> str:
    (stage,) = recipe.stages
    top = {key: value for key, value in content.items() if key not in ("model", "float_training", "stages")}
    lines = [
        f"# {bits:.2f} stored bits per weight, from the sensitivity of {checkpoint.name}. How it was trained",
        "# (augmentation, epochs, rates) no checkpoint says: the epochs below are a start, the rest has its default.",
        *_entries(top),
        "",
        "[model]",
        *_entries(recipe.model.model_dump(exclude_defaults=True)),
        "",
        "[float_training]",
        *_entries(recipe.float_training.model_dump(exclude_unset=True)),
        "",
        "[[stages]]",
        *_entries(stage.model_dump(include={"weight_bits", "activation_bits", "epochs"})),
    ]
    if stage.overrides:
        lines += ["", "[stages.overrides]"]
        lines += [f"{_text(name)} = {{ {', '.join(_entries(entry))} }}" for name, entry in stage.overrides.items()]
    return "\n".join(lines) + "\n"


def _entries(values: dict[str, object] | dict[str, int]) -> list[str]:
    return [f"{key} = {_text(value)}" for key, value in values.items()]


def _text(value: object) -> str:
    """Format a string, number or truth value in TOML, which writes them as JSON does."""
    return json.dumps(value, ensure_ascii=False)
