"""``docs/images/method.svg``: the method at a glance.

    python -m benchmarks.figures.method

Letters are drawn as outlines and the card has its own background, so the picture looks the same on light and dark
pages and with any fonts. The scene is drawn here; no data set is in it.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import torch
from matplotlib.axes import Axes
from matplotlib.patches import Circle, FancyArrowPatch, FancyBboxPatch, Polygon, Rectangle

from masksub.core.masking import sample_keep

__all__ = ["PICTURE", "draw"]

PICTURE = Path(__file__).resolve().parents[2] / "docs" / "images" / "method.svg"

WIDTH, HEIGHT = 800, 448
"""Of the picture, in the units that everything below is placed by; pixels at the README's width. y points down."""

INK, FAINT, LINE = "#1F2328", "#57606A", "#8C959F"
MAIN, SUB = "#0072B2", "#C24E00"
"""Colours that colour-blind readers tell apart; both have a contrast above 4.5 on white."""
SIDE, PATCHES = 108, 6
"""Side of the scene, and patches along it."""
UPPER, LOWER = 110, 250
"""Middle of the two branches."""


def draw(path: Path = PICTURE) -> None:
    """Write the picture; the same bytes each time with one version of matplotlib."""
    settings = {"font.family": "DejaVu Sans", "svg.fonttype": "path", "svg.hashsalt": "masksub"}
    with matplotlib.rc_context(settings):
        figure = plt.figure(figsize=(WIDTH / 72, HEIGHT / 72))
        axes = figure.add_axes((0, 0, 1, 1))
        axes.set(xlim=(0, WIDTH), ylim=(HEIGHT, 0))
        axes.set_axis_off()
        _box(axes, 1, 1, WIDTH - 2, HEIGHT - 2, face="white", edge="#D0D7DE", rounding=10)
        _training(axes)
        _inference(axes)
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, metadata={"Date": None}, transparent=True)
        plt.close(figure)


def _training(axes: Axes) -> None:
    middle = (UPPER + LOWER) / 2
    _text(axes, 20, UPPER - 73, "Main branch: your training step as it is", color=MAIN, weight="bold")
    _text(axes, 20, LOWER + 73, "Sub branch: half of the patches are dropped", color=SUB, weight="bold")
    _scene(axes, 20, UPPER - SIDE / 2)
    _scene(axes, 20, LOWER - SIDE / 2, dropped=True)
    # One tall box: there is one model, and both branches go through it.
    _box(axes, 186, UPPER - 54, 130, LOWER - UPPER + 108, face="#F6F8FA", edge=INK)
    _text(axes, 251, middle - 10, "one model", weight="bold", align="center")
    _text(axes, 251, middle + 10, "the same weights", color=FAINT, align="center")
    for y, color, heights in ((UPPER, MAIN, (9, 34, 5, 14)), (LOWER, SUB, (16, 24, 11, 13))):
        _arrow(axes, (134, y), (182, y), color)
        axes.plot((186, 316), (y, y), color=color, linewidth=2, linestyle=(0, (2, 2)), zorder=3)
        _arrow(axes, (318, y), (350, y), color)
        _bars(axes, 358, y + 18, heights, color)
        _arrow(axes, (410, y), (446, y), color)
        _arrow(axes, (600, y), (640, middle + (y - middle) * 0.42), color)
    _text(axes, 380, UPPER - 34, "output", color=FAINT, align="center")
    _text(axes, 380, LOWER + 36, "output", color=FAINT, align="center")
    _loss(axes, UPPER, MAIN, "main loss", "with the labels")
    _loss(axes, LOWER, SUB, "sub loss", "with that target")
    # From the main output down to the sub loss: its target, through which no gradient goes.
    axes.plot((380, 380), (UPPER + 26, middle), color=INK, linewidth=1.6, zorder=3)
    axes.plot((380, 523), (middle, middle), color=INK, linewidth=1.6, zorder=3)
    _arrow(axes, (523, middle), (523, LOWER - 30), INK)
    for x in (394, 400):
        axes.plot((x - 4, x + 4), (middle + 8, middle - 8), color=INK, linewidth=1.6, zorder=4)
    _text(axes, 412, middle - 11, "target: the main output", color=INK)
    _text(axes, 412, middle + 13, "no gradient", color=FAINT)
    _box(axes, 644, middle - 40, 138, 80, face="#F6F8FA", edge=INK)
    _text(axes, 713, middle - 13, "loss", weight="bold", align="center")
    _text(axes, 713, middle + 11, "mean of the two", color=FAINT, align="center")


