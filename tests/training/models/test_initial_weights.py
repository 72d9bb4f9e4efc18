"""Initial weights: the weights of each source, the head that may differ, and files that are not read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torchvision import models

from qil_deploy.checkpoint import CheckpointInfo, save_checkpoint
from qil_deploy.config import QuantConfig
from qil_deploy.errors import CheckpointError, ConfigError
from qil_deploy.network.preparation import prepare
from qil_deploy.preprocessing import Preprocessing
from qil_deploy.training.models.build import FROM_TORCHVISION, build_model
from qil_deploy.training.models.initial_weights import load_initial_weights


def network(num_classes: int = 5, in_channels: int = 3, seed: int = 0, name: str = "resnet8") -> nn.Module:
    torch.manual_seed(seed)
    return build_model(name, {"in_channels": in_channels, "num_classes": num_classes})


def save_torch(content: object, path: Path) -> Path:
    torch.save(content, path)  # noqa: TID251 - what users have
    return path


def save_tensors(tensors: dict[str, Tensor], path: Path) -> Path:
    save_file(tensors, path)
    return path


PREPROCESSING = Preprocessing(channels=3, height=8, width=8, scale=0.01, zero_point=0)


def save_ours(model: nn.Module, path: Path, kind: Any = "float") -> Path:  # noqa: ANN401 - a Literal
    info = CheckpointInfo(
        kind=kind,
        model_name="resnet8",
        model_arguments={"in_channels": 3, "num_classes": 5},
        config=None if kind == "float" else QuantConfig(),
        preprocessing=PREPROCESSING,
        data="digits",
        class_names=tuple("abcde"),
        metrics={},
    )
    save_checkpoint(path, info, model)
    return path


def assert_same(model: nn.Module, other: nn.Module) -> None:
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, other.state_dict()[name]), name


@pytest.mark.parametrize("kind", ["ours", "safetensors", "pth", "pt"])
def test_files_give_all_their_tensors(kind: str, tmp_path: Path) -> None:
    trained, fresh = network(seed=1), network(seed=2)
    if kind == "ours":
        path = save_ours(trained, tmp_path / "float.safetensors")
    elif kind == "safetensors":
        path = save_tensors(trained.state_dict(), tmp_path / "a.safetensors")
    else:
        path = save_torch(trained.state_dict(), tmp_path / f"a.{kind}")
    assert load_initial_weights(fresh, str(path), name="resnet8") == ()
    assert_same(fresh, trained)


def test_a_head_for_other_classes_stays_fresh_when_that_is_wanted(tmp_path: Path) -> None:
    trained, fresh = network(10, seed=1), network(5, seed=2)
    path = str(save_torch(trained.state_dict(), tmp_path / "a.pth"))
    before = {name: tensor.clone() for name, tensor in fresh.state_dict().items()}
    with pytest.raises(
        CheckpointError,
        match=r"fc\.bias \(file \[10\], network \[5\]\), fc\.weight \(file .*they are the head; set reset_head",
    ):
        load_initial_weights(fresh, path, name="resnet8")
    assert all(torch.equal(tensor, before[name]) for name, tensor in fresh.state_dict().items())
    assert load_initial_weights(fresh, path, name="resnet8", reset_head=True) == ("fc.bias", "fc.weight")
    for name, tensor in fresh.state_dict().items():
        assert torch.equal(tensor, (before if name.startswith("fc.") else trained.state_dict())[name])


def test_a_head_that_fits_is_never_left_out(tmp_path: Path) -> None:
    trained, fresh = network(seed=1), network(seed=2)
    path = str(save_torch(trained.state_dict(), tmp_path / "a.pth"))
    assert load_initial_weights(fresh, path, name="resnet8", reset_head=True) == ()
    assert_same(fresh, trained)


def test_nothing_but_the_head_may_differ(tmp_path: Path) -> None:
    gray = str(save_torch(network(in_channels=1).state_dict(), tmp_path / "gray.pth"))
    with pytest.raises(
        CheckpointError, match=r"conv1\.weight \(file \[16, 1, 3, 3\], network \[16, 3, 3, 3\]\); choose"
    ):
        load_initial_weights(network(), gray, name="resnet8", reset_head=True)
    without = {name: tensor for name, tensor in network().state_dict().items() if not name.startswith("fc")}
    headless = str(save_torch(without, tmp_path / "headless.pth"))
    with pytest.raises(CheckpointError, match=r"fc\.weight \(file none, network \[5, 64\]\)"):
        load_initial_weights(network(), headless, name="resnet8", reset_head=True)
    deeper = str(save_torch(network(name="resnet14").state_dict(), tmp_path / "deeper.pth"))
    with pytest.raises(CheckpointError, match=r"network none\).* and \d+ more; choose weights of this network"):
        load_initial_weights(network(), deeper, name="resnet8")


def test_files_older_than_batchnorms_counter_are_read(tmp_path: Path) -> None:
    trained, fresh = network(seed=1), network(seed=2)
    old = {name: tensor for name, tensor in trained.state_dict().items() if "num_batches_tracked" not in name}
    assert load_initial_weights(fresh, str(save_torch(old, tmp_path / "old.pth")), name="resnet8") == ()
    assert_same(fresh, trained)


class Code:
    """A class that, when unpickled, writes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return (Path.touch, (self.path,))


