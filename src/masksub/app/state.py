"""Where a training run stands, saved and brought back.

All randomness depends on the place in training (``seeds``), so weights, optimizer and this are the whole state.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor, nn

from . import checkpoint as checkpoints
from .data import Supply
from .energy import EnergyMeter
from .errors import InputError, StoppedError
from .progress import Reporter
from .sharding import full_model_state, full_optimizer_state, load_full_model_state, load_full_optimizer_state
from .window import LossWindow

__all__ = ["Standing", "find", "restore", "snapshot"]

FORMAT = 3
"""Of the state of training; it goes up when what is in it changes."""


class Standing:
    """How far training is and what it took.

    Args:
        energy: the sensor, None where there is none.

    Attributes:
        update: optimizer updates that are done.
        images: that were trained on, by all processes; those that could not be read are none.
        spent: seconds in all, train_seconds, data_seconds, flops, and energy_joules where a sensor answers.
        took: seconds of the last update.
        window: losses since the last line of metrics.
        counts: skipped_updates, left out since something was not finite; overflowed_updates, left out by the scaler of
            fp16; overflows_in_a_row, the last ones of these; failed_checkpoints, that could not be written.
    """

    def __init__(self, energy: EnergyMeter | None) -> None:
        self.update = self.images = 0
        self.took = 0.0
        self.spent = {"seconds": 0.0, "train_seconds": 0.0, "data_seconds": 0.0, "flops": 0.0}
        self.window = LossWindow()
        self.counts = {"skipped_updates": 0, "overflowed_updates": 0, "overflows_in_a_row": 0}
        self.counts["failed_checkpoints"] = 0
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


def snapshot(
    standing: Standing,
    *,
    model: nn.Module,
    ema: nn.Module | None,
    optimizer: Any,
    accelerator: Accelerator,
    supplies: Sequence[Supply],
    images: tuple[int, int],
    updates: int,
) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]]:
    """What a checkpoint holds: state dicts of weights by file stem, and the state of training.

    All processes must ask; whole tensors come to the main one. They may be those in use.
    """
    standing.read_energy()
    weights = {"model": full_model_state(model)}
    if ema is not None:
        weights["ema"] = full_model_state(ema)
    own = {"window": standing.window.state(), "skipped": [supply.state_dict() for supply in supplies]}
    training = {
        "format": FORMAT,
        "of_each_process": gather_object([own]),
        "optimizer": full_optimizer_state(optimizer),
        "scaler": accelerator.scaler.state_dict() if accelerator.scaler is not None else None,
        "update": standing.update,
        "images": standing.images,
        "images_of_data": list(images),
        "updates": updates,
        "spent": dict(standing.spent),
        "counts": dict(standing.counts),
        "processes": accelerator.num_processes,
    }
    return weights, training


def find(folder: Path, reporter: Reporter) -> tuple[checkpoints.Checkpoint, dict[str, Any]] | None:
    """The last whole checkpoint and what is in it; None if none was written yet.

    Raises:
        StoppedError: there are checkpoints, and none is whole, or of another version.
    """
    found = checkpoints.latest_state(folder, reporter.warn)
    if found is None:
        if checkpoints.any_in(folder):
            raise StoppedError(
                f"no checkpoint of {folder.parent} is whole; to start from the beginning, use --overwrite (the run is "
                f"set aside)"
            )
        return None
    if found[1].get("format") != FORMAT:
        raise StoppedError(
            f"{found[0].path} was written by another version of masksub and can't be gone on with by this one"
        )
    return found


def restore(
    found: tuple[checkpoints.Checkpoint, dict[str, Any]],
    standing: Standing,
    *,
    model: nn.Module,
    ema: nn.Module | None,
    optimizer: Any,
    accelerator: Accelerator,
    supplies: Sequence[Supply],
    images: tuple[int, int],
    updates: int,
    reporter: Reporter,
    approximate: bool,
) -> bool:
    """Bring back a checkpoint.

    Returns:
        Whether training goes on exactly from it.

    Raises:
        InputError: another number of processes than at the start, or of images, unless that is accepted; or so few
            images that the training would be over.
    """
    last, state = found
    run = last.path.parents[1]
    if state["processes"] != accelerator.num_processes and not approximate:
        raise InputError(
            f"{last.path} was written by {state['processes']} process(es) and can't be gone on with exactly by "
            f"{accelerator.num_processes}; start as many, or go on with --resume --approximate"
        )
    same_data = tuple(state["images_of_data"]) == images
    if not same_data:
        (train, val), (train_now, val_now) = state["images_of_data"], images
        told = (
            f"{run}: the data have changed since {last.path.name} was written: {train} images to train on and {val} to "
            f"validate on have become {train_now} and {val_now}"
        )
        if state["update"] > updates:
            raise InputError(f"{told}. That is a training of {updates} updates, fewer than are done. Bring them back")
        if not approximate:
            raise InputError(
                f"{told}. Bring them back, or go on with --resume --approximate: images then come in another order, "
                f"and the schedules are those of {updates} updates in place of {state['updates']}"
            )
        reporter.warn(f"{told}; {state['updates']} updates have become {updates}, and the schedules with them")
    checkpoints.load_weights(model, last.path / "model.safetensors", load_full_model_state)
    if ema is not None:
        checkpoints.load_weights(ema, last.path / "ema.safetensors", load_full_model_state)
    load_full_optimizer_state(optimizer, state["optimizer"])
    if accelerator.scaler is not None and state["scaler"] is not None:  # None: it went on in another precision
        accelerator.scaler.load_state_dict(state["scaler"])
    standing.update, standing.spent, standing.images = state["update"], state["spent"], state["images"]
    each = state["of_each_process"]
    for process in each if same_data else ():  # else the numbers stand for other images
        for supply, skipped in zip(supplies, process["skipped"], strict=True):
            supply.load_state_dict(skipped)
    rank = accelerator.process_index
    standing.window = LossWindow(**each[rank]["window"]) if rank < len(each) else LossWindow()
    standing.counts.update(state.get("counts", {}))
    return state["processes"] == accelerator.num_processes and same_data
