"""What masksub would do with a model: how and where it is masked, and what that costs."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .adapter import Grid, find_adapter, grid_of
from .batch_norm import batch_norms
from .branches import Branch, MaskSub
from .call import Call, call_of
from .copies import real_copy
from .dropouts import dropout_sites
from .flops import step_flops
from .hints import hint
from .masking import keep_count
from .measurement import paired_seconds, peak_memory
from .paths import find_paths
from .residual import exits_of
from .step import TwoBranchStep
from .wrappers import unwrap

__all__ = ["Inspection", "inspect"]

REPEATS = 5
"""Pairs of steps that are timed."""


@dataclass
class Inspection:
    """What ``inspect`` found; a value that could not be had is None, and a warning says why.

    Attributes:
        model: its class.
        branch: the sub branch that was looked at.
        family: the adapter that knows the model.
        how: "drop", "fill", "replace" or "pixels".
        where: the place.
        why: one sentence.
        units: maskable units of one input; for texts, tokens of the longest one; 0 for branches that mask nothing.
        visible: how many of them stay; None for texts, which differ, and for branches that mask nothing.
        prefix: tokens before the units that are never masked.
        flops_plain: operations of a plain step for one input, forward and backward.
        flop_ratio: two-branch step / plain step, operations.
        seconds_plain: of a plain step of the example batch, median.
        time_ratio: two-branch step / plain step, median over pairs of neighbouring steps.
        memory_ratio: peak of what each holds, weights not counted.
        drop_paths: residual branches that PathSub drops.
        drop_paths_on_part: those of them that can be run on a part of the batch.
        dropouts: paths of what DropSub drops.
        batch_norms: paths of layers with running statistics.
        warnings: what a user should know.
    """

    model: str
    branch: str
    family: str
    how: str
    where: str
    why: str
    units: int
    visible: int | None
    prefix: int
    flops_plain: float | None = None
    flop_ratio: float | None = None
    seconds_plain: float | None = None
    time_ratio: float | None = None
    memory_ratio: float | None = None
    drop_paths: int = 0
    drop_paths_on_part: int = 0
    dropouts: list[str] = field(default_factory=list)
    batch_norms: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """All values, for JSON."""
        return dataclasses.asdict(self)

    def __str__(self) -> str:
        def cost(value: float | None) -> str:
            return "not known" if value is None else f"{value:.2f} x a plain step"

        differs = "differs by text" if self.units else "all, nothing is masked"
        visible = differs if self.visible is None else f"{self.visible} of {self.units}"
        rows = [
            ("model", self.model),
            ("sub branch", self.branch),
            ("family", self.family),
            ("how", f"{_HOW[self.how]}: {self.why}"),
            ("where", self.where),
            ("visible units", f"{visible}, and {self.prefix} prefix tokens"),
            ("operations", cost(self.flop_ratio) + _in_units(self.flops_plain)),
            ("time, measured", cost(self.time_ratio) + _milliseconds(self.seconds_plain)),
            ("peak memory", cost(self.memory_ratio)),
            (
                "residual branches",
                f"{self.drop_paths}, {self.drop_paths_on_part} of them on a part of the batch (PathSub)",
            ),
            ("dropouts", f"{len(self.dropouts)} on outputs of attention and MLP (DropSub)"),
            ("batch norm", f"{len(self.batch_norms)} layers with running statistics"),
        ]
        lines = [f"{name:18} {value}" for name, value in rows]
        return "\n".join(lines + [f"warning: {text}" for text in self.warnings])


_HOW = {
    "drop": "tokens dropped",
    "fill": "cells filled",
    "replace": "tokens replaced by the mask token",
    "pixels": "pixels blanked",
}


def _in_units(flops: float | None) -> str:
    return "" if flops is None else f" ({flops / 1e9:.3g} GFLOPs an input)"


def _milliseconds(seconds: float | None) -> str:
    return "" if seconds is None else f" ({seconds * 1e3:.3g} ms a batch)"


def inspect(
    model: nn.Module, example: Tensor | Mapping[str, Any], *, sub: Branch | None = None, measure: bool = True
) -> Inspection:
    """Find out how a model will be masked and what a two-branch step costs. The model is left alone.

    Args:
        model: a classifier, as ``TwoBranchStep`` takes it.
        example: a batch as the step takes it: a tensor, or a mapping of keyword arguments. Its size is that of the
            measurement.
        sub: the sub branch, ``MaskSub(0.5)`` if None.
        measure: run plain and two-branch steps on a copy of the model, for time and memory.

    Raises:
        ValueError: nothing of this model can be masked; the message says why.
    """
    sub = MaskSub(0.5) if sub is None else sub
    inner, call = unwrap(model), call_of(model, example)
    adapter = find_adapter(inner)
    masks = next((part for part in getattr(sub, "parts", (sub,)) if isinstance(part, MaskSub)), None)
    grid = grid_of(adapter, inner, call, masks.unit) if masks else Grid(0, 0)
    ratio = masks.ratio if masks else 0.0
    found = Inspection(
        model=type(inner).__qualname__,
        branch=repr(sub),
        family=adapter.name,
        how=adapter.how,
        where=adapter.where,
        why=adapter.why(inner),
        units=grid.units,
        visible=keep_count(grid.units, ratio) if masks and grid.maskable is None else None,
        prefix=adapter.prefix(inner),
        dropouts=dropout_sites(inner),
        batch_norms=batch_norms(inner),
    )
    if masks is not None:
        found.warnings += _warnings(inner, found, ratio)
    _count_paths(found, inner, call)
    _count_operations(found, inner, example, sub)
    if measure:
        _measure(found, inner, example, sub)
    return found


def _warnings(model: nn.Module, found: Inspection, ratio: float) -> list[str]:
    texts = []
    if found.visible is not None and ratio > 0:
        masked = 1 - found.visible / found.units
        if abs(masked - ratio) > 0.05:
            texts.append(f"with {found.units} units, ratio {ratio} masks {masked:.0%}")
    if found.how != "drop":
        texts.append("nothing is saved: the sub branch costs as much as the main branch")
    if found.how == "pixels" and (text := hint(model)) is not None:
        texts.append(text)
    if found.batch_norms:
        texts.append('running statistics of batch norm see masked inputs too (the paper\'s way); bn="main" spares them')
    return texts


def _count_paths(found: Inspection, model: nn.Module, call: Call) -> None:
    if not exits_of(model):
        return
    try:
        residuals = find_paths(model, call, (), efficient=True).residuals
    except ValueError:  # ours: the step would fail too
        raise
    except Exception as error:  # whatever a model raises
        found.warnings.append(f"residual branches can't be found: {_first_line(error)}")
        return
    found.drop_paths = len(residuals)
    found.drop_paths_on_part = sum(residual.entry is not None for residual in residuals)


def _step(model: nn.Module, sub: Branch, weight: float) -> Callable[[Any], object]:
    """A step for inputs of any kind, all of class 0."""
    step = TwoBranchStep(model, F.cross_entropy, sub=sub, weight=weight)

    def run(x: Any) -> object:
        first = call_of(model, x).x
        return step(x, torch.zeros(len(first), dtype=torch.long, device=first.device))

    return run


def _count_operations(found: Inspection, model: nn.Module, example: Any, sub: Branch) -> None:
    size = len(call_of(model, example).x)

    def count(weight: float) -> int:
        def run(m: nn.Module, x: Any) -> object:
            return _step(m, sub, weight)(x)

        try:
            return step_flops(model, run, example)
        except (RuntimeError, NotImplementedError):  # the model needs values
            return step_flops(model, run, example, meta=False)

    try:
        plain, both = count(0.0), count(0.5)
    except ValueError:  # ours: the step would fail too
        raise
    except Exception as error:  # whatever a model raises
        found.warnings.append(f"operations can't be counted: {_first_line(error)}")
        return
    found.flops_plain, found.flop_ratio = plain / size, both / plain if plain else None


def _measure(found: Inspection, model: nn.Module, example: Any, sub: Branch) -> None:
    trial = real_copy(model).train()
    device = next(trial.parameters()).device

    def runs(weight: float) -> Callable[[], object]:
        step = _step(trial, sub, weight)

        def run() -> None:
            trial.zero_grad(set_to_none=True)
            step(example)

        return run

    plain, both = runs(0.0), runs(0.5)
    pairs = paired_seconds(plain, both, REPEATS, device)
    found.seconds_plain = statistics.median(one for one, _ in pairs)
    found.time_ratio = statistics.median(two / one for one, two in pairs)
    if found.flop_ratio is not None and found.time_ratio > 1.15 * found.flop_ratio:
        found.warnings.append(
            f"time is {found.time_ratio:.2f} x where operations are {found.flop_ratio:.2f} x: not all that is saved in "
            f"arithmetic is saved in time on this machine at this size"
        )
    memory = []
    for run in (plain, both):
        trial.zero_grad(set_to_none=True)
        memory.append(peak_memory(run, device))
    found.memory_ratio = memory[1] / memory[0] if memory[0] else None


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
