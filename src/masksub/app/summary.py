"""The figures of a finished run, for its summary.json."""

from __future__ import annotations

from typing import Any

import torch

from .memory import peak_bytes
from .settings import Recipe
from .state import Standing

__all__ = ["summarise"]

_RESULTS = ("top1", "top5", "loss", "calibration_error", "images")


def summarise(
    recipe: Recipe,
    standing: Standing,
    evaluations: list[dict[str, Any]],
    *,
    updates_per_epoch: int,
    parameters: int,
    device: torch.device,
) -> dict[str, Any]:
    """Final evaluation and cost.

    Args:
        recipe: of the run.
        standing: at the end.
        evaluations: their records, in order.
        updates_per_epoch: optimizer updates of an epoch.
        parameters: of the model, a number.
        device: whose memory is told.
    """
    standing.read_energy()
    spent, energy = standing.spent, standing.energy
    memory, memory_of = peak_bytes(device)
    return {
        "method": recipe.method,
        "seed": recipe.seed,
        "final": {key: value for key, value in evaluations[-1].items() if key in _RESULTS},
        "best_top1": max(record["top1"] for record in evaluations),
        "updates": standing.update,
        "epochs": standing.update / updates_per_epoch,
        "images": standing.images,
        "parameters": parameters,
        **{key: round(value, 3) for key, value in spent.items()},
        "skipped_updates": standing.counts["skipped_updates"],
        "overflowed_updates": standing.counts["overflowed_updates"],
        "images_per_second": round(standing.images / spent["train_seconds"], 1),
        "data_wait_share": round(spent["data_seconds"] / spent["train_seconds"], 4),
        **({"energy_of": energy.name} if energy and "energy_joules" in spent else {}),
        "peak_memory_bytes": memory,
        "peak_memory_of": memory_of,
    }
