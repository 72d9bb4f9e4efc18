"""Model the cycles of the inner loops for 64-bit ARM with llvm-mca: one step of a tile, compared with an 8-bit kernel.

    python benchmarks/kernel_cycles.py --page docs/kernels.md

The loops are extracted from the cross-compiler's output for `kernels/src/neon`. The model covers how many instructions
issue per cycle and the dependencies between them; every load hits the first-level cache. Requires g++-aarch64-linux-gnu
and llvm-mca.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from qil_deploy.errors import QilDeployError
from qil_deploy.files import write_text
from qil_deploy.terminal import Console
from tables import Rows, console_table, markdown_table
from write_tables import with_tables

SOURCES = Path(__file__).parents[1] / "kernels" / "src" / "neon"
COMPILE = ["aarch64-linux-gnu-g++", "-O3", "-std=c++17", "-fPIC", "-mtune=cortex-a72", "-S", "-o", "-"]  # as CMakeLists
PROCESSORS = ("cortex-a53", "cortex-a72")
ITERATIONS = 200


@dataclass(frozen=True, kw_only=True)
class Loop:
    """One step of a loop.

    Attributes:
        name: name in the table.
        products: number of products that it sums.
        body: instructions.
    """

    name: str
    products: int
    body: list[str]


def main(
    page: Annotated[Path | None, typer.Option(help="A page into which the table is also written.")] = None,
) -> None:
    """Model every loop on every processor."""
    rows = cycle_rows([eight_bits(), *our_loops()])
    if page is not None:
        write_text(page, with_tables(page.read_text(), {"kernel_cycles": f"\n{markdown_table(rows)}\n\n"}))
    Console().print(console_table("inner loops, llvm-mca", rows))


def eight_bits() -> Loop:
    """Return the multiplication of ONNX Runtime's 8-bit kernel without dot product: 4 pixels by 4 output channels."""
    body = [f"ldr q{i}, [x{i // 4}, #{i % 4 * 16}]" for i in range(8)]
    for w in range(4):
        body += [f"umull v{8 + x}.8h, v{x}.8b, v{4 + w}.8b" for x in range(4)]
        body += [f"umlal2 v{8 + x}.8h, v{x}.16b, v{4 + w}.16b" for x in range(4)]
        body += [f"uadalp v{16 + 4 * w + x}.4s, v{8 + x}.8h" for x in range(4)]
    return Loop(name="8 bits: umull, umlal2, uadalp", products=256, body=body)


def our_loops() -> Iterator[Loop]:
    """Compile the kernels and yield their loops for a whole tile, which has 16 registers of sums.

    Raises:
        QilDeployError: the compiler is missing or fails, or its output has different loops than expected.
    """
    narrow = loops(run([*COMPILE, str(SOURCES / "narrow.cpp")]))
    lookup = loops(run([*COMPILE, str(SOURCES / "lookup.cpp")]))
    for name, products, bodies, counts in (
        ("2/2: tbl, add", 768, lookup, {"tbl": 16}),
        ("3/3: mla in bytes", 256, narrow, {"mla": 16, "sadalp": 0}),
        ("4/4: mul, sadalp in 16 bits", 256, narrow, {"mul": 16, "sadalp": 16}),
    ):
        found = [body for body in bodies if all(times(body, what) == count for what, count in counts.items())]
        if len(found) != 1:
            raise QilDeployError(f"the compiler made {len(found)} loops with {counts}; one was expected.")
        yield Loop(name=name, products=products, body=found[0])


def loops(assembly: str) -> list[list[str]]:
    """Return the instructions of each innermost loop."""
    lines = [line.split("//")[0].strip() for line in assembly.splitlines()]
    lines = [line for line in lines if line and not re.match(r"#|\.(?!L\d+:)", line)]
    labels = {line[:-1]: number for number, line in enumerate(lines) if line.endswith(":")}
    found = []
    for number, line in enumerate(lines):
        branch = re.fullmatch(r"(?:b\.?\w\w|cbn?z|tbn?z)\s.*?(\.L\d+)", line)
        if branch and labels.get(branch[1], number) < number:
            body = lines[labels[branch[1]] + 1 : number]
            if not any(re.match(r"\.L|b\.|b[a-z]{0,2}\s|cbn?z|tbn?z|ret", other) for other in body):
                found.append([*body, line.replace(branch[1], "0")])
    return found


def times(body: list[str], instruction: str) -> int:
    """Return the number of occurrences of an instruction."""
    return sum(line.split()[0] == instruction for line in body)


def cycles(loop: Loop, processor: str) -> float:
    """Return the cycles of one step.

    Raises:
        QilDeployError: llvm-mca is missing or cannot read the loop.
    """
    options = ["-mtriple=aarch64", f"-mcpu={processor}", f"-iterations={ITERATIONS}"]
    modelled = re.search(r"Total Cycles:\s+(\d+)", run(["llvm-mca", *options], "\n".join(loop.body)))
    if modelled is None:
        raise QilDeployError(f"llvm-mca printed no number of cycles for {loop.name}.")
    return int(modelled[1]) / ITERATIONS


def cycle_rows(modelled: list[Loop]) -> Rows:
    """Return one row per loop: products and instructions of a step, and products per cycle on each processor."""
    headings = ("loop", "products", "instructions", *(f"{name}: products per cycle" for name in PROCESSORS))
    cells = []
    for loop in modelled:
        rates = [f"{loop.products / cycles(loop, name):.1f}" for name in PROCESSORS]
        cells.append([loop.name, str(loop.products), str(len(loop.body)), *rates])
    return Rows(headings=headings, cells=cells)


def run(command: list[str], text: str | None = None) -> str:
    """Return the output of a program.

    Raises:
        QilDeployError: it is missing or fails.
    """
    try:
        ended = subprocess.run(command, input=text, capture_output=True, text=True, check=True)  # noqa: S603 - our own command
    except FileNotFoundError as error:
        raise QilDeployError(f"{command[0]} is not on the PATH; install it.") from error
    except subprocess.CalledProcessError as error:
        raise QilDeployError(f"{command[0]} failed: {error.stderr.strip()[:500]}") from error
    return ended.stdout


if __name__ == "__main__":
    typer.run(main)
