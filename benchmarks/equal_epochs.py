"""Compare ways to train low-bit networks at equal epochs on Fashion-MNIST, over several seeds.

    python benchmarks/equal_epochs.py --seeds 0,1,2 --page docs/accuracy.md            # ResNet-20, in runs/equal_epochs
    python benchmarks/equal_epochs.py --images 20000 --short 4 --seeds 0,1 --width 1    # runs/equal_epochs_short_20000
    python benchmarks/equal_epochs.py --network mobilenet_v2 --seeds 0 --epochs 5 --width 1    # in runs/depthwise

One float network is trained per seed for `--epochs`. Every row starts from it and trains for the same number of epochs
(with `--short`, for fewer): in float, or quantized by a method and its ingredients. The result of a quantized row is
the accuracy of the frozen network, in the exported integers, on all test images after the last epoch; nothing is
selected by it. If Brevitas is installed, there are also rows with its layers, measured as trained: they cannot be
frozen.

The rows of MobileNetV2, a network with depthwise convolutions, show the effect of controlling oscillating weights; all
of its quantized rows count these weights. It is trained on the first 10,000 training images, enlarged to 64x64.

On a CUDA device networks train side by side (`side_by_side`); minutes there are hours on a processor. Finished results
are written to `OUT/results.json` and not trained again. On a processor, interrupted networks continue after the last
whole epoch, with the same bits.
"""

from __future__ import annotations

import importlib.util
import json
import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import torch
import typer

from qil_deploy.files import ensure_writable, write_text
from qil_deploy.quantizers import compile_quantizers
from qil_deploy.terminal import Console
from qil_deploy.training.freed_memory import keep_freed_memory
from tables import Rows, console_table, markdown_table
from training_bench import BATCH, DEPTHWISE, RESNET20, Bench, train_float
from training_queue import Queue
from training_rows import BREVITAS, Result, Variant, label_of
from write_tables import with_tables

FLOAT = Variant(name="trained on in float")
FEW_STEPS = 1000  # of training; with fewer, averages over a thousand steps are meaningless
WIDTHS_WITHOUT_LOSS = 4  # bits: single ingredients make no difference there
KEPT = (FLOAT.name, "plain", "distillation", "together")  # rows whose checkpoints are kept, for the first seed


class Network(StrEnum):
    """Networks that can be trained."""

    RESNET20 = "resnet20"
    MOBILENET_V2 = "mobilenet_v2"


TASKS = {Network.RESNET20: RESNET20, Network.MOBILENET_V2: DEPTHWISE}


