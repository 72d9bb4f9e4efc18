"""Steps of `doctor` that run ONNX Runtime on a model, in a process of its own, which try_runtime.py starts and stops.

    python -P -m qil_deploy.runtime_tests.doctor.runtime_steps REQUEST.json

does the steps that the request names, one after the other, and writes STEP.json into the request's folder after each:
so its caller knows which one it did not survive.

    optimize    load the model, and write the graph that ONNX Runtime executes (`OPTIMIZED`); all others need it but one
    types       types and shapes of that graph's tensors
    load_plain  load the model without optimizations
    run_plain   run it once without optimizations
    run         run it once with them, and compare
    run_kernels run it once with them and with a library of kernels, and compare
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

import onnxruntime
from numpy.typing import NDArray

from qil_deploy.onnx_io import read_model, with_outputs, write_optimized_model
from qil_deploy.runtime_tests.kernel_library import KernelLibrary
from qil_deploy.runtime_tests.memory_limit import is_out_of_memory, limit_memory
from qil_deploy.runtime_tests.sessions import create_session

from .compare_levels import TensorDifference, differences, first_difference, run, write_fused
from .inputs import Inputs, UndrawnError, describe_inputs, drawn_inputs

OPTIMIZED: Final = "optimized.onnx"
FUSED: Final = "fused.onnx"
# ONNX Runtime's names of types that numpy names otherwise.
_TYPE_NAMES: Final = {"tensor(float)": "float32", "tensor(double)": "float64"}

Answer = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Request:
    """Steps to run, and their arguments.

    Attributes:
        model: path of the model.
        folder: where answers go.
        steps: names of what to do, in this order.
        memory: extra bytes that the process may take.
        seed: of the inputs.
        ranges: of float inputs.
        output_steps: between two codes, for float outputs made from codes.
        kernels: path of a library of kernels; empty for none.
    """

    model: str
    folder: str
    steps: list[str]
    memory: int
    seed: int
    ranges: dict[str, tuple[float, float]]
    output_steps: dict[str, float]
    kernels: str = ""


@dataclass
class _Session:
    """Results of steps for later ones."""

    request: Request
    inputs: Inputs | None = None
    plain: dict[str, NDArray[Any]] = field(default_factory=dict)

    @property
    def model(self) -> Path:
        return Path(self.request.model)

    @property
    def optimized(self) -> Path:
        return Path(self.request.folder) / OPTIMIZED


def main(arguments: Sequence[str]) -> int:
    """Try a model, as the main function of the process; return its exit code."""
    request = Request(**json.loads(Path(arguments[0]).read_text(encoding="utf-8")))
    limit_memory(request.memory)
    session = _Session(request)
    for step in request.steps:
        answer = _answer(_STEPS[step], session)
        (Path(request.folder) / f"{step}.json").write_text(json.dumps(answer, allow_nan=False), encoding="utf-8")
        if step == "optimize" and "error" in answer:
            break
    return 0


def _answer(step: Callable[[_Session], Answer], session: _Session) -> Answer:
    try:
        return step(session)
    except UndrawnError as error:
        return {"error": str(error), "how": "undrawn"}
    except Exception as error:  # noqa: BLE001 - ONNX Runtime's errors share no base class below Exception
        text = " ".join(str(error).split())
        is_memory = isinstance(error, MemoryError) or is_out_of_memory(text)
        return {"error": text, "how": "memory" if is_memory else "failed"}


def _optimize(session: _Session) -> Answer:
    write_optimized_model(session.model, session.optimized)
    return {}


def _types(session: _Session) -> Answer:
    """Return the types and shapes that ONNX Runtime infers for every tensor of the executed graph."""
    file = read_model(session.optimized, left_out=[])
    present = {info.name for info in file.outputs}
    wanted = [name for node in file.nodes for name in node.outputs if name and name not in present]
    content = with_outputs(session.optimized.read_bytes(), wanted)
    folder = session.model.parent
    tensors = create_session(session.optimized, level="disabled", content=content, folder=folder).get_outputs()
    types = {tensor.name: _type_name(tensor.type) for tensor in tensors}
    shapes = {tensor.name: list(tensor.shape) for tensor in tensors}
    types.update({info.name: info.dtype for info in file.inputs})
    shapes.update({info.name: list(info.shape) for info in file.inputs if info.shape is not None})
    return {"types": types, "shapes": shapes}


def _type_name(name: str) -> str:
    return _TYPE_NAMES.get(name, name.removeprefix("tensor(").removesuffix(")"))


def _load_plain(session: _Session) -> Answer:
    create_session(session.model, level="disabled")
    return {}


def _run_plain(session: _Session) -> Answer:
    runtime = create_session(session.model, level="disabled")
    session.inputs, session.plain = _first_that_runs(session, runtime)
    return {"inputs": describe_inputs(runtime, session.inputs)}


def _run(session: _Session) -> Answer:
    runtime = create_session(session.model)
    if session.inputs is None:
        inputs, _ = _first_that_runs(session, runtime)
        return {"inputs": describe_inputs(runtime, inputs)}
    optimized = run(runtime, session.inputs)
    del runtime
    found = differences(session.plain, optimized, session.request.output_steps)
    answer: Answer = {"outputs": [asdict(each) for each in found]}
    if not all(each.is_rounding for each in found):
        answer["random"] = _is_random(session)
        answer["first"] = _located(session)
    return answer


def _run_kernels(session: _Session) -> Answer:
    runtime = create_session(session.model, kernels=KernelLibrary(path=Path(session.request.kernels)))
    if session.inputs is None:
        _first_that_runs(session, runtime)
        return {}
    found = differences(session.plain, run(runtime, session.inputs), session.request.output_steps)
    return {"with_kernels": [asdict(each) for each in found]}


def _first_that_runs(
    session: _Session, runtime: onnxruntime.InferenceSession
) -> tuple[Inputs, dict[str, NDArray[Any]]]:
    """Return the first inputs that a session accepts, and its results; raises the error for the first inputs tried."""
    failures: list[Exception] = []
    for inputs in drawn_inputs(runtime, seed=session.request.seed, ranges=session.request.ranges):
        try:
            return inputs, run(runtime, inputs)
        except Exception as error:  # noqa: BLE001 - as above
            failures.append(error)
    raise failures[0]


def _is_random(session: _Session) -> bool:
    """Whether the model gives different results for the same inputs even without the optimizer."""
    again = run(create_session(session.model, level="disabled"), session.inputs or {})
    return not all(each.is_rounding for each in differences(session.plain, again, session.request.output_steps))


def _located(session: _Session) -> Answer | None:
    try:
        fused = Path(session.request.folder) / FUSED
        write_fused(session.model, fused)
        found: TensorDifference | None = first_difference(session.model, fused, session.inputs or {})
    except Exception:  # noqa: BLE001 - as above; a graph that does not run with all its tensors as outputs tells no place
        return None
    return asdict(found) if found is not None else None


_STEPS: Final[dict[str, Callable[[_Session], Answer]]] = {
    "optimize": _optimize,
    "types": _types,
    "load_plain": _load_plain,
    "run_plain": _run_plain,
    "run": _run,
    "run_kernels": _run_kernels,
}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
