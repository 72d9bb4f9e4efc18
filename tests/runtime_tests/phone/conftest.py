"""A browser that opens the page as a phone would."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest

from qil_deploy.runtime_tests.browser.chromium import find_chromium

if TYPE_CHECKING:
    from playwright.sync_api import Page

    OpenPhone = Callable[..., Page]


@pytest.fixture
def open_phone(browser: None) -> Iterator[OpenPhone]:  # noqa: ARG001 - a fixture that skips
    """Return a function that opens an address in a browser with a phone's screen; skip if there is none."""
    api = pytest.importorskip("playwright.sync_api")
    root = hasattr(os, "geteuid") and os.geteuid() == 0
    with api.sync_playwright() as playwright, ExitStack() as stack:

        def open_page(url: str, *, dark: bool = False) -> Page:
            # phone.test is this machine by a name that is not loopback's: what a page in a home network is to a phone.
            arguments = ["--host-resolver-rules=MAP phone.test 127.0.0.1", *(["--no-sandbox"] if root else [])]
            chromium = playwright.chromium.launch(executable_path=find_chromium(), args=arguments)
            stack.callback(chromium.close)
            context = chromium.new_context(
                viewport={"width": 360, "height": 740},
                is_mobile=True,
                has_touch=True,
                device_scale_factor=2,
                color_scheme="dark" if dark else "light",
            )
            page: Page = context.new_page()
            page.set_default_timeout(120_000)
            page.goto(url)
            return page

        yield open_page
