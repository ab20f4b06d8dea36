"""Results of evaluations in words."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

__all__ = ["told", "told_mean"]


def told(result: dict[str, Any]) -> str:
    """One result, a line."""
    top5 = f", top-5 {result['top5']:.2f} %" if "top5" in result else ""
    return (
        f"top-1 {result['top1']:.2f} %{top5}, loss {result['loss']:.4f}, calibration error "
        f"{result['calibration_error']:.2f} % on {result['images']} images"
    )


def told_mean(results: Sequence[dict[str, Any]]) -> list[str]:
    """Mean and standard deviation (of a sample) of several results, a line; none where the images are not as many.

    Args:
        results: two or more.
    """
    if len({result["images"] for result in results}) > 1:  # other data: a mean would mix what can't be compared
        return []
    parts = []
    for key, name, digits, unit in (
        ("top1", "top-1", 2, " %"), ("top5", "top-5", 2, " %"), ("loss", "loss", 4, ""),
        ("calibration_error", "calibration error", 2, " %"),
    ):  # fmt: skip
        if all(key in result for result in results):
            values = [result[key] for result in results]
            mean, deviation = statistics.fmean(values), statistics.stdev(values)
            parts.append(f"{name} {mean:.{digits}f} +- {deviation:.{digits}f}{unit}")
    return [f"mean of {len(results)} runs: {', '.join(parts)}"]
