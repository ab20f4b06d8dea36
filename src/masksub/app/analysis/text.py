"""An analysis for people, and its files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from masksub.app.runs import write_text_atomically

__all__ = ["text", "write_analysis"]

NAMES = {"main": "main", "relaxed": "masked, relaxed target", "labels": "masked, true labels"}
"""Key of a result -> what people call it."""


def write_analysis(result: dict[str, Any], folder: Path | None = None) -> tuple[Path, Path]:
    """Write ``update-NNNNNN.json`` and ``.png``; those of an earlier analysis of the same update are replaced.

    Args:
        result: what ``analyze`` returned.
        folder: where they go, made if it is not there; ``analysis`` in the run folder if None.

    Returns:
        Paths of both files.

    Raises:
        OSError: the folder can't be written to.
    """
    from .figure import draw_analysis

    folder = Path(result["run"]) / "analysis" if folder is None else folder
    folder.mkdir(parents=True, exist_ok=True)
    stem = f"update-{result['checkpoint']['update']:06d}"
    figures, picture = folder / f"{stem}.json", folder / f"{stem}.png"
    write_text_atomically(figures, json.dumps(result, indent=2, allow_nan=False) + "\n")
    writing = folder / f".{picture.name}.writing"
    draw_analysis(result, writing)
    writing.replace(picture)
    return figures, picture


def text(result: dict[str, Any]) -> str:
    """The figures of an analysis in a few lines, without a judgement."""
    checkpoint, seen, points = result["checkpoint"], result["evaluation"], result["evaluation"]["points"]
    epoch = "" if checkpoint["epoch"] is None else f", epoch {checkpoint['epoch']:g}"
    lines = [
        f"{result['run']}: {result['method']}, update {checkpoint['update']}{epoch}, run {checkpoint['status']}",
        *(f"note: {note}" for note in result["notes"]),
        f"On {seen['images']} of {seen['of_images']} validation images, mean over draws of masks:",
        f"  {'mask ratio':>10} {'top-1 %':>8} {'same as whole %':>16} {'KL nats':>8}",
    ]
    for point in points:
        values = [point[key]["mean"] for key in ("top1_percent", "agreement_percent", "kl")]
        lines.append(
            f"  {point['ratio']:10g} {_number(values[0], 8, '.2f')} {_number(values[1], 16, '.2f')} "
            f"{_number(values[2], 8, '.3f')}"
        )
    return "\n".join([*lines, *_gradients(result["gradients"]), *_sharpness(result["sharpness"])])


def _gradients(found: dict[str, Any]) -> list[str]:
    lines = [
        f"Gradients on {found['batches']} batches of {found['images_per_batch']} training images, mean (standard "
        f"deviation over batches); 'between': mean cosine of different batches:",
        f"  {'branch':24} {'ratio':>5} {'norm':>17} {'cosine with main':>17} {'between':>8}",
        _branch(NAMES["main"], None, found["main"]),
    ]
    for each in found["at_ratio"]:
        lines += [_branch(NAMES[key], each["ratio"], each[key]) for key in ("relaxed", "labels")]
    run = found["run"]
    if run["sub"] is None:
        lines.append("  this run's update has no sub branch")
    else:
        share = run["sub"]["share_of_update"]
        known = share is not None and share["mean"] is not None
        part = f"; its part of the update {round(100 * share['mean']) + 0} %" if known else ""
        lines += [
            _branch("this run's sub branch", run["ratio"], run["sub"]),
            f"  this run weighs it by {run['weight']:g}{part}",
        ]
    return lines


def _branch(name: str, ratio: float | None, branch: dict[str, Any]) -> str:
    at = "" if ratio is None else f"{ratio:g}"
    return (
        f"  {name:24} {at:>5} {_spread(branch['norm'])} {_spread(branch.get('cosine_with_main'))} "
        f"{_number(branch['cosine_between_batches'], 8, '.2f')}"
    )


def _sharpness(found: dict[str, Any]) -> list[str]:
    lines = [f"Curvature of each loss along its own gradient (masked at ratio {found['ratio']:g}):"]
    for key, name in NAMES.items():
        lines.append(f"  {name:24} {_number(found[key]['curvature'], 10, '.4g')}")
    return lines


def _spread(values: dict[str, Any] | None) -> str:
    if values is None or values["mean"] is None:
        return f"{'-':>17}"
    std = "" if values["std"] is None else f" ({values['std']:.2g})"
    return f"{values['mean']:.3g}{std}".rjust(17)


def _number(value: float | None, width: int, how: str) -> str:
    return f"{'-':>{width}}" if value is None else f"{value:{width}{how}}"
