"""Tables of the kernels on emulated processors: loops found in assembly, and instructions beside the goals."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

import kernel_cycles
from kernel_cycles import cycle_rows, eight_bits, loops, our_loops, times
from kernel_instructions import GOALS, instruction_rows
from kernel_models import INT8
from qil_deploy.errors import QilDeployError
from qil_deploy.runtime_tests.instructions import InstructionsReport
from qil_deploy.runtime_tests.instructions.report import summarize

ASSEMBLY = """
f:
.LFB1:
    mov x1, 0 // a comment
.L3:
    add x3, x3, 1
    .p2align 3,,7
.L2:
    ldr q0, [x0]
#APP
// 25 "narrow.cpp" 1
    mla v1.16b, v0.16b, v2.16b
// 0 "" 2
#NO_APP
    cmp x1, x2
    bne .L2
    cbnz x3, .L3
    ret
"""


def test_innermost_loops_alone_are_found() -> None:
    (body,) = loops(ASSEMBLY)
    assert body == ["ldr q0, [x0]", "mla v1.16b, v0.16b, v2.16b", "cmp x1, x2", "bne 0"]
    assert times(body, "mla") == 1


@pytest.mark.skipif(
    shutil.which("aarch64-linux-gnu-g++") is None or shutil.which("llvm-mca") is None,
    reason="needs g++-aarch64-linux-gnu and llvm-mca",
)
def test_every_loop_of_the_kernels_is_modelled() -> None:
    rows = cycle_rows([eight_bits(), *our_loops()])
    assert [cells[1] for cells in rows.cells] == ["256", "768", "256", "256"]
    assert all(float(rate) > 0 for cells in rows.cells for rate in cells[3:])


def test_a_missing_compiler_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel_cycles, "COMPILE", ["no-such-compiler"])
    with pytest.raises(QilDeployError, match="no-such-compiler is not on the PATH; install it"):
        next(our_loops())


def test_instructions_stand_beside_int8_and_the_goals(tmp_path: Path) -> None:
    paths = [tmp_path / f"{name}.onnx" for name in (INT8, "w2a2", "w4a4")]
    for path in paths:
        path.write_bytes(b"model")
    counts = zip(paths, (((2_000_000,),), ((700_000,),), ((1_300_000,),)), strict=True)
    report = InstructionsReport(
        schema=InstructionsReport.SCHEMA,
        target="arm64:cortex-a53",
        batch=1,
        processes=2,
        repeats=1,
        warmup=1,
        seed=0,
        models=summarize(list(counts)),
        failures=(),
        warnings=(),
        interrupted=False,
        environment=None,
    )
    rows = instruction_rows({"cortex-a53": report}, GOALS["arm64"])
    assert rows.headings == ("model", "cortex-a53", "ratio", "goal")
    assert rows.cells == [
        [INT8, "2.0", "1.000", ""],
        ["w2a2", "0.7", "0.350", "0.5"],
        ["w3a3", "failed", "", "0.6"],
        ["w4a4", "1.3", "0.650", "0.8"],
    ]