def main(  # noqa: PLR0913, PLR0917 - every argument is an option of its own
    out: Annotated[Path | None, typer.Option(help="Folder for results and checkpoints. [default: runs/TABLE]")] = None,
    network: Annotated[Network, typer.Option(help="Network to train; each has its own rows.")] = Network.RESNET20,
    images: Annotated[
        int | None, typer.Option(help="Number of training images, from the first on. [default: as in the table]")
    ] = None,
    seeds: Annotated[
        str, typer.Option(help="Seeds, separated by commas; single ingredients use the first only.")
    ] = "0,1,2",
    epochs: Annotated[
        int, typer.Option(help="Epochs of the float network, and of every row that starts from it.")
    ] = 12,
    short: Annotated[
        int | None, typer.Option(help="Epochs of every row, if fewer than those of the float network.")
    ] = None,
    only: Annotated[
        str, typer.Option(help="Rows, separated by commas: `plain`, `w2a2 plain`, `w2a2 qil plain`; all if empty.")
    ] = "",
    width: Annotated[int, typer.Option(help="Number of networks to train at a time.")] = 12,
    minutes: Annotated[float, typer.Option(help="Do not start anything that would end after this many minutes.")] = 1e6,
    page: Annotated[Path | None, typer.Option(help="A page into which the table is also written.")] = None,
    compile_: Annotated[bool, typer.Option("--compile", help="Fuse the quantizers with torch.compile.")] = False,
) -> None:
    """Train the missing rows, and write the table."""
    deadline = time.monotonic() + 60 * minutes
    console = Console()
    task = TASKS[network] if images is None else replace(TASKS[network], images=images)
    title = task.name + ("" if short is None else "_short") + ("" if images is None else f"_{images}")
    out = Path("runs") / title if out is None else out
    ensure_writable(out / "results.json")
    compile_quantizers(compile_)
    keep_freed_memory()
    torch.backends.cudnn.benchmark = True
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    bench = Bench.of(task, float_epochs=epochs, epochs=epochs if short is None else short, device=device)
    numbers = [int(part) for part in seeds.split(",")]
    depthwise = network is Network.MOBILENET_V2
    few_steps = bench.epochs * len(bench.train) < FEW_STEPS * BATCH
    results = read_results(out / "results.json")
    names = set(only.split(",")) if only else set()
    finished = {result.key for result in results}
    rows = [
        (counted_over_few_steps(variant) if few_steps else variant, seed)
        for variant, seed in (depthwise_table(numbers) if depthwise else table(numbers))
        if (not names or names & names_of(variant)) and variant.key(seed) not in finished
    ]
    teachers = train_float(bench, numbers, out, console.print) if rows else {}

    def done(result: Result) -> None:
        results.append(result)
        write_text(out / "results.json", json.dumps([asdict(each) for each in results], indent=1) + "\n")
        console.print(f"{label_of(result.key)}: {result.accuracy:.2f} %")

    def keep(variant: Variant, seed: int) -> Path | None:
        if seed != numbers[0] or variant.name not in KEPT or variant.method == BREVITAS:
            return None
        if not variant.bits:
            return out / "float_trained_on.safetensors"
        return out / f"{variant.method}_{variant.width}_{variant.name}.safetensors"

    Queue(
        bench=bench,
        teachers=teachers,
        out=out,
        waiting=rows,
        width=width,
        deadline=deadline,
        keep=keep,
        done=done,
        say=console.print,
    ).train()
    shown = table_rows(results, oscillation=depthwise)
    if page is not None:
        write_text(page, with_tables(page.read_text(), {title: f"\n{markdown_table(shown)}\n\n"}))
    console.print(console_table("Accuracy on Fashion-MNIST, in percent", shown))


def names_of(variant: Variant) -> set[str]:
    """Return the names by which `--only` can select a row."""
    name, width = variant.name, variant.width
    return {name, f"{width} {name}", f"{width} {variant.method} {name}"}


def table(seeds: Sequence[int]) -> list[tuple[Variant, int]]:
    """Return the rows in training order: the most important first."""
    first = seeds[0]
    every = [variant for bits in (2, 3, 4) for method in ("qil", "lsq") for variant in ways(bits, method)]
    plain = [variant for variant in every if variant.name == "plain" and variant.method == "qil"]
    most = plain + [variant for variant in every if variant.name == "together"]
    compared = [variant for variant in every if variant.name in ("plain", "distillation") and variant not in most]
    alone = [variant for variant in every if variant not in most + compared and variant.method == "qil"]
    rows = [(FLOAT, seed) for seed in seeds] + [(variant, seed) for seed in seeds for variant in most]
    rows += [(variant, first) for variant in compared]
    rows += [(variant, first) for variant in alone if variant.bits[-1] < WIDTHS_WITHOUT_LOSS]
    if importlib.util.find_spec(BREVITAS) is not None:
        rows += [(ways(bits, BREVITAS)[0], first) for bits in (2, 3, 4)]
    return rows + [(variant, seed) for seed in seeds[1:] for variant in compared]


