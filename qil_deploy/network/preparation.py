"""Insert quantizers into a float network at the places that `placement` determines.

`paper` placement: one interval quantizer in front of every inner convolution and linear layer; the first and
last layer, residual stream and pooled features stay float.

`integer` placement: every group of sites carries one grid. Layers whose readers all want the same interval carry that
interval; any other group carries 8-bit codes, and low-bit intervals are placed after them, one per bit width
and tensor (decision 0008). Average poolings and lone BatchNorms and ReLUs become layers (`averaging_layer`). Outputs
stay float where a linear layer or a global pooling makes them, or, for maps, a convolution (decision 0042); elsewhere
they are 8-bit codes. With `allow_float`, operations that have no integer form stay float between two grids of 8-bit
codes (`float_island`).
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from itertools import chain

import torch
from torch import Tensor, fx, nn
from torch.nn.parameter import is_lazy

from qil_deploy.config import LayerBits, QuantConfig
from qil_deploy.errors import DataError, UnsupportedModelError
from qil_deploy.preprocessing import Preprocessing
from qil_deploy.quantizers import InputQuantizer, RangeQuantizer, activation_quantizer

from .batches import INPUT_GRID, require_normalised
from .calibrator import CALIBRATED, NORMS_STAY
from .callers_state import nothing_left_behind
from .capture import capture_network
from .drop_path import replace_drop_paths
from .finite import is_finite, require_finite
from .graph import add_module, input_of, kind_of, module_of, row_of, shape_of, users_of
from .image_layers import take_in_statistics
from .layers import BatchNorm, ImageAffine, QuantLayer, affine_layer, averaging_layer, pair, quantize_layer
from .moves import OnGrid
from .operator_row import LAYER_KINDS, MOVING_KINDS
from .plain_modules import require_plain_modules
from .quantized_model import CONFIG, PreparedModel
from .same_function import require_same_function, require_same_training
from .sites import Group, Reader, Site, bits_of_layers, edge_layers, find_groups, isolate
from .unwrap import float_network


def prepare(
    model: nn.Module, config: QuantConfig, example_input: Tensor, *, input_grid: Preprocessing
) -> PreparedModel:
    """Return a copy of `model` with quantized layers and quantizers in it, ready to be trained.

    Weight intervals are set from the weights; activation intervals by `calibrate`, or by the first batch that
    passes in training mode. Until then the model refuses to be evaluated. Nothing of the caller's changes: not the
    network, nor the mode of any of its modules, the example, or what random generators will give next.

    Args:
        model: float32 network that `torch.export` can capture, one image tensor in, one or more tensors of floats
            out, alone or in containers; in any mode.
        config: bits and placement.
        example_input: images as the network sees them, float32 [N, C, H, W], for their shape and for a comparison: on
            the first one, and on noise, the captured graph has to return what `model` does (`same_function`).
        input_grid: the map that made the input from a uint8 image. What it does to each channel by itself goes into
            the layers that read the image (`image_layers`), and its zero padding pads with the grid's zero point.

    Raises:
        UnsupportedModelError: an operation that cannot be lowered, a structure that cannot be quantized, a network that
            is prepared already, a type other than float32, a tensor with NaN or infinity in it, or a graph that
            computes something else than the network.
        ConfigError: bits out of range, or an override that matches no layer.
        DataError: the example is no such tensor, or of another shape than `input_grid` says, or far outside its range.
    """
    network = float_network(model, "prepare")
    _check_example(example_input, input_grid)
    require_plain_modules(network)
    _require_float32(network)
    require_finite(chain(network.named_parameters(), network.named_buffers()), "the network")
    with nothing_left_behind():
        example = example_input.detach().to(torch.float32, copy=True)
        return _prepared(_copy(network), config, example, input_grid, compared=True)


def prepare_structure(network: nn.Module, config: QuantConfig, *, input_grid: Preprocessing) -> PreparedModel:
    """Prepare the network itself, as `prepare` does a copy; its tensors are loaded later, and therefore not examined.

    Args:
        network: as its builder returned it; its layers are taken over.
        config, input_grid: as in `prepare`.

    Raises:
        UnsupportedModelError, ConfigError: as `prepare`.
    """
    network = float_network(network, "prepare")
    _require_float32(network)
    with nothing_left_behind():
        return _prepared(network, config, torch.zeros(1, *input_grid.shape), input_grid, compared=False)


def _copy(network: nn.Module) -> nn.Module:
    """Return a copy without the gradients of an earlier training."""
    try:
        copied = copy.deepcopy(network)
    except Exception as error:  # whatever a network holds beside its tensors
        raise UnsupportedModelError(
            f"the network cannot be copied ({error}); detach tensors that it computed, remove weight norms, and keep "
            "locks and open files elsewhere."
        ) from error
    for parameter in copied.parameters():
        parameter.grad = None
    return copied


def _check_example(example: object, grid: Preprocessing) -> None:
    if not isinstance(example, Tensor):
        raise DataError(f"example_input is a {type(example).__name__}; give a tensor of images, float32 [N, C, H, W].")
    if not example.is_floating_point() or example.ndim != 4 or example.numel() == 0 or not is_finite(example):
        raise DataError(
            f"example_input is {str(example.dtype).removeprefix('torch.')} of shape {list(example.shape)}; give finite "
            "float32 images [N, C, H, W], at least one, as preprocessing.normalize makes them from uint8 pixels."
        )
    if tuple(example.shape[1:]) != grid.shape:
        raise DataError(
            f"example_input has images of shape {list(example.shape[1:])}, but input_grid is for {list(grid.shape)}; "
            "give both for the images that the exported model will get."
        )
    require_normalised(example, "example_input", grid)


def _require_float32(network: nn.Module) -> None:
    for name, tensor in chain(network.named_parameters(), network.named_buffers()):
        if is_lazy(tensor):
            raise UnsupportedModelError(
                f"the network: tensor {name!r} of a lazy module has no shape yet; run the network on one batch first."
            )
        if tensor.is_meta or (tensor.dtype != torch.float32 and (tensor.is_floating_point() or tensor.is_complex())):
            found = "has no values (device 'meta')" if tensor.is_meta else f"is {str(tensor.dtype)[6:]}"
            raise UnsupportedModelError(
                f"the network: tensor {name!r} {found}; quantization starts from float32 and is trained in it: "
                "prepare(network.float(), ...)."
            )


def _prepared(
    network: nn.Module, config: QuantConfig, example: Tensor, input_grid: Preprocessing, *, compared: bool
) -> PreparedModel:
    """Trace a network, insert quantizers into the graph, and return it; it reuses the network's layers."""
    replace_drop_paths(network)
    graph_module = capture_network(
        network,
        example,
        allow_float=config.allow_float,
        float_gates=config.float_gates,
        float_scales=config.float_scales,
        float_rows=config.float_rows,
    )
    if compared:
        require_same_function(network, graph_module, example)
        require_same_training(network, graph_module)
    modes = {name: module.training for name, module in graph_module.named_modules()}
    if config.placement == "integer":
        take_in_statistics(graph_module, input_grid)
    _place_quantizers(graph_module, config, input_grid)
    _write_only_where_nobody_reads(graph_module)
    graph_module.graph.lint()
    model = PreparedModel(graph_module, graph_module.graph)
    model.meta |= {NORMS_STAY: config.norms_stay, CONFIG: config, INPUT_GRID: input_grid}
    model.register_buffer(CALIBRATED, torch.tensor(False))
    for name, module in model.named_modules():
        module.training = modes.get(name, network.training)
    devices = {tensor.device for tensor in network.parameters()}
    return model.to(devices.pop()) if len(devices) == 1 else model