def _inference(axes: Axes) -> None:
    y = 404
    axes.plot((20, WIDTH - 20), (358, 358), color="#D0D7DE", linewidth=1)
    _text(axes, 20, y, "Afterwards: the plain model", weight="bold")
    _scene(axes, 252, y - 28, side=56)
    _arrow(axes, (314, y), (352, y), INK)
    _box(axes, 356, y - 22, 76, 44, face="#F6F8FA", edge=INK)
    _text(axes, 394, y, "model", align="center")
    _arrow(axes, (436, y), (474, y), INK)
    _text(axes, 484, y, "class")
    _text(axes, 560, y - 11, "no mask, no second branch,", color=FAINT)
    _text(axes, 560, y + 11, "no cost at inference", color=FAINT)


def _scene(axes: Axes, x: float, y: float, *, side: float = SIDE, dropped: bool = False) -> None:
    """A boat at sea in a square; ``dropped`` shows the patches that the sub branch doesn't see as gaps."""
    unit = side / 108
    clip = Rectangle((x, y), side, side, transform=axes.transData)

    def add(patch: Any) -> None:
        axes.add_patch(patch)
        patch.set_clip_path(clip)

    def outline(*points: tuple[float, float], color: str) -> None:
        add(Polygon([(x + a * unit, y + b * unit) for a, b in points], closed=True, color=color, linewidth=0, zorder=2))

    outline((0, 0), (108, 0), (108, 78), (0, 78), color="#BFE3F5")
    add(Circle((x + 86 * unit, y + 22 * unit), 12 * unit, color="#F2B705", linewidth=0, zorder=2))
    outline((0, 78), (0, 62), (18, 50), (36, 64), (52, 58), (70, 78), color="#8FBF8A")
    outline((0, 74), (108, 74), (108, 108), (0, 108), color="#3F7FB5")
    outline((51, 14), (54, 14), (54, 78), (51, 78), color="#5B3A21")
    outline((57, 16), (57, 70), (92, 70), color="#FFF3D6")
    outline((48, 26), (48, 70), (24, 70), color="#E4572E")
    outline((20, 76), (90, 76), (78, 93), (32, 93), color="#7A4A28")
    outline((0, 98), (26, 95), (54, 99), (82, 95), (108, 98), (108, 108), (0, 108), color="#2F6A9C")
    step = side / PATCHES
    if dropped:
        keep = sample_keep(1, PATCHES**2, 0.5, generator=torch.Generator().manual_seed(5))[0]
        for number, visible in enumerate(keep.tolist()):
            row, column = divmod(number, PATCHES)
            if not visible:
                corner = (x + column * step, y + row * step)
                axes.add_patch(Rectangle(corner, step, step, facecolor="#D5DAE0", edgecolor="none", zorder=3))
    if side == SIDE:
        for number in range(1, PATCHES):
            axes.plot((x + number * step,) * 2, (y, y + side), color="white", linewidth=1, zorder=4)
            axes.plot((x, x + side), (y + number * step,) * 2, color="white", linewidth=1, zorder=4)
    axes.add_patch(Rectangle((x, y), side, side, facecolor="none", edgecolor=LINE, linewidth=1, zorder=5))


def _loss(axes: Axes, y: float, color: str, name: str, against: str) -> None:
    _box(axes, 450, y - 27, 146, 54, face="white", edge=color)
    _text(axes, 523, y - 9, name, color=color, weight="bold", align="center")
    _text(axes, 523, y + 11, against, color=FAINT, align="center")


def _bars(axes: Axes, x: float, base: float, heights: tuple[int, ...], color: str) -> None:
    """The output: one bar a class."""
    for number, height in enumerate(heights):
        axes.add_patch(Rectangle((x + 11 * number, base - height), 8, height, color=color, linewidth=0, zorder=3))
    axes.plot((x - 3, x + 11 * len(heights)), (base, base), color=INK, linewidth=1, zorder=3)


def _box(axes: Axes, x: float, y: float, w: float, h: float, *, face: str, edge: str, rounding: float = 6) -> None:
    style = f"round,pad=0,rounding_size={rounding}"
    axes.add_patch(FancyBboxPatch((x, y), w, h, boxstyle=style, facecolor=face, edgecolor=edge, linewidth=1.4))


def _arrow(axes: Axes, start: tuple[float, float], end: tuple[float, float], color: str) -> None:
    axes.add_patch(
        FancyArrowPatch(
            start, end, arrowstyle="-|>", mutation_scale=12, color=color, linewidth=1.8, shrinkA=0, shrinkB=0, zorder=4
        )
    )


def _text(
    axes: Axes, x: float, y: float, text: str, *, color: str = INK, weight: str = "normal", align: str = "left"
) -> None:
    axes.text(x, y, text, color=color, fontsize=13, fontweight=weight, ha=align, va="center", zorder=5)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path, default=PICTURE)
    draw(parser.parse_args().output)


if __name__ == "__main__":
    main()
