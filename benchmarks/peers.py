"""Peers that export the same network to ONNX: ONNX Runtime's own int8 quantization, and Brevitas at four bits.

Brevitas is optional; a function that needs it raises ImportError if it is missing.
"""

from __future__ import annotations

import copy
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process
from torch import Tensor, nn

from qil_deploy.onnx_io import INPUT_NAME

BITS = 4
EDGE_BITS = 8
COLOURS = 3
OPSET = 17


def export_onnxruntime_int8(float_file: Path, path: Path, batches: list[Tensor]) -> None:
    """Quantize a float32 ONNX file with `quantize_static`: uint8 activations, int8 weights per channel, QDQ.

    ONNX Runtime's own pre-processing is applied to the file first, which fuses BatchNorm.
    """
    logging.getLogger().setLevel(logging.ERROR)  # it warns about options left at their default
    with TemporaryDirectory() as folder:
        preprocessed = Path(folder) / "preprocessed.onnx"
        quant_pre_process(str(float_file), str(preprocessed))
        quantize_static(
            str(preprocessed),
            str(path),
            _Calibration(batches),
            quant_format=QuantFormat.QDQ,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            per_channel=True,
        )


class _Calibration(CalibrationDataReader):  # type: ignore[misc] # onnxruntime publishes no type hints
    def __init__(self, batches: list[Tensor]) -> None:
        self.batches: Iterator[Tensor] = iter(batches)

    def get_next(self) -> dict[str, NDArray[np.float32]] | None:
        batch = next(self.batches, None)
        return None if batch is None else {INPUT_NAME: batch.numpy()}


def export_brevitas_layers(model: nn.Module, path: Path, batches: list[Tensor]) -> None:
    """Write a network built from Brevitas's quantized layers, as used for training: 4-bit weights and activations.

    The stem and the linear layers have 8-bit weights; BatchNorm and residual adds stay float between the layers.

    Raises:
        ImportError: Brevitas or a package that its export needs is missing.
    """
    quantized = copy.deepcopy(model)
    use_brevitas_layers(quantized)
    quantized.train()  # its activation quantizers learn their ranges from the first batches
    with torch.no_grad():
        for batch in batches:
            quantized(batch)
    _export_brevitas(quantized, path, batches)


def export_brevitas_post_training(model: nn.Module, path: Path, batches: list[Tensor]) -> None:
    """Quantize a network with Brevitas's post-training flow and write it: BatchNorm merged, four bits everywhere.

    Raises:
        ImportError: Brevitas or a package that its export needs is missing.
    """
    from brevitas.graph.calibrate import calibration_mode
    from brevitas.graph.quantize import (
        COMPUTE_LAYER_MAP,
        QUANT_ACT_MAP,
        QUANT_IDENTITY_MAP,
        preprocess_for_quantize,
        quantize,
    )

    def with_bits(layers: dict[Any, Any], option: str) -> dict[Any, Any]:
        return {kind: to and (to[0], {**to[1], option: BITS}) for kind, to in layers.items()}

    merged = preprocess_for_quantize(copy.deepcopy(model), equalize_iters=0)
    quantized = quantize(
        merged,
        compute_layer_map=with_bits(COMPUTE_LAYER_MAP, "weight_bit_width"),
        quant_act_map=with_bits(QUANT_ACT_MAP, "bit_width"),
        quant_identity_map=with_bits(QUANT_IDENTITY_MAP, "bit_width"),
    ).eval()
    with torch.no_grad(), calibration_mode(quantized):
        for batch in batches:
            quantized(batch)
    _export_brevitas(quantized, path, batches)


def use_brevitas_layers(
    module: nn.Module, *, bits: int = BITS, collect_stats_steps: int = 300, inputs_of_layers: bool = False
) -> None:
    """Replace every convolution, ReLU and linear layer inside `module` with Brevitas's quantized one.

    Args:
        module: the network, changed in place.
        bits: bit width of weights and activations; layers that read an image and linear layers have 8-bit weights.
        collect_stats_steps: number of batches that set the ranges of activations, which is slow; ranges are trained
            afterwards.
        inputs_of_layers: quantize the inputs of layers instead of the results of ReLUs, so that shortcuts stay float,
            and train the scales of weights, too.
    """
    from brevitas import nn as quantized
    from brevitas.quant import Int8WeightPerChannelFloat, Uint8ActPerTensorFloat

    def options(of_weights: int, of_input: int | None) -> dict[str, Any]:
        found = {"weight_quant": Int8WeightPerChannelFloat, "weight_bit_width": of_weights}
        if inputs_of_layers:
            found |= {"weight_scaling_impl_type": "parameter_from_stats"}
        if inputs_of_layers and of_input is not None:
            found |= {"input_quant": Uint8ActPerTensorFloat, "input_bit_width": of_input}
            found |= {"input_collect_stats_steps": collect_stats_steps}
        return found

    for name, child in module.named_children():
        new: nn.Module
        if isinstance(child, nn.Conv2d):
            reads_image = child.in_channels <= COLOURS
            new = quantized.QuantConv2d(
                child.in_channels,
                child.out_channels,
                child.kernel_size,
                child.stride,
                child.padding,
                groups=child.groups,
                bias=child.bias is not None,
                **options(EDGE_BITS if reads_image else bits, None if reads_image else bits),
            )
            new.load_state_dict(child.state_dict(), strict=False)
        elif isinstance(child, nn.Linear):
            new = quantized.QuantLinear(
                child.in_features, child.out_features, bias=child.bias is not None, **options(EDGE_BITS, EDGE_BITS)
            )
            new.load_state_dict(child.state_dict(), strict=False)
        elif isinstance(child, nn.ReLU) and not inputs_of_layers:
            new = quantized.QuantReLU(
                act_quant=Uint8ActPerTensorFloat, bit_width=bits, collect_stats_steps=collect_stats_steps
            )
        else:
            use_brevitas_layers(
                child, bits=bits, collect_stats_steps=collect_stats_steps, inputs_of_layers=inputs_of_layers
            )
            continue
        setattr(module, name, new)


def _export_brevitas(quantized: nn.Module, path: Path, batches: list[Tensor]) -> None:
    from brevitas.export import export_onnx_qcdq

    quantized.eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.onnx warns about the exporter that Brevitas uses
        # With dynamo=True Brevitas writes the weights in float32: 47 MB instead of 12 for ResNet-18, and no faster.
        export_onnx_qcdq(
            quantized.eval(), args=batches[0][:1], export_path=str(path), opset_version=OPSET, dynamo=False
        )
