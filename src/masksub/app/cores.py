"""Processor cores and threads: how many there are, and how many a process takes."""

from __future__ import annotations

import os

__all__ = ["available_cores", "threads_for"]


def available_cores() -> int:
    """Processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def threads_for(jobs: int) -> int:
    """Threads of each of several processes that train side by side on this machine.

    OMP_NUM_THREADS where the user has set it (of a list such as "4,2" the first number, which is that of the outermost
    level); else the cores are shared out.

    Args:
        jobs: processes at one time.
    """
    wanted = os.environ.get("OMP_NUM_THREADS", "").split(",")[0].strip()
    if wanted.isdecimal() and int(wanted) > 0:
        return int(wanted)
    return max(1, available_cores() // max(1, jobs))
