"""The model in a browser: ONNX Runtime Web on this machine's Chromium (target `wasm`), or on a phone.

A small server (`server.py`) hands out the page in `page/`, the runtime, the model and its golden vectors, and takes the
report that the page posts (`verification.py`), in the form that devices have (`targets/report.py`).
"""

from .run import browser_state, run_in_browser, set_up_browser

__all__ = ["browser_state", "run_in_browser", "set_up_browser"]
