"""Target `wasm`: the page of `phone/`, opened by Chromium on this machine instead of by a person.

A room of its own, since a phone needs none of it: it starts and ends browsers, which needs playwright, and measures
latencies in them (`bench.py`).
"""

from .run import browser_state, run_in_browser, set_up_browser

__all__ = ["browser_state", "run_in_browser", "set_up_browser"]
