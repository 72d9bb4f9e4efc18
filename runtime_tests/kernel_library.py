"""The library of kernels for low-bit layers: find it, register it in a session, query its kernels and choices.

It is a distribution of its own, qil-deploy-kernels, and nothing here needs it: without the library ONNX Runtime runs
the function that the file contains. When it is registered, the library chooses for each operator (`TernaryConv`,
say) a set of kernels for the processor, or none; the environment variable `QIL_DEPLOY_KERNELS` forces one.
"""

from __future__ import annotations

import ctypes
import importlib
import os
import threading
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import onnxruntime

from qil_deploy.errors import ConfigError
from qil_deploy.onnx_io import KERNEL_OPERATORS, RESIDUAL_ADD, OnnxFile
from qil_deploy.untrusted_text import excerpt

INSTALLED: Final = "installed"
SET_VARIABLE: Final = "QIL_DEPLOY_KERNELS"
_PACKAGE = "qil_deploy_kernels"
_CHOSEN = "chosen"
_USELESS = ("the processor lacks ", "has no kernels")
_NONE = "none "  # what a choice of no set begins with
_FOR_TESTS = "scalar"
_registering = threading.Lock()  # the library reads the variable while it is registered


@dataclass(frozen=True, kw_only=True)
class KernelLibrary:
    """A library of kernels, and the set to use.

    Attributes:
        path: the shared library.
        kernel_set: the set that is forced; '' leaves the choice to the environment variable, or else to the library.
    """

    path: Path
    kernel_set: str = ""

    def register(self, options: onnxruntime.SessionOptions) -> None:
        """Let sessions with these options use the kernels.

        Raises:
            ConfigError: ONNX Runtime cannot load the library, or the library has no such set for this processor.
        """
        with _registering, _forced(self.kernel_set):
            try:
                options.register_custom_ops_library(str(self.path))
            except Exception as error:  # ONNX Runtime's errors share no base class below Exception
                reason = excerpt(" ".join(str(error).split()).rstrip("."), 400)
                raise ConfigError(
                    f"ONNX Runtime {onnxruntime.__version__} cannot use the kernel library {self.path}: {reason}. "
                    f"Install qil-deploy-kernels anew, or go without; {SET_VARIABLE} says which set is forced."
                ) from error

    def explain(self) -> tuple[str, ...]:
        """Return one line for each set and operator, with the reason if it loses, and one for each choice."""
        with _registering, _forced(self.kernel_set):
            return tuple(self._text("qil_deploy_kernels_explain").splitlines())

    def layers(self) -> tuple[str, ...]:
        """Return one line for each node computed by a kernel in live sessions: which kernel, and why no other."""
        return tuple(self._text("qil_deploy_kernels_layers").splitlines())

    def runnable_sets(self, operators: Collection[str] = KERNEL_OPERATORS) -> tuple[str, ...]:
        """Return the sets that this processor can run and that have kernels for one of these operators.

        Not that for tests; only the one that is forced, if one is.
        """
        if not operators:
            return ()
        forced = self.kernel_set or os.environ.get(SET_VARIABLE, "")
        if forced:
            return (forced,)
        said = [(name, reason) for name, operator, reason in self._explained() if operator in operators]
        found = [name for name, reason in said if not reason.startswith(_USELESS)]
        return tuple(name for name in dict.fromkeys(found) if name not in (_CHOSEN, _FOR_TESTS))

    def choices_for(self, operators: Collection[str]) -> dict[str, str]:
        """Return the set chosen for each operator on this processor, with the reason; or 'none', with the reason."""
        said = {operator: choice for name, operator, choice in self._explained() if name == _CHOSEN}
        return {each: said[each] for each in sorted(operators) if each in said}

    def unused_for(self, operators: Collection[str]) -> dict[str, str]:
        """Return the operators without a registered kernel on this processor, with the reasons."""
        return {each: choice for each, choice in self.choices_for(operators).items() if choice.startswith(_NONE)}

    def _explained(self) -> list[tuple[str, str, str]]:
        """Parse the lines of `explain` to (set or 'chosen', operator, reason or choice)."""
        lines = [line.partition(": ") for line in self.explain()]
        labels = [label.partition(" for ") for label, _, _ in lines]
        return [(name, operator, said) for (name, _, operator), (_, _, said) in zip(labels, lines, strict=True)]

    def _text(self, function: str) -> str:
        try:
            call = getattr(ctypes.CDLL(str(self.path)), function)
        except (OSError, AttributeError) as error:
            raise ConfigError(
                f"{self.path} is no kernel library of qil-deploy: {excerpt(str(error), 300)}. Install "
                "qil-deploy-kernels anew, or name its library."
            ) from error
        call.restype = ctypes.c_char_p
        text: bytes = call()
        return text.decode(errors="replace")


def find_kernel_library(where: str) -> KernelLibrary:
    """Return the library named on a command line.

    Args:
        where: `INSTALLED`, for that of the package qil-deploy-kernels, or the path of a shared library.

    Raises:
        ConfigError: the package is not installed or has no library, or there is no such file.
    """
    if where != INSTALLED:
        if not Path(where).is_file():
            raise ConfigError(
                f"there is no kernel library {where}; give the path of one, or {INSTALLED!r} for that of the package "
                "qil-deploy-kernels."
            )
        return KernelLibrary(path=Path(where).resolve())
    try:
        path = importlib.import_module(_PACKAGE).library_path()
    except ModuleNotFoundError as error:
        raise ConfigError(
            "the package qil-deploy-kernels is not installed. Install it (`make kernels` in a clone, or its wheel), "
            "name a library instead, or leave --kernels out: the file runs without, at ONNX Runtime's own speed."
        ) from error
    except FileNotFoundError as error:
        raise ConfigError(f"the package qil-deploy-kernels has no library: {error}") from error
    return KernelLibrary(path=Path(path))


def operators_in(graph: OnnxFile) -> set[str]:
    """Return the library's operators that a file contains."""
    return {node.op_type for node in graph.nodes if node.op_type in KERNEL_OPERATORS}


def why_unused(graph: OnnxFile, choices: Mapping[str, str]) -> list[str]:
    """Explain, in a sentence each, why kernels compute nothing of a file.

    Args:
        graph: the file.
        choices: of the library, by operator (`choices_for`), on the processor in question.
    """
    # On some processors only sums are as fast without kernels; every file that has them has a TernaryConv, too.
    operators = operators_in(graph) - {RESIDUAL_ADD}
    if not operators:
        return [
            f"{graph.path} has no convolutions for kernels, so none of the library was used; export it with --kernels."
        ]
    return [
        f"The library used none of its kernels for {operator}, chosen: {choice}; {SET_VARIABLE} can force one."
        for operator, choice in choices.items()
        if operator in operators and choice.startswith(_NONE)
    ]


@contextmanager
def _forced(kernel_set: str) -> Iterator[None]:
    """Pass a forced set, if any, to the library in the environment."""
    before = os.environ.get(SET_VARIABLE)
    if kernel_set:
        os.environ[SET_VARIABLE] = kernel_set
    try:
        yield
    finally:
        if kernel_set and before is None:
            del os.environ[SET_VARIABLE]
        elif kernel_set and before is not None:
            os.environ[SET_VARIABLE] = before
