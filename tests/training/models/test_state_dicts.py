"""Weights in common file layouts: found under any key and after any prefix, or refused with advice."""

from __future__ import annotations

import re
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from qil_deploy.errors import CheckpointError
from qil_deploy.training.models.build import build_model
from qil_deploy.training.models.initial_weights import load_initial_weights
from qil_deploy.training.models.state_dicts import find_weights

State = dict[str, Tensor]


def network(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return build_model("resnet8", {"in_channels": 3, "num_classes": 5, "width": 4})


def trained() -> nn.Module:
    return network(1)


def other(state: State) -> State:
    """The same names with other values."""
    return {name: tensor + 1 for name, tensor in state.items()}


def prefixed(state: State, prefix: str) -> State:
    return {prefix + name: tensor for name, tensor in state.items()}


def save_torch(content: object, path: Path) -> str:
    torch.save(content, path)  # noqa: TID251 - what users have
    return str(path)


def load(path: str) -> tuple[nn.Module, list[str]]:
    """Load into a network of other weights; return it and the messages."""
    model = network(2)
    told: list[str] = []
    assert load_initial_weights(model, path, name="resnet8", tell=told.append) == ()
    return model, told


def assert_same(model: nn.Module, state: State) -> None:
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, state[name]), name


# What people save, and what they are told about it.
FORMS: dict[str, tuple[Callable[[State], Any], str]] = {
    "DataParallel": (lambda state: prefixed(state, "module."), "Took the tensors with the prefix 'module.' of"),
    "torch.compile": (lambda state: prefixed(state, "_orig_mod."), ""),
    "compiled, in processes": (lambda state: prefixed(state, "module._orig_mod."), "with the prefix 'module.'"),
    "a compiled part": (
        lambda state: {name.replace("layer1.", "layer1._orig_mod."): tensor for name, tensor in state.items()},
        "",
    ),
    "state_dict": (lambda state: {"state_dict": state, "epoch": 3, "arch": "resnet8"}, "under state_dict"),
    "model": (lambda state: {"model": OrderedDict(state), "lr": 0.1}, "under model"),
    "model_state_dict": (
        lambda state: {
            "model_state_dict": state,
            "optimizer_state_dict": {"state": {0: {"momentum_buffer": torch.zeros(3)}}, "param_groups": [{"lr": 0.1}]},
        },
        "under model_state_dict",
    ),
    "nested": (
        lambda state: {"checkpoint": {"net": prefixed(state, "module.")}},
        "under checkpoint.net with the prefix",
    ),
    "Lightning": (
        lambda state: {
            "state_dict": {**prefixed(state, "model."), "criterion.weight": torch.ones(5)},
            "pytorch-lightning_version": "2.4.0",
            "optimizer_states": [{"state": {0: {"exp_avg": torch.zeros(2)}}}],
        },
        r"with the prefix 'model\.' of.*1 tensors beside them were left out, criterion\.weight",
    ),
    "averaged, beside": (
        lambda state: {"state_dict_ema": other(state), "state_dict": state},
        "There are as good ones under state_dict_ema; to start from those, save them alone",
    ),
    "averaged, alone": (lambda state: {"ema": {"module": state}, "updates": 9}, r"under ema\.module"),
    "averaged, inside": (
        lambda state: {**prefixed(state, "model."), **prefixed(other(state), "ema_model.")},
        r"as good ones with the prefix 'ema_model\.'",
    ),
    "counters of operations": (
        lambda state: {**state, "total_ops": torch.zeros(1), "conv1.total_params": torch.zeros(1), "epoch": 3},
        "",
    ),
    "heads for training": (lambda state: {**state, "aux1.fc.weight": torch.ones(3)}, "heads that serve training only"),
    "float64": (
        lambda state: {n: t.double() if t.is_floating_point() else t for n, t in state.items()},
        "were float64",
    ),
    "parameters": (lambda state: {n: nn.Parameter(t, requires_grad=False) for n, t in state.items()}, ""),
    "sparse": (lambda state: {**state, "fc.weight": state["fc.weight"].to_sparse()}, "1 tensors were sparse"),
    "averaged counters": (
        lambda state: {n: t.float() if "num_batches" in n else t for n, t in state.items()},
        "",
    ),
    "no counters": (lambda state: {n: t for n, t in state.items() if "num_batches" not in n}, ""),
}


@pytest.mark.parametrize("form", FORMS)
def test_weights_are_found_as_people_save_them(form: str, tmp_path: Path) -> None:
    wrap, sentence = FORMS[form]
    state = trained().state_dict()
    model, told = load(save_torch(wrap(state), tmp_path / "a.pth"))
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, state[name]) or "num_batches_tracked" in name, name
    text = " ".join(told)
    assert (text == "") if not sentence else re.search(sentence, text), text


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_converted(dtype: torch.dtype, tmp_path: Path) -> None:
    half = trained().to(dtype)
    model, told = load(save_torch({"state_dict": half.state_dict()}, tmp_path / "a.ckpt"))
    assert_same(model, half.float().state_dict())
    assert any(str(dtype).removeprefix("torch.") in sentence and "were converted" in sentence for sentence in told)


@pytest.mark.parametrize("name", ["a.pt", "a.bin", "a.ckpt", "a.pth.tar", "a.pth"])
def test_every_usual_suffix_is_read(name: str, tmp_path: Path) -> None:
    state = trained().state_dict()
    assert_same(load(save_torch(state, tmp_path / name))[0], state)


