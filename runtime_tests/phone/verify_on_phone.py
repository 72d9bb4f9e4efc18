"""Serve the page to a phone, or any other device with a browser, and wait for its result."""

from __future__ import annotations

import socket
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from qil_deploy.errors import ConfigError, DataError, TargetError
from qil_deploy.runtime_tests.reports import ModelFile
from qil_deploy.runtime_tests.targets.options import RunOptions
from qil_deploy.runtime_tests.targets.report import DeviceReport, TargetResult, TargetsReport

from .server import PageServer
from .verification import prepare_verification
from .wait_for_result import Patience, Progress, wait_for_result
from .web_runtime import runtime_files

NAME: Final = "phone"
LOOPBACK: Final = "127.0.0.1"
# Reserved for documentation (RFC 5737): nothing is sent there, but the system says which of its addresses it would use.
_ELSEWHERE = ("192.0.2.1", 9)


@dataclass(frozen=True, kw_only=True)
class Address:
    """Address of the page.

    Attributes:
        host: address to listen on.
        name: this machine's address, as the phone has to call it.
        port: 0 for any that is free.
    """

    host: str = LOOPBACK
    name: str = LOOPBACK
    port: int = 0


def choose_address(*, host: str | None, lan: bool, port: int) -> Address:
    """Return the address to serve at: the loopback address unless another is requested.

    Args:
        host: address to listen on, or None.
        lan: whether to listen on this machine's address in its network.
        port: 0 for any that is free.

    Raises:
        ConfigError: both are asked for, or there is no such port.
        TargetError: this machine is in no network.
    """
    if host is not None and lan:
        raise ConfigError("--lan finds the --host to serve on; give one of them.")
    if not 0 <= port < 2**16:
        raise ConfigError(f"--port is {port}; ports go from 0 (any that is free) to {2**16 - 1}.")
    if host is None and not lan:
        return Address(port=port)
    try:
        (host or "").encode("idna")
    except UnicodeError as error:
        raise ConfigError(f"--host is {host!r}, which is neither an address nor a host name.") from error
    if host is not None and host != "0.0.0.0":  # noqa: S104 - compared with, and only used where the user names it
        return Address(host=host, name=host, port=port)
    name = network_address()
    return Address(host=host or name, name=name, port=port)


def network_address() -> str:
    """Return this machine's address in its network.

    Raises:
        TargetError: it is in none.
    """
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(_ELSEWHERE)
            return str(probe.getsockname()[0])
        except OSError as error:
            raise TargetError(
                f"this machine seems to be in no network ({error.strerror}); name its address with --host."
            ) from error


def verify_on_phone(
    model: Path,
    data: Path,
    options: RunOptions,
    address: Address,
    *,
    announce: Callable[[str], None],
    progress: Progress | None = None,
    stopped: Callable[[], bool] = lambda: False,
) -> TargetsReport:
    """Serve the page until a phone has verified the model.

    Args:
        model: the ONNX file.
        data: its golden vectors.
        options: how to run it; threads are those requested, but a browser may allow only one.
        address: where to serve.
        announce: called with the page's address once it can be opened.
        progress: called with each sign of progress.
        stopped: whether to wait no longer.

    Raises:
        KeyboardInterrupt: `stopped` says so.
        TargetError: the runtime is not set up, the address cannot be served on, or nobody answers in time.
        ModelFileError: the model cannot be read.
        DataError: the golden vectors cannot be read, or are of another model.
    """
    with tempfile.TemporaryDirectory() as folder:
        verification = prepare_verification(model, data, options, runtime_files(), Path(folder), autostart=False)
        if not verification.golden.tensors:
            raise DataError(f"{data} holds images alone, nothing to compare with; give golden vectors.")
        with PageServer(verification.service(), host=address.host, port=address.port, names=(address.name,)) as server:
            announce(server.url(address.name))
            patience = Patience(
                name="the page",
                timeout=options.timeout,
                silence=f"has sent nothing for {options.timeout:g} seconds. Give it longer with --timeout; the "
                "phone has to be in the same network, and the page in front.",
                retries=True,
                stopped=stopped,
            )
            report: DeviceReport = wait_for_result(server, patience, progress)
    return TargetsReport(
        schema=TargetsReport.SCHEMA,
        model=ModelFile.of(model),
        exact=report.differing == 0,
        targets=(TargetResult(target=NAME, skipped=None, failed=None, codes=report, logits=None),),
    )
