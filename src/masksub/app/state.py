"""Where a training run stands, saved and brought back.

All randomness depends on the place in training (``seeds``), so weights, optimizer and this are the whole state.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from accelerate import Accelerator
from torch import nn

from . import checkpoint as checkpoints
from .energy import EnergyMeter
from .errors import InputError, StoppedError
from .progress import Reporter
from .window import LossWindow

__all__ = ["Standing", "restore", "save"]


class Standing:
    """How far training is and what it took.

    Args:
        energy: the sensor, None where there is none.

    Attributes:
        update: optimizer updates that are done.
        spent: seconds in all, train_seconds, data_seconds, flops, and energy_joules where a sensor answers.
        window: losses since the last line of metrics.
    """

    def __init__(self, energy: EnergyMeter | None) -> None:
        self.update = 0
        self.spent = {"seconds": 0.0, "train_seconds": 0.0, "data_seconds": 0.0, "flops": 0.0}
        self.window = LossWindow()
        self.energy = energy
        if energy is not None:
            self.spent["energy_joules"] = 0.0

    def read_energy(self) -> None:
        """Add what the sensor counted; a figure with a gap in it, at any time of the run, is taken out."""
        joules = None if self.energy is None else self.energy.read()
        if joules is None or "energy_joules" not in self.spent:
            self.spent.pop("energy_joules", None)
        else:
            self.spent["energy_joules"] += joules


def save(
    folder: Path,
    standing: Standing,
    *,
    model: nn.Module,
    ema: nn.Module | None,
    optimizer: Any,
    accelerator: Accelerator,
    keep: int,
) -> None:
    """Write a checkpoint; the oldest beyond ``keep`` goes."""
    standing.read_energy()
    if not accelerator.is_main_process:
        return
    weights = {"model": model.state_dict()}
    if ema is not None:
        weights["ema"] = ema.state_dict()
    training = {
        "optimizer": optimizer.state_dict(),
        "scaler": accelerator.scaler.state_dict() if accelerator.scaler is not None else None,
        "update": standing.update,
        "spent": standing.spent,
        "window": standing.window.state(),
        "processes": accelerator.num_processes,
    }
    checkpoints.save(folder, standing.update, weights, training, keep=keep)


def restore(
    folder: Path,
    standing: Standing,
    *,
    model: nn.Module,
    ema: nn.Module | None,
    optimizer: Any,
    accelerator: Accelerator,
    reporter: Reporter,
) -> Path | None:
    """Bring back the last whole checkpoint.

    Returns:
        The checkpoint; None if none was written yet.

    Raises:
        StoppedError: there are checkpoints, and none is whole.
        InputError: another number of processes than at the start.
    """
    last = checkpoints.latest(folder, reporter.warn)
    if last is None:
        if any(folder.glob("update-*")):
            raise StoppedError(
                f"no checkpoint of {folder.parent} is whole; to start from the beginning, use --overwrite (the run is "
                f"set aside)"
            )
        return None
    state = last.training_state()
    if state["processes"] != accelerator.num_processes:
        raise InputError(
            f"{folder.parent} was trained by {state['processes']} processes and can't go on exactly with "
            f"{accelerator.num_processes}; start as many"
        )
    checkpoints.load_weights(model, last.path / "model.safetensors")
    if ema is not None:
        checkpoints.load_weights(ema, last.path / "ema.safetensors")
    optimizer.load_state_dict(state["optimizer"])
    if accelerator.scaler is not None:
        accelerator.scaler.load_state_dict(state["scaler"])
    standing.update, standing.spent = state["update"], state["spent"]
    standing.window = LossWindow(**state["window"])
    return last.path