def test_prefixes_are_found_in_safetensors(tmp_path: Path) -> None:
    state = trained().state_dict()
    save_file(prefixed(state, "model."), tmp_path / "a.safetensors")
    model, told = load(str(tmp_path / "a.safetensors"))
    assert_same(model, state)
    assert told


def test_an_averaged_model_of_torch_is_read(tmp_path: Path) -> None:
    averaged = AveragedModel(trained())
    model, _ = load(save_torch(averaged.state_dict(), tmp_path / "a.pth"))
    assert_same(model, trained().state_dict())


def changed(**tensors: Tensor) -> State:
    return {**trained().state_dict(), **{name.replace("__", "."): tensor for name, tensor in tensors.items()}}


def quantized(shape: torch.Size) -> Tensor:
    return torch.quantize_per_tensor(torch.zeros(shape), 0.1, 0, torch.qint8)


SHAPE = trained().state_dict()["fc.weight"].shape


@pytest.mark.parametrize(
    ("tensor", "message"),
    [
        (
            torch.zeros(SHAPE, dtype=torch.int8),
            r"'fc\.weight' holds whole numbers \(int8\); .* name those that it was made",
        ),
        (torch.zeros(SHAPE, dtype=torch.bool), r"'fc\.weight' holds whole numbers \(bool\)"),
        (torch.zeros(SHAPE, dtype=torch.complex64), r"'fc\.weight' is complex"),
        (quantized(SHAPE), r"'fc\.weight' is quantized \(qint8\)"),
        (torch.full(SHAPE, float("nan")), r"'fc\.weight' has NaN or infinity in 80 of 80 values"),
        (torch.full(SHAPE, 1e300, dtype=torch.float64), r"'fc\.weight' has NaN or infinity"),
        (torch.zeros(SHAPE, device="meta"), r"'fc\.weight' has no values"),
        (torch.zeros(1).expand(10**6, 10**6), r"fc\.weight \(file \[1000000, 1000000\], network \[5, 16\]\)"),
    ],
)
def test_tensors_that_no_float_network_starts_from_are_refused(tensor: Tensor, message: str, tmp_path: Path) -> None:
    path = save_torch(changed(fc__weight=tensor), tmp_path / "a.pth")
    model = network(2)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(CheckpointError, match=message) as caught:
        load_initial_weights(model, path, name="resnet8")
    assert len(str(caught.value)) < 1000
    assert_same(model, before)


def test_tensors_of_another_network_are_still_refused(tmp_path: Path) -> None:
    deeper = build_model("resnet14", {"in_channels": 3, "num_classes": 5, "width": 4}).state_dict()
    path = save_torch({"state_dict": prefixed(deeper, "module.")}, tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match=r"layer1\.1\.bn1\.bias \(file \[4\], network none\)"):
        load_initial_weights(network(), path, name="resnet8")
    path = save_torch({"model": {"weight": torch.zeros(1)}, "epoch": 3}, tmp_path / "b.pth")
    with pytest.raises(CheckpointError, match=r"do not fit the network: .*\(file none, network"):
        load_initial_weights(network(), path, name="resnet8")


class Wrapper(nn.Module):
    """A network saved as a whole: reading it would run this class."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(2, 2)


def test_a_whole_network_is_not_read_and_its_class_named(tmp_path: Path) -> None:
    path = save_torch(Wrapper(), tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match=r"an object of .*Wrapper\); save the weights alone, .*state_dict\(\)"):
        load_initial_weights(network(), path, name="resnet8")


def test_a_torchscript_archive_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    torch.jit.save(torch.jit.trace(nn.Linear(2, 2), torch.zeros(1, 2)), path)
    with pytest.raises(CheckpointError, match=r"are a TorchScript archive, which is code, .*torch\.jit\.load"):
        load_initial_weights(network(), str(path), name="resnet8")


def test_an_archive_that_grows_is_not_read(tmp_path: Path) -> None:
    path = Path(save_torch({"weight": torch.zeros(10**7)}, tmp_path / "a.pth"))
    packed = tmp_path / "b.pth"
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as target:
        for entry in source.namelist():
            target.writestr(entry, source.read(entry))
    assert packed.stat().st_size < path.stat().st_size / 10
    with pytest.raises(CheckpointError, match=r"bytes that would become .*; torch\.save does not"):
        load_initial_weights(network(), str(packed), name="resnet8")


def test_whatever_a_file_holds_the_sentence_is_short(rng: np.random.Generator) -> None:
    expected = network().state_dict()
    names = ["x" * 10**5, "\x1b[31m", "", "fc.weight", "a\nb"]
    for _ in range(200):
        content: dict[Any, Any] = {}
        for _ in range(int(rng.integers(1, 6))):
            name = names[int(rng.integers(len(names)))]
            content[name] = [3, None, [], {}, "x" * 10**5, torch.zeros(2), {name: torch.zeros(1)}, {3: 4}][
                int(rng.integers(8))
            ]
        try:
            found = find_weights(content, expected, "a.pth")
            text = " ".join(found.notes)
        except CheckpointError as error:
            text = str(error)
        assert len(text) < 1000
        assert "\x1b" not in text
        assert "\n" not in text