def ways(bits: int, method: str) -> list[Variant]:
    """Return the rows of one width: plain, each ingredient alone, together."""
    plain = Variant(name="plain", bits=(bits,), method=method, rate={4: 0.05, 3: 0.05, 2: 0.1}[bits])
    # The teacher's part of the loss has several times the gradient of a cross-entropy: use a lower rate at few bits.
    taught = replace(plain, name="distillation", temperature=4.0, rate={4: 0.05, 3: 0.02, 2: 0.01}[bits])
    little = {4: 1e-4, 3: 5e-5, 2: 2.5e-5}[bits]
    together = replace(taught, name="together", scaling=0.2, decay=little)
    rows = [
        plain,
        taught,
        # Weights outside their interval can return, and at low rates few leave it (decision 0050).
        together if bits > 3 else replace(together, returning=True, interval_rate={3: 5e-4, 2: 2e-4}[bits]),
        replace(plain, name="scaled gradient", scaling=0.2),
        replace(plain, name="gradient outside of intervals", returning=True),
        replace(plain, name="less weight decay", decay=little),
        replace(plain, name="oscillating weights frozen", oscillation="freeze"),
        replace(plain, name="oscillation dampened", oscillation="dampen"),
    ]
    if method == "qil":
        rows += [replace(plain, name="gamma", gamma=True), replace(plain, name="fixed intervals", interval_rate=0.0)]
    if bits == 2:
        rows.append(replace(plain, name="progressive", bits=(5, 4, 3, 2), shares=(0.1, 0.15, 0.25, 0.5)))
    return rows


def depthwise_table(seeds: Sequence[int]) -> list[tuple[Variant, int]]:
    """Return the rows of a depthwise network in training order: the most important first."""
    three, four = depthwise_ways(3), depthwise_ways(4)
    ordered = [FLOAT, *three[:3], *four[:3], *three[3:], *four[3:]]
    return [(variant, seed) for seed in seeds for variant in ordered]


def depthwise_ways(bits: int) -> list[Variant]:
    """Return the rows of one width: plain, with oscillating weights frozen or dampened, and the same for `together`."""
    found = {variant.name: variant for variant in ways(bits, "qil")}
    rows = []
    for name in ("plain", "together"):
        counted = replace(found[name], oscillation="count")
        rows += [
            counted,
            replace(counted, name=f"{name} with oscillating weights frozen", oscillation="freeze"),
            replace(counted, name=f"{name} with oscillation dampened", oscillation="dampen"),
        ]
    return rows


def counted_over_few_steps(variant: Variant) -> Variant:
    """Return a row that averages oscillation over a hundred steps and controls it from three reversals in these on."""
    return replace(variant, oscillation_momentum=0.01, oscillation_threshold=(0.1, 0.03))


def read_results(path: Path) -> list[Result]:
    """Return the results that earlier calls have finished."""
    if not path.is_file():
        return []
    return [Result(**{**entry, "losses": tuple(entry["losses"])}) for entry in json.loads(path.read_text())]


def table_rows(results: Sequence[Result], *, oscillation: bool = False) -> Rows:
    """Return one row per width, method and way: mean, spread, and the mean difference from float of the same seed.

    With `oscillation`, the row also has the mean shares of oscillating and of frozen weights, if they were counted.
    """
    floats = {result.seed: result.accuracy for result in results if result.width == "float"}
    groups: dict[tuple[str, str, str], list[Result]] = {}
    for result in results:
        groups.setdefault((result.width, result.method, result.way), []).append(result)
    cells = []
    for (width, method, way), members in sorted(groups.items(), key=lambda item: item[0][0]):
        found = [member.accuracy if member.frozen is None else member.frozen for member in members]
        differences = [
            value - floats[member.seed] for value, member in zip(found, members, strict=True) if member.seed in floats
        ]
        cells.append(
            [
                width,
                method,
                way,
                str(len(members)),
                f"{statistics.fmean(found):.2f}",
                f"{min(found):.2f} to {max(found):.2f}" if len(found) > 1 else "",
                f"{statistics.fmean(differences):+.2f}" if differences and width != "float" else "",
            ]
        )
        if oscillation:
            cells[-1] += [
                mean_percent([getattr(member, name) for member in members]) for name in ("oscillating", "held")
            ]
    headings = ("bits", "method", "training", "seeds", "mean", "spread", "to float")
    return Rows(headings=(*headings, "oscillating", "frozen") if oscillation else headings, cells=cells)


def mean_percent(shares: Sequence[float | None]) -> str:
    """Return the mean of shares in percent, or an empty text if none was counted."""
    counted = [share for share in shares if share is not None]
    return f"{100 * statistics.fmean(counted):.1f} %" if counted else ""


if __name__ == "__main__":
    typer.run(main)
