"""What a training would need on machines that are not here: memory, time and communication, from shapes and stated
bandwidths. Nothing is trained, and no data or weights are needed."""

from .hardware import DEVICES, create_machine
from .make import COUNTS, Plan, make_plan
from .text import plan_text

__all__ = ["COUNTS", "DEVICES", "Plan", "create_machine", "make_plan", "plan_text"]
