"""The most memory that a run held."""

from __future__ import annotations

import contextlib
import resource
from pathlib import Path

import torch

__all__ = ["peak_bytes", "restart_peak"]


def restart_peak(device: torch.device) -> None:
    """Count from now on: one process may make several runs. On a CPU only Linux can."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    else:
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # VmHWM starts again at the present size


def peak_bytes(device: torch.device) -> tuple[int, str]:
    """The highest number of bytes since ``restart_peak``, and of what: what is allocated on the GPU, or the whole
    process (with the libraries that it has loaded)."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device), "allocated on the GPU"
    try:
        for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024, "the whole process"
    except OSError:
        pass
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024, "the whole process"