def _place_quantizers(graph_module: fx.GraphModule, config: QuantConfig, input_grid: Preprocessing) -> None:
    isolate(graph_module, config)
    edges = edge_layers(graph_module)
    bits = bits_of_layers(graph_module, config, edges)
    groups = find_groups(graph_module, config, edges)
    kept_float = edges if config.placement == "paper" else set()
    for site in (site for group in groups for site in group.sites):
        if site.kind in ("conv", "linear") and site.producer not in kept_float:
            _quantize_layer(graph_module, site, bits[site.producer], config)
        elif site.kind in ("average", "standalone") and config.placement == "integer":
            _use_averaging_layer(graph_module, site, config)
    for group in groups:
        if config.placement == "paper":
            for reader in group.readers:
                if reader.interval_bits is not None:
                    _insert_interval(graph_module, reader.via, [reader], config, signed=group.signed)
        else:
            _insert_grid(graph_module, group, input_grid, config)
    _tell_grids(graph_module)


def _tell_grids(graph_module: fx.GraphModule) -> None:
    """Give modules that must know the grid that they keep the quantizer before them."""
    for node in graph_module.graph.nodes:
        module = module_of(graph_module, node) if node.op == "call_module" else None
        if isinstance(module, OnGrid):
            source = node.all_input_nodes[0]
            while kind_of(graph_module, source) in MOVING_KINDS:
                source = source.all_input_nodes[0]
            quantizer = module_of(graph_module, source) if source.op == "call_module" else None
            if isinstance(quantizer, RangeQuantizer | InputQuantizer):
                module.quantizer = (quantizer,)


