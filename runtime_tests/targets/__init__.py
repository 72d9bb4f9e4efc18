"""Other instruction sets: the same file, the same golden vectors, run by the runtime's own build for them.

Each target starts the package's zip file (`device_program`) in this machine's Python, another under qemu-user, or that
of a device reached by ssh or adb, and gets its report back; a browser has a runner of its own.
"""

from qil_deploy.runtime_tests.golden import write_golden_logits

from .catalogue import TARGETS, Target, find_target, target_names, target_state
from .options import RunOptions
from .remote import DEVICE_FORMS
from .report import DeviceReport, TargetResult, TargetsReport
from .run import run_on_target
from .setup import set_up_target
from .verify_targets import require_runnable, verify_targets

__all__ = [
    "DEVICE_FORMS",
    "TARGETS",
    "DeviceReport",
    "RunOptions",
    "Target",
    "TargetResult",
    "TargetsReport",
    "find_target",
    "require_runnable",
    "run_on_target",
    "set_up_target",
    "target_names",
    "target_state",
    "verify_targets",
    "write_golden_logits",
]