def test_a_file_that_would_run_code_is_not_read(tmp_path: Path) -> None:
    trap = tmp_path / "ran"
    path = save_torch({"weight": torch.zeros(2), "x": Code(trap)}, tmp_path / "trap.pth")
    with pytest.raises(
        CheckpointError, match="hold more than tensors, which might run code, and are not read"
    ) as caught:
        load_initial_weights(network(), str(path), name="resnet8")
    assert "\n" not in str(caught.value)
    assert not trap.exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (torch.zeros(3), "hold a Tensor, not a state_dict; save that alone"),
        ({}, "hold nothing; save the state_dict alone"),
        ({"model": {"epochs": 9}, "epoch": 3}, r"hold model \(dict\), epoch \(int\), which are no tensors"),
    ],
)
def test_what_is_no_state_dict_is_refused(content: object, message: str, tmp_path: Path) -> None:
    path = save_torch(content, tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match=message):
        load_initial_weights(network(), str(path), name="resnet8")


@pytest.mark.parametrize("name", ["a.pth", "a.safetensors"])
def test_damaged_files_are_refused(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    tensors = network().state_dict()
    content = (save_torch(tensors, path) if name == "a.pth" else save_tensors(tensors, path)).read_bytes()
    for damaged in (b"", b"<html>", content[: len(content) // 2], content[:3] + b"\xff" + content[4:]):
        path.write_bytes(damaged)
        with pytest.raises(CheckpointError, match="are damaged"):
            load_initial_weights(network(), str(path), name="resnet8")


def test_files_that_are_something_else_are_refused(tmp_path: Path) -> None:
    prepared = prepare(network(), QuantConfig(), torch.zeros(1, 3, 8, 8), input_grid=PREPROCESSING)
    prepared.get_buffer("calibrated").fill_(True)
    quantized = save_ours(prepared, tmp_path / "w4a4.safetensors", "quantized")
    with pytest.raises(CheckpointError, match="is a quantized checkpoint; a float network starts from a float one"):
        load_initial_weights(network(), str(quantized), name="resnet8")
    with pytest.raises(CheckpointError, match=r"none\.pth do not exist; name 'torchvision' or a \.safetensors"):
        load_initial_weights(network(), str(tmp_path / "none.pth"), name="resnet8")
    (tmp_path / "a.onnx").touch()
    with pytest.raises(CheckpointError, match=r"a\.onnx must be a \.safetensors, \.pth or \.pt file"):
        load_initial_weights(network(), str(tmp_path / "a.onnx"), name="resnet8")


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder of downloaded weights, and no network."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    for variable in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(variable, "http://127.0.0.1:9")
    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    return folder


def as_published(name: str) -> dict[str, Tensor]:
    """Random tensors with the names in torchvision's file."""
    options = {"init_weights": False} if name == "googlenet" else {}
    model = getattr(models, name)(num_classes=1000, **options)
    if name != "densenet121":
        return dict(model.state_dict())
    # As in densenet121-a639ec97.pth, which is older than the names of today and than BatchNorm's counter.
    return {
        key.replace("norm1.", "norm.1.").replace("conv1.", "conv.1.").replace("norm2.", "norm.2.").replace(
            "conv2.", "conv.2."
        ): value
        for key, value in model.state_dict().items()
        if "num_batches_tracked" not in key
    }  # fmt: skip


@pytest.mark.parametrize("name", ["squeezenet1_1", "googlenet", "densenet121", "resnet18"])
def test_torchvisions_weights_are_taken_from_where_torch_keeps_them(name: str, hub: Path) -> None:
    published = as_published(name)
    save_torch(published, hub / Path(models.get_model_weights(name).DEFAULT.url).name)
    fresh = network(1000, name=name)
    assert load_initial_weights(fresh, "torchvision", name=name) == ()
    first = next(key for key in published if key.endswith("weight") and published[key].dim() == 4)
    assert torch.equal(fresh.state_dict()[first], published[first])
    left_out = load_initial_weights(network(7, name=name), "torchvision", name=name, reset_head=True)
    head = {"squeezenet1_1": "classifier.1", "densenet121": "classifier"}.get(name, "fc")
    assert left_out == (f"{head}.bias", f"{head}.weight")


@pytest.mark.usefixtures("hub")
def test_without_a_network_it_is_said_where_to_put_the_weights() -> None:
    with pytest.raises(
        ConfigError, match=r"'resnet18' could not be had .*put https://.*/resnet18-f37072fd\.pth into"
    ) as caught:
        load_initial_weights(network(1000, name="resnet18"), "torchvision", name="resnet18")
    assert "\n" not in str(caught.value)


def test_torchvision_has_no_weights_for_networks_of_others() -> None:
    with pytest.raises(
        ConfigError, match=r"no weights for the network 'resnet8'; it has some for resnet18, .*googlenet"
    ):
        load_initial_weights(network(), "torchvision", name="resnet8")
    for name in FROM_TORCHVISION:
        assert models.get_model_weights(name).DEFAULT.url.endswith(".pth")
