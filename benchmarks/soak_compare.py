"""What must be equal, bit for bit, in a run that was killed and resumed and in its unbroken twin.

Left out are the figures that a clock, a sensor or the machine gives: seconds, images per second, energy, memory.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

__all__ = ["checkpoints_of", "differences", "metrics_before", "of_metrics", "unequal_checkpoint"]

MEASURED = ("second", "energy", "memory", "data_wait_share")
"""Parts of the names of figures that are measured."""


def checkpoints_of(run: Path) -> dict[int, Path]:
    """The complete checkpoints of a run by update, the newest last."""
    found = (path for path in (run / "checkpoints").glob("update-*") if (path / "manifest.json").is_file())
    return {int(path.name.removeprefix("update-")): path for path in sorted(found)}


def of_metrics(run: Path) -> list[dict[str, Any]]:
    """The records of metrics.jsonl; a last line that is half written ends them."""
    path, records = run / "metrics.jsonl", []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return records


def metrics_before(run: Path, update: int) -> list[dict[str, Any]]:
    """The records before an update, without what is measured."""
    return [_without_measured(record) for record in of_metrics(run) if record["update"] < update]


def unequal_checkpoint(one: Path, two: Path) -> str | None:
    """What differs between two checkpoints: weights, moving average, optimizer, place in training; None if nothing."""
    names = sorted({path.name for path in (*one.iterdir(), *two.iterdir())} - {"manifest.json"})  # it has checksums
    for name in names:
        if not ((one / name).is_file() and (two / name).is_file()):
            return f"{name} is in one of them only"
        if why := _unequal(_content(one / name), _content(two / name), name):
            return why
    return None


def differences(broken: Path, unbroken: Path) -> list[str]:
    """All that differs at the end of two runs, and what a killed one may have left behind; empty if all is well."""
    found = []
    ends = checkpoints_of(broken), checkpoints_of(unbroken)
    if not all(ends):
        return ["a run without a checkpoint"]
    last = [max(each) for each in ends]
    if last[0] != last[1]:
        found.append(f"last checkpoint: update {last[0]} and {last[1]}")
    elif why := unequal_checkpoint(ends[0][last[0]], ends[1][last[1]]):
        found.append(f"last checkpoint: {why}")
    pairs = {
        "metrics.jsonl": [of_metrics(run) for run in (broken, unbroken)],
        "summary.json": [json.loads((run / "summary.json").read_text()) for run in (broken, unbroken)],
    }
    for name, (one, two) in pairs.items():
        if why := _unequal(_without_measured(one), _without_measured(two), name):
            found.append(why)
    found += [f"left over: {path.name}" for path in sorted(broken.rglob("*writing*"))]
    return found


def _content(file: Path) -> Any:
    if file.suffix == ".safetensors":
        return load_file(file)
    if file.suffix == ".json":
        return _without_measured(json.loads(file.read_text(encoding="utf-8")))
    return _without_measured(torch.load(file, map_location="cpu", weights_only=True))


def _without_measured(value: Any) -> Any:
    if isinstance(value, dict):
        kept = {k: v for k, v in value.items() if not any(part in str(k) for part in MEASURED)}
        return {key: _without_measured(each) for key, each in kept.items()}
    if isinstance(value, (list, tuple)):
        return [_without_measured(each) for each in value]
    return value


def _unequal(one: Any, two: Any, place: str) -> str | None:
    """Where two nested values differ first. Tensors are compared as bytes: -0.0 is not 0.0, and NaN equals itself."""
    if isinstance(one, dict) and isinstance(two, dict):
        if one.keys() != two.keys():
            return f"{place}: {sorted(map(str, one.keys() ^ two.keys()))} in one of them only"
        pairs: Any = ((f"{place}/{key}", one[key], two[key]) for key in one)
    elif isinstance(one, list) and isinstance(two, list):
        if len(one) != len(two):
            return f"{place}: {len(one)} and {len(two)} entries"
        pairs = ((f"{place}/{index}", *both) for index, both in enumerate(zip(one, two)))
    elif isinstance(one, torch.Tensor) and isinstance(two, torch.Tensor):
        same = one.dtype == two.dtype and one.shape == two.shape
        same = same and torch.equal(one.flatten().view(torch.uint8), two.flatten().view(torch.uint8))
        return None if same else f"{place}: other values"
    else:
        return None if type(one) is type(two) and repr(one) == repr(two) else f"{place}: {one!r} and {two!r}"
    return next((why for at, a, b in pairs if (why := _unequal(a, b, at))), None)
