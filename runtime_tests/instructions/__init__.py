"""Instructions executed by one inference on an emulated processor: a proxy for its latency, not a time.

qemu-user with a small plugin (`count.c`) runs a worker (`guest.py`) which marks where each inference begins and ends.
"""

from .counter import counter_state
from .report import InstructionsReport, ModelInstructions
from .run import CountOptions, count_instructions
from .setup import set_up_counter

__all__ = [
    "CountOptions",
    "InstructionsReport",
    "ModelInstructions",
    "count_instructions",
    "counter_state",
    "set_up_counter",
]
