"""The part of the package that runs on a device, as one zip file that Python takes in place of a script.

Such a file goes wherever golden vectors are to be run: into an emulator, over ssh or adb, or by hand. It holds the
modules as they are, so that nothing is known twice, and needs Python, numpy and onnxruntime there.
"""

from __future__ import annotations

import io
import zipfile
from pathlib import Path
from typing import Final

import qil_deploy
from qil_deploy.files import write_bytes

OLDEST_PYTHON: Final = (3, 10)
NAME: Final = "qil_device.pyz"
_MODULES: Final = (
    *("accuracy", "errors", "file_locks", "files", "preprocessing", "reports", "strict_json", "untrusted_text"),
    *("runtime_tests/compare_tensors", "runtime_tests/device_report", "runtime_tests/device_runner"),
    *("runtime_tests/environment", "runtime_tests/exported_model", "runtime_tests/golden_file"),
    *("runtime_tests/kernel_library", "runtime_tests/machine", "runtime_tests/reports", "runtime_tests/sessions"),
)
_MAIN: Final = f"""import sys

if sys.version_info < {OLDEST_PYTHON}:
    found = sys.version_info[:2] + {OLDEST_PYTHON}
    sys.exit("Error: Python is %d.%d, and %d.%d is the oldest that will do." % found)

from qil_deploy.runtime_tests.device_runner import main

sys.exit(main())
"""


def write_device_program(path: Path) -> None:
    """Write the zip file, whole or not at all; the same bytes each time.

    Raises:
        OutputError: `path` cannot be written.
    """
    package = Path(qil_deploy.__file__).parent
    files = [package / "__init__.py", *(package / f"{name}.py" for name in _MODULES)]
    files += sorted(file for room in ("metrics", "onnx_io") for file in (package / room).glob("*.py"))
    sources = {f"qil_deploy/{file.relative_to(package).as_posix()}": file.read_text(encoding="utf-8") for file in files}
    sources["qil_deploy/runtime_tests/__init__.py"] = ""  # this package's own exports what a device has no need of
    sources["__main__.py"] = _MAIN
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, source in sources.items():
            archive.writestr(zipfile.ZipInfo(name), source, zipfile.ZIP_DEFLATED)
    write_bytes(path, content.getvalue())
