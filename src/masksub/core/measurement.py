"""Time and memory of two things beside each other, within one process."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

__all__ = ["paired_seconds", "peak_memory"]

Run = Callable[[], object]


def peak_memory(run: Run, device: torch.device) -> int:
    """Most bytes that ``run`` holds at one moment, beyond what was there before.

    On a CPU: the running sum of every allocation and release that PyTorch's allocator reports to the profiler. That is
    exact and the same at each run; the resident size of the process is neither, since the C library keeps what is
    freed. Workspaces that a kernel library allocates by itself are not seen.
    """
    if device.type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    with _native_messages_off(), profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        run()
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder, "trace.json")
        recorded.export_chrome_trace(str(trace))
        events = json.loads(trace.read_text())["traceEvents"]
    held = peak = 0
    for event in sorted((e for e in events if e.get("name") == "[memory]"), key=lambda e: e["ts"]):
        held += event["args"]["Bytes"]
        peak = max(peak, held)
    return peak


@contextlib.contextmanager
def _native_messages_off() -> Iterator[None]:
    """The profiler's own lines on standard error, which no setting turns off, are swallowed."""
    sys.stderr.flush()
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def paired_seconds(
    one: Run, two: Run, repeats: int, device: torch.device, clock: Callable[[], float] = time.perf_counter
) -> list[tuple[float, float]]:
    """Seconds of each pair of runs; the order within a pair alternates. Two unmeasured pairs come first."""
    pairs = []
    for index in range(-2, repeats):
        pair = [0.0, 0.0]
        for which in (0, 1) if index % 2 else (1, 0):
            start = clock()
            (one, two)[which]()
            if device.type == "cuda":
                torch.cuda.synchronize()
            pair[which] = clock() - start
        if index >= 0:
            pairs.append((pair[0], pair[1]))
    return pairs
