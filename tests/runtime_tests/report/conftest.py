"""Reports in the commands' form, of a model that need not exist, with any planted difference."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from qil_deploy.reports import write_report
from qil_deploy.runtime_tests.bench.report import BenchReport, Failure, ModelCost, OperatorTime, Profile
from qil_deploy.runtime_tests.bench.statistics import Samples, summarize, summarize_control
from qil_deploy.runtime_tests.environment import Environment
from qil_deploy.runtime_tests.instructions import InstructionsReport, ModelInstructions
from qil_deploy.runtime_tests.logit_counts import BackendResult
from qil_deploy.runtime_tests.machine import Activity, Cache, Machine
from qil_deploy.runtime_tests.reports import ModelFile
from qil_deploy.runtime_tests.targets.report import (
    DeviceEnvironment,
    DeviceReport,
    LevelResult,
    TargetResult,
    TargetsReport,
    TensorResult,
)
from qil_deploy.runtime_tests.verify import VerifyReport

Write = Callable[..., Path]

MACHINE = Environment(onnxruntime="1.30.0", numpy="2.0.0", python="3.12.0", machine="x86_64", cpu="Fast 9000", cpus=2)


def model(name: str = "net.onnx", digest: str = "a", size: int = 1000) -> ModelFile:
    """Return a file that does not exist."""
    return ModelFile(path=f"models/{name}", bytes=size, sha256=digest * 64)


def backend(name: str, *, differing: int = 0, must_equal: bool = True, accuracy: float = 0.9) -> BackendResult:
    return BackendResult(
        name=name,
        must_equal=must_equal,
        accuracy=accuracy,
        differing_logits=differing,
        changed_predictions=min(differing, 3),
        largest_difference=float(differing > 0),
        not_finite=0,
    )


def verified(file: ModelFile, *backends: BackendResult, images: int = 50) -> VerifyReport:
    backends = backends or (backend("ONNX Runtime (disabled)"), backend("ONNX Runtime (all)"))
    wrong = any(each.must_equal and each.differing_logits for each in backends)
    return VerifyReport(
        schema=VerifyReport.SCHEMA,
        model=file,
        format="qlinear",
        input="uint8",
        images=images,
        classes=10,
        batch_size=50,
        threads=1,
        reference="integer reference",
        reference_accuracy=0.9,
        exact=not wrong,
        backends=backends,
        comparisons=(),
        warnings=(),
        environment=MACHINE,
    )


def device(file: ModelFile, *, differing: int = 0, digest: str | None = None, compared: bool = True) -> DeviceReport:
    """Return a device's report: 10 logits and 300 codes of each of two images, at two levels."""

    def tensor(name: str, elements: int, count: int) -> TensorResult:
        return TensorResult(
            tensor=name,
            dtype="uint8",
            shape=(2, elements // 2),
            sha256=("1" if count else "0") * 64,
            elements=elements,
            differing=count if compared else None,
            largest_step=(2.0 if count else 0.0) if compared else None,
            index=(1, 5) if count and compared else None,
        )

    levels = tuple(
        LevelResult(
            level=level,
            predictions=(1, 2),
            logits=tensor("logits", 20, 0),
            tensors=(tensor("conv1", 600, differing if level == "all" else 0),),
        )
        for level in ("disabled", "all")
    )
    return DeviceReport(
        schema=DeviceReport.SCHEMA,
        model=Path(file.path).name,
        sha256=digest or file.sha256,
        images=2,
        compared=compared,
        threads=1,
        batch=1,
        levels=levels,
        latency=None,
        environment=DeviceEnvironment(
            onnxruntime="1.24.1",
            numpy=None,
            python=None,
            browser="Browser/1 <telephone>",
            machine="aarch64",
            cpu="Phone",
            cpus=8,
            features=("ASIMD",),
        ),
    )


def ran(
    target: str, codes: DeviceReport | None, *, skipped: str | None = None, failed: str | None = None
) -> TargetResult:
    return TargetResult(target=target, skipped=skipped, failed=failed, codes=codes, logits=None)


def on_targets(file: ModelFile, *targets: TargetResult, exact: bool | None = True) -> TargetsReport:
    return TargetsReport(schema=TargetsReport.SCHEMA, model=file, exact=exact, targets=targets)


def timed(*files: ModelFile, factor: float = 1.0, spread: int = 1000, warnings: tuple[str, ...] = ()) -> BenchReport:
    """Return 20 rounds of models, each about 1 ms slower than the previous one."""
    runs = tuple(
        tuple(round(factor * (1_000_000 * (index + 1) + spread * (step % 7))) for step in range(20))
        for index in range(len(files))
    )
    samples = Samples(
        threads=1, models=tuple(ModelCost(model=file) for file in files), runs_ns=runs, control_ns=runs[0]
    )
    control = summarize_control(samples, seed=0)
    assert control is not None
    return BenchReport(
        schema=BenchReport.SCHEMA,
        batch=1,
        repeats=20,
        warmup=1,
        seed=0,
        latencies=summarize(samples, batch=1, seed=0),
        controls=(control,),
        models=samples.models,
        profiles=(
            Profile(
                model=files[0],
                threads=1,
                runs=20,
                operators=(OperatorTime(operator="QLinearConv", nodes=3, median_us=812.5, share=0.75),),
            ),
        ),
        warnings=warnings,
        environment=MACHINE,
        machine=Machine(
            flags=("avx2",),
            governor="performance",
            caches=(Cache(level=1, kind="Data", bytes=32768),),
            virtual=False,
            load_average=0.5,
        ),
        activity=Activity(cpus=(0,), others=0.25, steal=None),
    )


def counted(*files: ModelFile, target: str = "arm64:cortex-a53", factor: int = 1) -> InstructionsReport:
    """Return counts of two processes, each model one million above the previous one; a further model failed."""
    return InstructionsReport(
        schema=InstructionsReport.SCHEMA,
        target=target,
        batch=1,
        processes=2,
        repeats=1,
        warmup=1,
        seed=0,
        models=tuple(
            ModelInstructions(
                model=file,
                instructions=factor * 1_000_000 * (index + 1),
                spread=0.002,
                ratio=float(index + 1),
                counts=((factor * 1_000_000 * (index + 1),),) * 2,
            )
            for index, file in enumerate(files)
        ),
        failures=(Failure(path="models/broken.onnx", reason="it crashed."),),
        warnings=("counts of net.onnx differ by 2.0% from run to run; give it more --warmup.",),
        interrupted=False,
        environment=device(files[0]).environment,
    )


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Return a function that writes reports into a folder, each to its path, and returns the folder."""

    def write_all(
        name: str, *reports: VerifyReport | TargetsReport | DeviceReport | BenchReport | InstructionsReport
    ) -> Path:
        for index, report in enumerate(reports):
            write_report(tmp_path / name / f"{index}.json", report)
        return tmp_path / name

    return write_all
