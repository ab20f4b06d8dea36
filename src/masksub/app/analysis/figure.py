"""Picture of an analysis."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib
import numpy as np

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from .text import NAMES

__all__ = ["draw_analysis"]

STYLES = {"main": ("#000000", "-"), "relaxed": ("#0072B2", "--"), "labels": ("#D55E00", ":")}
"""Colours that colour-blind readers tell apart (Okabe and Ito), and line styles for those who print in grey."""
GREY = "#555555"


def draw_analysis(result: dict[str, Any], path: Path) -> None:
    """Accuracy and agreement by mask ratio, gradient norms, cosines, and the losses along their gradients.

    Args:
        result: what ``analyze`` returned.
        path: the PNG to write.
    """
    figure = plt.figure(figsize=(12, 8.6), layout="constrained")
    checkpoint, seen, trained = result["checkpoint"], result["evaluation"], result["gradients"]
    epoch = "" if checkpoint["epoch"] is None else f", epoch {checkpoint['epoch']:g}"
    title = f"{Path(result['run']).name} ({result['method']}), update {checkpoint['update']}{epoch}"
    figure.suptitle(title.replace("$", r"\$"), fontsize=13)
    figure.supxlabel(
        f"{seen['images']} of {seen['of_images']} validation images; {trained['batches']} batches of "
        f"{trained['images_per_batch']} training images; model in eval mode; seed {result['settings']['seed']}. "
        f"Bands: lowest to highest.",
        fontsize=9,
        color=GREY,
    )
    grid = figure.add_gridspec(2, 2)
    left = grid[0, 0].subgridspec(2, 1, height_ratios=(2, 1), hspace=0.05)
    accuracy = figure.add_subplot(left[0])
    divergence = figure.add_subplot(left[1], sharex=accuracy)
    norms, cosines, curves = (figure.add_subplot(grid[place]) for place in ((0, 1), (1, 0), (1, 1)))
    _draw_accuracy(accuracy, divergence, seen["points"])
    _draw_gradients(norms, cosines, trained)
    _draw_curves(curves, result["sharpness"])
    own = trained["run"]["ratio"]
    for axes in (accuracy, divergence, norms, cosines):
        if own:
            axes.axvline(own, color=GREY, linewidth=0.8, linestyle=(0, (1, 3)))
    for axes in (accuracy, divergence, norms, cosines, curves):
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    if own:
        accuracy.annotate(
            "ratio in training", (own, 1.0), xycoords=("data", "axes fraction"), xytext=(3, -1),
            textcoords="offset points", fontsize=8, color=GREY, va="top",
        )  # fmt: skip
    figure.savefig(path, dpi=110, format="png")
    plt.close(figure)


def _draw_accuracy(accuracy: Any, divergence: Any, points: list[dict[str, Any]]) -> None:
    ratios = [point["ratio"] for point in points]
    for key, label, color, line in (
        ("top1_percent", "top-1", "#000000", "-"),
        ("agreement_percent", "same class as the whole image", "#009E73", "--"),
    ):
        _line(accuracy, ratios, [point[key] for point in points], color, line, label)
    _line(divergence, ratios, [point["kl"] for point in points], "#CC79A7", "-.", "")
    accuracy.set(title="Masked at evaluation", ylabel="%")
    accuracy.tick_params(labelbottom=False)
    accuracy.legend(frameon=False, loc="lower left")
    divergence.set(xlabel="mask ratio", ylabel="KL, nats")
    divergence.text(0.02, 0.92, "KL(whole || masked)", transform=divergence.transAxes, fontsize=9, va="top")
    divergence.set_ylim(bottom=0)


def _draw_gradients(norms: Any, cosines: Any, found: dict[str, Any]) -> None:
    at, main = found["at_ratio"], found["main"]["norm"]
    ratios = [each["ratio"] for each in at]
    ends = [min([0.0, *ratios]), max([1.0, *ratios])]
    _line(norms, ends, [main, main], *STYLES["main"], "main")
    for key in ("relaxed", "labels"):
        _line(norms, ratios, [each[key]["norm"] for each in at], *STYLES[key], NAMES[key], marker="o")
        _line(cosines, ratios, [each[key]["cosine_with_main"] for each in at], *STYLES[key], NAMES[key], marker="o")
    own = found["run"]["sub"]
    if own is not None:
        label = f"this run's sub branch ({found['run']['method']})"
        for axes, value in ((norms, own["norm"]), (cosines, own["cosine_with_main"])):
            if value is not None and value["mean"] is not None:
                place = [found["run"]["ratio"]]
                axes.plot(place, [value["mean"]], "D", color="#CC79A7", markersize=7, label=label, fillstyle="none")
    if (main["mean"] or 0) > 0:
        norms.set_yscale("log")
        norms.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        norms.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        norms.yaxis.set_minor_formatter(NullFormatter())
    norms.set(title="Gradient norm of each loss", xlabel="mask ratio", ylabel="|gradient|", xlim=(0, 1))
    cosines.axhline(0, color=GREY, linewidth=0.8)
    cosines.set(title="Do the branches pull the same way?", xlabel="mask ratio", ylabel="cosine with main gradient")
    cosines.set(xlim=(0, 1), ylim=(-1.02, 1.02))
    for axes in (norms, cosines):
        axes.legend(frameon=False, fontsize=9)


def _draw_curves(axes: Any, found: dict[str, Any]) -> None:
    """Each loss less its value at the weights: the curves are about shape, and labels cost more than relaxed ones."""
    for key, (color, line) in STYLES.items():
        curve = found[key]
        if curve["losses"] is None:
            continue
        x = 100 * np.array(curve["distances"])
        losses = np.array(curve["losses"], dtype=float)  # None becomes nan
        bend = "not finite" if curve["curvature"] is None else f"{curve['curvature']:.3g}"
        label = f"{NAMES[key]}: curvature {bend}"
        axes.plot(x, losses - losses[len(losses) // 2], color=color, linestyle=line, linewidth=1.8, label=label)
    axes.axvline(0, color=GREY, linewidth=0.8)
    axes.set(
        title=f"Each loss along its own gradient (masked: ratio {found['ratio']:g})",
        xlabel="distance downhill, % of the norm of the weights",
        ylabel="change of the loss",
    )
    if axes.lines[:-1]:
        low, high = axes.get_ylim()
        axes.set_ylim(low, high + 0.3 * (high - low))  # room for the legend
        axes.legend(loc="upper center", fontsize=9, framealpha=1, edgecolor="none")


def _line(
    axes: Any, x: list[float], spreads: list[dict[str, Any] | None], color: str, line: str, label: str, marker: str = ""
) -> None:
    """Means with a band from the lowest to the highest; a gap where there is no value."""
    means, lows, highs = (
        np.array([np.nan if each is None or each[key] is None else each[key] for each in spreads], dtype=float)
        for key in ("mean", "low", "high")
    )
    axes.plot(x, means, color=color, linestyle=line, linewidth=1.8, label=label, marker=marker or None, markersize=4)
    axes.fill_between(x, lows, highs, color=color, alpha=0.15, linewidth=0)
