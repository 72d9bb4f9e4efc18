"""Fine-tune a network of torchvision on a folder of images, and take it to 4 bits, in plain PyTorch.

    python examples/finetune_torchvision.py FOLDER --network mobilenet_v3_small

FOLDER/train/CLASS and FOLDER/test/CLASS hold pictures of any size. The network starts from torchvision's weights, its
last layer anew for these classes; the float network, the quantized one and the frozen one are trained by the same
ordinary loop, on batches of a `DataLoader`. `MODEL.onnx` runs in ONNX Runtime, and every logit of the test images is
compared with the integer reference and with PyTorch.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torchvision
from torch import nn
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

from qil_deploy import Preprocessing, QuantConfig, calibrate, freeze, prepare
from qil_deploy.datasets import ImageSet
from qil_deploy.export import export_onnx
from qil_deploy.runtime_tests import VerifyReport, verify
from qil_deploy.training import recipe_optimizers, weight_parameters


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Of a run.

    Attributes:
        epochs, quantized_epochs, frozen_epochs: of the float network, of the quantized one, and of the frozen one.
        batch: images per step.
        workers: processes that decode pictures.
    """

    epochs: int = 5
    quantized_epochs: int = 5
    frozen_epochs: int = 1
    batch: int = 32
    workers: int = 4


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """Accuracies on the test images in [0, 1], and what `verify` found."""

    float_accuracy: float
    frozen_accuracy: float
    report: VerifyReport


def with_classes(network: nn.Module, classes: int) -> nn.Module:
    """Replace the last linear layer by one for so many classes, in place."""
    name, last = [(name, module) for name, module in network.named_modules() if isinstance(module, nn.Linear)][-1]
    network.set_submodule(name, nn.Linear(last.in_features, classes))
    return network


def transforms(pixels: Preprocessing) -> tuple[nn.Module, nn.Module]:
    """Return what makes a picture a uint8 image for testing, and what makes it one for training, cut out at random."""
    size = (pixels.height, pixels.width)
    to_test = v2.Compose([v2.Resize(pixels.resize or size), v2.CenterCrop(size), v2.PILToTensor()])
    to_train = v2.Compose([v2.RandomResizedCrop(size, scale=(0.3, 1)), v2.RandomHorizontalFlip(), v2.PILToTensor()])
    return to_test, to_train


def train(
    model: nn.Module,
    optimizers: Sequence[torch.optim.Optimizer],
    loader: DataLoader[tuple[torch.Tensor, torch.Tensor]],
    epochs: int,
    *,
    gradient_norm: float | None = None,
) -> None:
    """Train any model on uint8 images [N, C, H, W]: the rates fall to zero along a cosine."""
    steps = max(1, epochs * len(loader))
    schedules = [torch.optim.lr_scheduler.CosineAnnealingLR(each, steps) for each in optimizers]
    model.train()
    for epoch in range(epochs):
        losses = []
        for x, labels in loader:
            loss = nn.functional.cross_entropy(model(x), labels)
            model.zero_grad()
            loss.backward()
            if gradient_norm is not None:
                nn.utils.clip_grad_norm_(weight_parameters(model), gradient_norm)
            for optimizer, schedule in zip(optimizers, schedules, strict=True):
                optimizer.step()
                schedule.step()
            losses.append(loss.item())
        print(f"  epoch {epoch + 1}: loss {np.mean(losses):.4f}")
    model.eval()


@torch.no_grad()
def logits(model: nn.Module, images: np.ndarray, pixels: Preprocessing) -> np.ndarray:
    """Return the logits of uint8 images [N, C, H, W]."""
    batches = (images[start : start + 32] for start in range(0, len(images), 32))
    return torch.cat([model(torch.from_numpy(pixels.normalize(batch))) for batch in batches]).numpy()


def run(network: nn.Module, pixels: Preprocessing, folder: Path, path: Path, settings: Settings) -> Outcome:
    """Fine-tune, quantize, freeze, export to `path`, and verify."""
    torch.manual_seed(0)
    to_test, to_train = transforms(pixels)
    normalize = v2.Lambda(lambda image: torch.from_numpy(pixels.normalize(image.numpy()[None]))[0])
    shown = ImageFolder(folder / "train", v2.Compose([to_train, normalize]))
    tested = ImageFolder(folder / "test", to_test)
    loader = DataLoader(shown, settings.batch, shuffle=True, drop_last=True, num_workers=settings.workers)
    images = np.stack([image.numpy() for image, _ in tested])
    labels = np.array(tested.targets)

    network = with_classes(network, len(shown.classes))
    print("float")
    train(network, [torch.optim.SGD(network.parameters(), lr=0.02, momentum=0.9)], loader, settings.epochs)
    in_float = logits(network, images, pixels)

    example = next(iter(loader))[0]
    model = prepare(network, QuantConfig(weight_bits=4, activation_bits=4), example[:1], input_grid=pixels)
    calibrate(model, [x for _, (x, _) in zip(range(8), loader, strict=False)])
    print("4-bit weights, 4-bit activations")
    train(model, recipe_optimizers(model, learning_rate=0.01), loader, settings.quantized_epochs)
    frozen = freeze(model)
    print("frozen")
    slow = recipe_optimizers(frozen, learning_rate=1e-3, interval_learning_rate=2e-4)
    train(frozen, slow, loader, settings.frozen_epochs, gradient_norm=1.0)

    export_onnx(frozen, path, preprocessing=pixels, class_names=shown.classes)
    test_set = ImageSet(images=images, labels=labels, class_names=tuple(shown.classes))
    report = verify(path, test_set.batches(32), others={"frozen PyTorch": lambda u: logits(frozen, u, pixels)})
    return Outcome(
        float_accuracy=float((in_float.argmax(1) == labels).mean()),
        frozen_accuracy=report.reference_accuracy or 0.0,
        report=report,
    )


def main() -> None:
    """Read the command line, run, and print what came of it."""
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("folder", type=Path, metavar="FOLDER")
    parser.add_argument("--network", default="mobilenet_v3_small", help="of torchvision.models [mobilenet_v3_small]")
    given = parser.parse_args()
    weights = torchvision.models.get_model_weights(given.network).DEFAULT
    network = torchvision.models.get_model(given.network, weights=weights)
    pixels = Preprocessing.from_torchvision(weights)
    path = Path(f"{given.network}.onnx")
    outcome = run(network, pixels, given.folder, path, Settings())
    print(f"accuracy: float {100 * outcome.float_accuracy:.2f} %, 4/4 bits {100 * outcome.frozen_accuracy:.2f} %")
    for backend in outcome.report.backends:
        print(f"{backend.name}: {backend.differing_logits:,} logits differ from the integer reference")


if __name__ == "__main__":
    main()
