"""Set the intervals of a prepared model from data, before the task loss moves them."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Literal, get_args

from torch import nn

from qil_deploy.errors import ConfigError

from .batches import checked_batches
from .bit_widths import quantized_layers
from .calibrator import NORMS_STAY, estimate_statistics, set_intervals
from .compensated_rounding import compensate_rounding
from .quantized_model import QuantizedModel, refuse_single_values
from .unwrap import float_network, prepared_model, unwrapped

Rounding = Literal["nearest", "compensated"]
ROUNDINGS: tuple[Rounding, ...] = get_args(Rounding)


def calibrate(
    model: nn.Module,
    batches: Iterable[object],
    *,
    only: Collection[str] | None = None,
    output_factors: Mapping[str, float] | None = None,
    float_model: nn.Module | None = None,
    rounding: Rounding = "nearest",
) -> None:
    """Set activation intervals, 8-bit ranges, output scales and BatchNorm statistics of a prepared model.

    In graph order, each threshold is the one of least squared error (`best_threshold`), its geometric mean
    over the batches so far; BatchNorm normalises by the batch meanwhile, because quantized layers change the
    scale it has to take out. A last pass over the batches re-estimates the running statistics. In a model with
    `output_scales="all"` or `"channels"` BatchNorm stays as it is.

    An output scale starts at the product of both clipping thresholds, or, where the float network is given, at the
    scale `s` of least squared error `sum((f - s * y)**2)` over the batches so far, with `f` what the float layer
    returns, `y` what the quantized one does, both without bias: `s = sum(f * y) / sum(y * y)`. With
    `output_scales="channels"` each channel gets the scale and shift of least squared error, `f = s * (y + t)`.

    With `rounding="compensated"` weights are then replaced, layer after layer, by rounded ones whose errors cancel in
    each layer's sums on the batches, and which, given the float network, reproduce its layers' results, whatever the
    errors of the layers before (`compensated_rounding`). Where BatchNorm stays, scales of layers come from that, and
    intervals stay; otherwise all is set again. At 4 bits and below that helps a lot if nothing is trained
    afterwards; it takes several runs over the batches, and up to 2 GiB of memory.

    The mode of every module stays as it is, and so do the batches.

    Args:
        model: from `prepare`.
        batches: inputs, float32 [N, C, H, W] each, or tuples that begin with one, as a DataLoader gives them; any
            iterable, even a generator. A few hundred images are plenty.
        only: names of the quantizers and layers to set (None: all); the others keep their intervals and scales.
        output_factors: by layer, the output scale in units of the product of both clipping thresholds; 1 by default.
        float_model: the network that `model` was prepared from, to set output scales and compensated weights by.
        rounding: of weights: `nearest`, or `compensated`, which needs their intervals as `prepare` starts them.

    Raises:
        ConfigError: another `rounding`.
        DataError: no batches, or one that does not fit (`checked_batches`); a batch of one image, which gives a
            BatchNorm one value per channel; or images on which the network overflows.
        UnsupportedModelError: `model` is not from `prepare`, or it has NaN or infinity in a tensor; or its channels
            have scales and shifts, and there is no float network; or rounding is compensated, and intervals of
            weights are not those that `prepare` starts with.
    """
    if rounding not in ROUNDINGS:
        raise ConfigError(f"calibrate: rounding={rounding!r}; choose {' or '.join(map(repr, ROUNDINGS))}.")
    prepared = prepared_model(model, "calibrate", may_be_frozen=False, calibrated=False)
    network = None if float_model is None else float_network(float_model, "calibrate(float_model=...)")
    checked = checked_batches(batches, "calibration", prepared)
    if not prepared.meta.get(NORMS_STAY, False):
        for batch in checked:
            refuse_single_values(prepared, "calibration", batch, norms_learn=True)
    set_intervals(prepared, checked, only=only, output_factors=output_factors, float_model=network)
    if rounding == "compensated":
        rounded = compensate_rounding(prepared, checked, only, network)
        if network is None or not prepared.meta.get(NORMS_STAY, False):
            set_intervals(prepared, checked, only=only, output_factors=output_factors, float_model=network)
        elif left := {name for name in quantized_layers(prepared) if only is None or name in only} - rounded:
            set_intervals(prepared, checked, only=left, output_factors=output_factors, float_model=network)


def estimate_batchnorm(model: nn.Module, batches: Iterable[object]) -> None:
    """Estimate the running statistics of every BatchNorm anew, as plain means over batches; nothing else changes.

    Args:
        model: float or prepared; the mode of every module stays.
        batches: as for `calibrate`.

    Raises:
        DataError: as `calibrate`; the statistics are then what they were.
        UnsupportedModelError: a frozen model, whose statistics are constants, or one that was never calibrated.
    """
    network = unwrapped(model)
    if isinstance(network, QuantizedModel):
        prepared_model(network, "estimate_batchnorm", may_be_frozen=False)
    estimate_statistics(network, checked_batches(batches, "BatchNorm's statistics", network))
