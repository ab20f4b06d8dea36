"""Energy of a run, where a sensor answers. It is read, never estimated from a rated power.

NVML counts what a GPU takes, RAPL what the packages of the CPU take, in both cases all that runs on them.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

__all__ = ["EnergyMeter", "no_cpu"]

POWERCAP = Path("/sys/class/powercap")
_cpu_is_shared = False


def no_cpu() -> None:
    """From now on no energy is read for runs on the CPU of this process: its counters would count those beside them."""
    global _cpu_is_shared  # a fact about the whole process
    _cpu_is_shared = True


class EnergyMeter:
    """Adds up what counters have counted since the meter was made.

    Args:
        name: what is measured, for people.
        counters: each a function that reads joules, and the value at which it starts again from 0 (None: never).
    """

    def __init__(self, name: str, counters: list[tuple[Callable[[], float], float | None]]) -> None:
        self.name = name
        self._counters = counters
        self._last = [read() for read, _ in counters]
        self.ok = True

    @classmethod
    def find(cls, device: torch.device) -> EnergyMeter | None:
        """The meter of this device, None where no sensor answers."""
        try:
            if device.type == "cuda":
                return cls.nvml(device)
            return cls.rapl() if device.type == "cpu" and not _cpu_is_shared else None
        except Exception:  # a driver may refuse in any way; a run does not end for want of a sensor
            return None

    @classmethod
    def nvml(cls, device: torch.device) -> EnergyMeter:
        """The counter of one GPU."""
        import pynvml

        pynvml.nvmlInit()
        # By its identity: NVML does not know of CUDA_VISIBLE_DEVICES.
        handle = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{torch.cuda.get_device_properties(device).uuid}")
        return cls(
            f"{torch.cuda.get_device_name(device)} (NVML)",
            [(lambda: pynvml.nvmlDeviceGetTotalEnergyConsumption(handle) / 1e3, None)],
        )

    @classmethod
    def rapl(cls, root: Path = POWERCAP) -> EnergyMeter | None:
        """The counters of the CPU's packages; None where there are none or they may not be read."""
        counters: list[tuple[Callable[[], float], float | None]] = []
        for folder in sorted(root.glob("intel-rapl:*")):
            if folder.name.count(":") > 1 or not (folder / "name").read_text().startswith("package"):
                continue  # part of a package, or the whole machine
            limit = float((folder / "max_energy_range_uj").read_text()) / 1e6
            counters.append((lambda path=folder / "energy_uj": float(path.read_text()) / 1e6, limit))  # type: ignore[misc]
        return cls("CPU packages (RAPL)", counters) if counters else None

    def read(self) -> float | None:
        """Joules since the last reading; None from the first time on that a sensor does not answer.

        RAPL's counters start again after some minutes of full load: read more often than that.
        """
        if not self.ok:
            return None
        try:
            now = [read() for read, _ in self._counters]
        except Exception:  # as above
            self.ok = False
            return None
        spent = 0.0
        for value, last, (_, limit) in zip(now, self._last, self._counters):
            spent += value - last if value >= last or limit is None else value - last + limit
        self._last = now
        return spent
