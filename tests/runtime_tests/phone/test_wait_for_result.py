"""Waiting for a page ends when the user stops it, whatever the page does."""

from __future__ import annotations

from types import SimpleNamespace
from typing import cast

import pytest

from qil_deploy.runtime_tests.phone.server import PageServer
from qil_deploy.runtime_tests.phone.wait_for_result import Patience, wait_for_result


@pytest.mark.parametrize("event", [None, SimpleNamespace(kind="progress", text="1 of 2", result=None)])
def test_the_user_stops_it(event: SimpleNamespace | None) -> None:
    """For a silent page, and for a busy one."""
    looks: list[float] = []

    def next_event(timeout: float) -> SimpleNamespace | None:
        looks.append(timeout)
        return event

    server = cast(PageServer, SimpleNamespace(next_event=next_event))
    patience = Patience(name="the page", timeout=60, silence="is silent.", stopped=lambda: len(looks) == 3)
    with pytest.raises(KeyboardInterrupt):
        wait_for_result(server, patience, None)
    assert len(looks) == 3
