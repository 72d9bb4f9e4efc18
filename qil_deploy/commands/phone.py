"""`phone`: the model in the browser of a phone, every code compared there."""

from __future__ import annotations

import io
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from qil_deploy.errors import ConfigError, TargetError
from qil_deploy.interrupts import noticing_interrupts

from .kernel_option import RefusedKernelOption
from .verify import open_test_images
from .verify_targets import GOLDEN_IMAGES, first_images

if TYPE_CHECKING:
    from rich.text import Text

    from qil_deploy.runtime_tests.phone.verify_on_phone import Address
    from qil_deploy.runtime_tests.targets import RunOptions, TargetsReport
    from qil_deploy.terminal import Console

_LOOPBACK_HINT = (
    "Only this machine reaches it. For phones in its network, add --lan; for one on a USB cable, run",
    "adb reverse tcp:{port} tcp:{port}, and open the same address there (threads are allowed that way).",
    "",
)


def phone_command(  # noqa: PLR0913, PLR0917 - every argument is an option of its own
    model: Annotated[Path, typer.Argument(metavar="MODEL.onnx", help="The exported model.")],
    golden: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Its golden vectors. [default: of the first test images]")
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(help="Data set name or image folder. [default: what the model was trained on]"),
    ] = None,
    lan: Annotated[bool, typer.Option("--lan", help="Serve on this machine's address in its network.")] = False,
    host: Annotated[
        str | None, typer.Option(metavar="ADDRESS", help="Serve on this address. [default: this machine alone]")
    ] = None,
    port: Annotated[int, typer.Option(help="Serve on this port; 0 picks a free one.")] = 0,
    threads: Annotated[int, typer.Option(help="Number of threads, if the browser allows more than one.")] = 1,
    repeats: Annotated[int, typer.Option(help="Timed runs; 0 for none.")] = 50,
    json: Annotated[Path | None, typer.Option(help="Write the report here.")] = None,
    timeout: Annotated[
        float, typer.Option(help="Seconds without a sign of life from the phone before giving up.")
    ] = 600.0,
    kernels: RefusedKernelOption = None,  # noqa: ARG001 - refused as soon as it is read
) -> None:
    """Serve a page that runs the model in a phone's browser, compares every code, and returns the result.

    Exits with 1 if a code differs.
    """
    from qil_deploy.files import ensure_writable
    from qil_deploy.reports import write_report
    from qil_deploy.runtime_tests.backends import exact_levels
    from qil_deploy.runtime_tests.exported_model import read_exported_model
    from qil_deploy.runtime_tests.phone.verify_on_phone import choose_address
    from qil_deploy.runtime_tests.phone.web_runtime import runtime_files
    from qil_deploy.runtime_tests.targets import RunOptions
    from qil_deploy.runtime_tests.targets.table import targets_remarks, targets_table
    from qil_deploy.terminal import Console

    _check_options(golden, data, threads, repeats, timeout)
    address = choose_address(host=host, lan=lan, port=port)
    if json is not None:
        ensure_writable(json)
    levels = exact_levels(read_exported_model(model).format)
    runtime_files()
    options = RunOptions(levels=levels, threads=threads, repeats=repeats, timeout=timeout)
    console = Console()
    try:
        report = _serve(model, golden, data, options, address, console)
    except KeyboardInterrupt as error:
        raise TargetError("stopped by hand before a result came; nothing was written.") from error
    if json is not None:
        write_report(json, report)
    console.print(targets_table(report))
    for remark in targets_remarks(report):
        console.print(remark, soft_wrap=True)
    if report.exact is False:
        raise typer.Exit(1)


def _serve(
    model: Path, golden: Path | None, data: str | None, options: RunOptions, address: Address, console: Console
) -> TargetsReport:
    """Serve the page, and print its address, until the result arrives."""
    from qil_deploy.runtime_tests.exported_model import read_exported_model
    from qil_deploy.runtime_tests.golden import write_golden
    from qil_deploy.runtime_tests.phone.verify_on_phone import LOOPBACK, verify_on_phone
    from qil_deploy.terminal import Console

    status = Console(stderr=True).status("the integer reference: every code")
    with tempfile.TemporaryDirectory() as folder, status:
        if golden is None:
            exported = read_exported_model(model)
            images = first_images(open_test_images(exported, data, 1), GOLDEN_IMAGES)
            golden = Path(folder) / "codes.npz"
            write_golden(model, images, data or exported.data or "", golden)

        def announce(url: str) -> None:
            for text in ("Open this address, and press Start there:", "", f"  {url}", ""):
                console.print(text, soft_wrap=True)
            console.print(qr_code(url), soft_wrap=True)
            if address.name == LOOPBACK:
                for text in _LOOPBACK_HINT:
                    console.print(text.format(port=url.split("/")[2].partition(":")[2]), soft_wrap=True)
            status.update("waiting for the page; Ctrl-C ends it")

        # KeyboardInterrupt itself is lost where Python raises it while a module is loaded, and nobody would come.
        with noticing_interrupts() as stopped:
            return verify_on_phone(
                model, golden, options, address, announce=announce, progress=status.update, stopped=stopped
            )


def qr_code(url: str) -> Text:
    """Draw an address as a QR code, light and dark as scanners want it whatever the terminal's colours are."""
    import segno
    from rich.text import Text

    drawing = io.StringIO()
    segno.make(url, micro=False).terminal(drawing, border=2, compact=True)
    return Text(drawing.getvalue(), style="bright_white on black")


def _check_options(golden: Path | None, data: str | None, threads: int, repeats: int, timeout: float) -> None:
    if golden is not None and data is not None:
        raise ConfigError("--golden brings its own images; leave --data out.")
    for name, value, least in (("threads", threads, 1), ("repeats", repeats, 0)):
        if value < least:
            raise ConfigError(f"--{name} is {value}; it must be at least {least}.")
    if not timeout > 0:
        raise ConfigError(f"--timeout is {timeout:g}; it must be more than 0 seconds.")