def _write_only_where_nobody_reads(graph_module: fx.GraphModule) -> None:
    """Let no ReLU write into the images, which are the caller's, nor into values that other nodes read."""
    read: set[fx.Node] = set()
    for node in graph_module.graph.nodes:
        row = row_of(graph_module, node)
        reads_it = bool(read.intersection(node.all_input_nodes))
        if node.op == "placeholder" or len(users_of(node)) > 1 or (row is not None and row.returns_input and reads_it):
            read.add(node)
        if row is not None and row.kind == "relu" and reads_it:
            module_of(graph_module, node).inplace = False  # type: ignore[assignment] # a flag, not a tensor


def _quantize_layer(graph_module: fx.GraphModule, site: Site, bits: LayerBits, config: QuantConfig) -> None:
    layer = module_of(graph_module, site.producer)
    name = str(site.producer.target)
    if not isinstance(layer, nn.Conv2d | nn.Linear):
        raise TypeError(f"{name} is a {type(layer).__name__}")
    norm = module_of(graph_module, site.norm) if site.norm is not None else None
    normalized = isinstance(norm, BatchNorm)
    if layer.bias is not None and isinstance(norm, BatchNorm):
        # Where BatchNorm normalizes several of its channels as one, each keeps its bias, and a scale to add it in.
        normalized = len(layer.bias) == norm.num_features
        if normalized:
            _move_into_mean(norm, layer.bias.detach())
    quantized: QuantLayer = quantize_layer(
        layer, bits, normalized=normalized, scaled=not normalized or config.norms_stay, config=config
    )
    graph_module.add_submodule(name, quantized)


def _move_into_mean(norm: nn.Module | None, bias: Tensor) -> None:
    """Fold a bias into the mean of the BatchNorm after it, if there is one."""
    if isinstance(norm, BatchNorm) and norm.running_mean is not None:
        norm.running_mean -= bias


def _use_averaging_layer(graph_module: fx.GraphModule, site: Site, config: QuantConfig) -> None:
    """Replace an average pooling, or the substitute for a lone BatchNorm or ReLU, by an equivalent convolution."""
    module = module_of(graph_module, site.producer)
    channels = shape_of(site.producer)[1]
    norm = module_of(graph_module, site.norm) if site.norm is not None else None
    divisor: int | None
    if isinstance(module, nn.AvgPool2d):
        kernel, stride, padding = (pair(value) for value in (module.kernel_size, module.stride, module.padding))
        divisor = module.divisor_override or kernel[0] * kernel[1]
        layer = averaging_layer(channels, kernel, stride, padding, divisor)
    elif isinstance(module, ImageAffine):
        _move_into_mean(norm, module.shift.float())
        layer = affine_layer(module.gain, module.shift, normalized=isinstance(norm, BatchNorm))
    else:
        divisor = None if isinstance(norm, BatchNorm) and not config.norms_stay else 1
        layer = averaging_layer(channels, (1, 1), (1, 1), (0, 0), divisor)
    graph_module.add_submodule(str(site.producer.target), layer)


