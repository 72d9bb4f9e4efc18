"""Chromium without a window: found on this machine, and driven by playwright, which ends it with this process."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Final

from qil_deploy.errors import TargetError
from qil_deploy.untrusted_text import printable

VARIABLE: Final = "QIL_DEPLOY_CHROMIUM"
NAMES: Final = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome", "msedge")
_LOOK_MS = 200
_LAST_WORDS = 300


def find_chromium() -> str:
    """Return the program: the one that `QIL_DEPLOY_CHROMIUM` names, or the first of the usual names.

    Raises:
        TargetError: there is none, or nothing to drive it with.
    """
    if find_spec("playwright") is None:
        raise TargetError(
            "a browser needs the package 'playwright'; install it with: pip install 'qil-deploy[browser]'."
        )
    named = os.environ.get(VARIABLE)
    if named:
        found = shutil.which(named)
        if found is None:
            raise TargetError(f"{VARIABLE} is {named!r}, which is no program; name Chromium or Chrome.")
        return found
    for name in NAMES:
        found = shutil.which(name)
        if found is not None:
            return found
    raise TargetError(f"there is no Chromium on the PATH; install it, or name one with {VARIABLE}.")


@dataclass
class Browser:
    """A browser that shows one page."""

    end: str | None = None

    def ended(self) -> str | None:
        """Describe its end, for the end of a sentence; None while it runs."""
        return self.end


@contextlib.contextmanager
def browser_at(url: str, timeout: float) -> Iterator[Browser]:
    """Open a page for the length of a `with` block.

    It ends with the block, and with this process, however that ends. One that cannot be started has `ended`.

    Args:
        url: the page.
        timeout: seconds that the browser may take to start.

    Raises:
        TargetError: there is no Chromium.
    """
    program, browser, stop = find_chromium(), Browser(), threading.Event()
    # A thread of its own: playwright cannot be used again after Ctrl-C has interrupted it, not even to end the browser.
    thread = threading.Thread(target=_show, args=(program, url, timeout, browser, stop), daemon=True)
    thread.start()
    try:
        yield browser
    finally:
        stop.set()
        thread.join()


def _show(program: str, url: str, timeout: float, browser: Browser, stop: threading.Event) -> None:
    """Show a page until `stop` is set, or until the browser ends by itself."""
    from playwright.sync_api import Error, sync_playwright
    from playwright.sync_api import TimeoutError as SilentError

    try:
        with sync_playwright() as playwright:
            chromium = playwright.chromium.launch(
                executable_path=program,
                args=["--no-proxy-server"],
                chromium_sandbox=_has_sandbox(),
                timeout=1000 * timeout,
            )
            page = chromium.new_page()
            page.goto(url, wait_until="commit")
            while not stop.is_set():
                page.wait_for_timeout(_LOOK_MS)
            chromium.close()
    except SilentError:
        pass  # reported by the code that waits for the page
    except Error as error:
        browser.end = describe_end(error.message)


def describe_end(message: str) -> str:
    """Describe a browser's end, for the end of a sentence, from playwright's message, which contains its whole log."""
    code = re.search(r"<process did exit: ([^>]*)>", message)
    words = re.findall(r"^\[pid=\d+\]\[(?:out|err)\] (.*)", message, re.MULTILINE) or message.splitlines()[:1]
    shown = printable(" ".join(words))[-_LAST_WORDS:]
    return f"ended{'' if code is None else f' ({code[1]})'}. Its last words: {shown}"


def _has_sandbox() -> bool:
    """Whether Chromium can use its sandbox: not as root, since the sandbox needs a user to change to."""
    return not (hasattr(os, "geteuid") and os.geteuid() == 0)
