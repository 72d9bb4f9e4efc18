"""ONNX files without the onnx package: schema, tensors, metadata, names, the kernels a runtime executes."""

from __future__ import annotations

from .dequantized_weights import dequantized_codes
from .executed_kernels import executed_operators, optimized_model, write_optimized_model
from .float_parts import (
    PART_DOMAIN,
    PART_OPERATOR,
    cut_out_parts,
    inner_name,
    is_inside,
    kept_parts,
    part_shapes,
)
from .kernel_operators import (
    KERNEL_CONVOLUTIONS,
    KERNEL_DOMAIN,
    KERNEL_FUNCTIONS,
    KERNEL_INPUTS,
    KERNEL_OPERATORS,
    KERNEL_VERSION,
    LOW_BIT_CONV,
    LOW_BIT_MATMUL,
    LOW_BIT_MAX_POOL,
    LOW_BIT_RESCALE,
    PACKED_MATMULS,
    QUANTIZED_ADDITIONS,
    RESIDUAL_ADD,
    TERNARY_CONV,
    KernelFunction,
)
from .metadata import read_metadata
from .model_file import UNREAD, Node, OnnxFile, TensorInfo, convert_model, loadable, parse_file, read_model
from .names import INPUT_NAME, METADATA_KEY, METADATA_SCHEMA, OUTPUT_NAME
from .network_output import OUTPUT_KINDS, NetworkOutput, OutputKind, outputs_in_metadata, outputs_of_metadata
from .schema import parse_message, parse_model, with_outputs
from .tensors import DATA_TYPES, Array, DefectError, bits_of_type, convert_tensor, data_type, data_type_name
from .weight_storage import stored_bits, stored_bytes

__all__ = [
    "DATA_TYPES",
    "INPUT_NAME",
    "KERNEL_CONVOLUTIONS",
    "KERNEL_DOMAIN",
    "KERNEL_FUNCTIONS",
    "KERNEL_INPUTS",
    "KERNEL_OPERATORS",
    "KERNEL_VERSION",
    "LOW_BIT_CONV",
    "LOW_BIT_MATMUL",
    "LOW_BIT_MAX_POOL",
    "LOW_BIT_RESCALE",
    "METADATA_KEY",
    "METADATA_SCHEMA",
    "OUTPUT_KINDS",
    "OUTPUT_NAME",
    "PACKED_MATMULS",
    "PART_DOMAIN",
    "PART_OPERATOR",
    "QUANTIZED_ADDITIONS",
    "RESIDUAL_ADD",
    "TERNARY_CONV",
    "UNREAD",
    "Array",
    "DefectError",
    "KernelFunction",
    "NetworkOutput",
    "Node",
    "OnnxFile",
    "OutputKind",
    "TensorInfo",
    "bits_of_type",
    "convert_model",
    "convert_tensor",
    "cut_out_parts",
    "data_type",
    "data_type_name",
    "dequantized_codes",
    "executed_operators",
    "inner_name",
    "is_inside",
    "kept_parts",
    "loadable",
    "optimized_model",
    "outputs_in_metadata",
    "outputs_of_metadata",
    "parse_file",
    "parse_message",
    "parse_model",
    "part_shapes",
    "read_metadata",
    "read_model",
    "stored_bits",
    "stored_bytes",
    "with_outputs",
    "write_optimized_model",
]