def _insert_grid(graph_module: fx.GraphModule, group: Group, input_grid: Preprocessing, config: QuantConfig) -> None:
    """Insert the quantizers that one group's readers want in `integer` placement."""
    first = group.sites[0]
    widths = {reader.interval_bits for reader in group.readers}
    if _makes_float_outputs(graph_module, group, config):
        return
    if first.kind == "input":
        name, grid = "input_quantizer", InputQuantizer.of(input_grid)
        behind = {first.end: _insert_after(graph_module, first.end, add_module(graph_module, name, grid))}
    elif len(widths) == 1 and None not in widths and all(site.kind in LAYER_KINDS for site in group.sites):
        name = _add_interval(graph_module, group.readers[0], config, signed=group.signed)
        for site in group.sites:
            _insert_after(graph_module, site.end, name)
        return
    else:
        name = add_module(graph_module, f"ranges.{first.end.name}", RangeQuantizer(signed=group.signed))
        behind = {site.end: _insert_after(graph_module, site.end, name) for site in group.sites}
    intervals: dict[tuple[fx.Node, int], list[Reader]] = {}
    for reader in group.readers:
        if reader.interval_bits is not None:
            source = behind.get(reader.via, reader.via)
            intervals.setdefault((source, reader.interval_bits), []).append(reader)
    for (source, _), readers in intervals.items():
        _insert_interval(graph_module, source, readers, config, signed=group.signed)


def _makes_float_outputs(graph_module: fx.GraphModule, group: Group, config: QuantConfig) -> bool:
    """Whether a group is only outputs that stay float: exact sums of a layer, or pooled to one pixel."""
    site = group.sites[0]
    if len(group.sites) > 1 or any(reader.node.op != "output" for reader in group.readers):
        return False
    is_dense = any(len(shape_of(reader.via)) > 2 for reader in group.readers)
    if is_dense and config.outputs == "codes":
        return False
    if site.kind == "conv" and site.relu is None:
        return is_dense and all(_is_rearranged(graph_module, reader.via, site.end) for reader in group.readers)
    return site.kind == "pool" or (site.kind == "linear" and site.relu is None)


def _is_rearranged(graph_module: fx.GraphModule, node: fx.Node, source: fx.Node) -> bool:
    """Whether a node only moves the values of another, without choosing among them."""
    while node is not source:
        row = row_of(graph_module, node)
        if row is None or row.chooses:
            return False
        node = input_of(node)
    return True


def _insert_interval(
    graph_module: fx.GraphModule, source: fx.Node, readers: list[Reader], config: QuantConfig, *, signed: bool
) -> None:
    """Insert one interval quantizer between `source` and the given readers."""
    name = _add_interval(graph_module, readers[0], config, signed=signed)
    _insert_after(graph_module, source, name, [reader.node for reader in readers])


def _add_interval(graph_module: fx.GraphModule, reader: Reader, config: QuantConfig, *, signed: bool) -> str:
    """Add the interval quantizer that `reader` wants; return its name."""
    if reader.interval_bits is None:
        raise TypeError(f"{reader.node.name} reads 8-bit codes")
    # Module names cannot hold dots; the quantizer is named after the first layer that reads it.
    name = f"intervals.{str(reader.node.target).replace('.', '_')}"
    return add_module(graph_module, name, activation_quantizer(reader.interval_bits, config, signed=signed))


def _insert_after(
    graph_module: fx.GraphModule, source: fx.Node, name: str, users: Sequence[fx.Node] | None = None
) -> fx.Node:
    """Insert a call of module `name` after `source`, read by `users` (by all its users if None)."""
    chosen = users_of(source) if users is None else users
    with graph_module.graph.inserting_after(source):
        new = graph_module.graph.call_module(name, (source,))
    new.meta["shape"] = shape_of(source)
    for user in chosen:
        user.replace_input_with(source, new)
    return new
