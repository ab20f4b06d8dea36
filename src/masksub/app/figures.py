"""Pictures of the demonstration."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from masksub.core.masking import sample_keep
from masksub.core.removal import blank_pixels

from .data import EvalBatches, open_source
from .runs import RunFolder
from .settings import Recipe

__all__ = ["draw_demo"]

STYLES = (("#000000", "-"), ("#0072B2", "--"), ("#D55E00", ":"), ("#009E73", "-"))
"""Colours that colour-blind readers tell apart (Okabe and Ito), and line styles for those who print in grey."""


def draw_demo(path: Path, arms: dict[str, list[Path]], recipe: Recipe) -> None:
    """Loss and accuracy against compute for each arm, and inputs as the sub branch sees them.

    Args:
        path: the PNG to write.
        arms: name -> run folders, one a seed. The line is their mean, the band goes from the lowest to the highest.
        recipe: data, patch size and mask ratio for the row of inputs.
    """
    figure = plt.figure(figsize=(11, 7.2), layout="constrained")
    parts: Any = figure.subfigures(2, 1, height_ratios=(3, 1.5))
    curves, inputs = parts
    seeds = max(len(folders) for folders in arms.values())
    curves.suptitle(f"Line: mean of {seeds} seed(s). Band: lowest to highest.", fontsize=10, color="#555555")
    loss, accuracy = curves.subplots(1, 2)
    for (name, folders), (color, line) in zip(arms.items(), STYLES):
        runs = [[r for r in RunFolder(folder).metrics() if r["kind"] == "eval"] for folder in folders]
        compute = np.array([r["flops"] for r in runs[0]]) / 1e12
        for axes, key in ((loss, "loss"), (accuracy, "top1")):
            values = np.array([[r[key] for r in run] for run in runs])
            axes.plot(compute, values.mean(axis=0), color=color, linestyle=line, linewidth=1.8, label=name)
            axes.fill_between(compute, values.min(axis=0), values.max(axis=0), color=color, alpha=0.12, linewidth=0)
    loss.set(title="Validation loss", ylabel="cross-entropy", yscale="log")
    accuracy.set(title="Validation accuracy", ylabel="top-1, %")
    low, high = accuracy.get_ylim()
    accuracy.set_ylim(max(low, high - 30), min(high, 100.5))
    for axes in (loss, accuracy):
        axes.set_xlabel("training compute, TFLOP")
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    accuracy.legend(frameon=False, loc="lower right")
    _draw_inputs(inputs, recipe)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _draw_inputs(figure: Any, recipe: Recipe, count: int = 10) -> None:
    """Images above, and below the same with the masked patches in colour."""
    source = open_source(recipe.data, "val", recipe.seed)
    x, _ = next(iter(EvalBatches(source, recipe.data, recipe.augment, batch_size=count)))
    ratio, patch = recipe.sub.ratio_schedule(1.0), int(recipe.model.kwargs["patch_size"])
    side = x.shape[-1] // patch
    keep = sample_keep(count, side * side, ratio, generator=torch.Generator().manual_seed(0))
    masked = blank_pixels(x, keep, patch, fill=float("nan"))
    low, high = float(x.min()), float(x.max())
    palette = plt.get_cmap("gray").with_extremes(bad="#E8B98A")
    figure.suptitle(
        f"Inputs, and what the sub branch sees of them (ratio {ratio:g}: coloured patches are dropped)", fontsize=11
    )
    for axes, image in zip(figure.subplots(2, count).flat, torch.cat((x, masked))):
        shown = image.mean(dim=0) if image.shape[0] == 1 else image.permute(1, 2, 0)
        axes.imshow(shown.numpy(), cmap=palette, vmin=low, vmax=high, interpolation="nearest")
        axes.set_axis_off()
