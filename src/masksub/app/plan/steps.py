"""Time of an update: computing from operations, communication from bytes and bandwidth, and how they overlap.

An update is a row of phases: forward and backward of each branch, for each of its batches. What is communicated in a
phase runs beside its computing, so a phase takes the longer of the two.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from masksub.app.settings import Recipe

from .hardware import Machine
from .shapes import Shapes

__all__ = ["Phase", "Update", "all_gather_seconds", "all_reduce_seconds", "update_of"]


@dataclass(frozen=True)
class Phase:
    """Forward or backward of one branch.

    Attributes:
        name: for people.
        compute: seconds.
        communication: seconds, if nothing else ran.
    """

    name: str
    compute: float
    communication: float

    @property
    def seconds(self) -> float:
        """Computing and communication beside each other."""
        return max(self.compute, self.communication)


@dataclass(frozen=True)
class Update:
    """An update of one way of training on a number of GPUs.

    Attributes:
        arm: "plain", or the recipe's method.
        gpus: how many.
        batch: images at once on each.
        parts: batches of each that make the update.
        compute: seconds of computing.
        communication: seconds of communication, if nothing else ran.
        seconds: of the update.
        sent: bytes that each GPU sends in the update.
    """

    arm: str
    gpus: int
    batch: int
    parts: int
    compute: float
    communication: float
    seconds: float
    sent: float

    @property
    def images(self) -> int:
        """Images of the update, on all GPUs."""
        return self.gpus * self.batch * self.parts

    @property
    def images_per_second(self) -> float:
        """Of all GPUs together."""
        return self.images / self.seconds

    @property
    def exposed(self) -> float:
        """Seconds of communication that no computing hides."""
        return self.seconds - self.compute

    @property
    def efficiency(self) -> float:
        """Images a second over those of as many single GPUs."""
        return self.compute / self.seconds


def all_reduce_seconds(size: float, gpus: int, bandwidth: float) -> float:
    """A ring: each GPU sends ``2 (n - 1) / n`` of the bytes over the slowest link."""
    return 2 * all_gather_seconds(size, gpus, bandwidth)


def all_gather_seconds(size: float, gpus: int, bandwidth: float) -> float:
    """A ring: each GPU sends ``(n - 1) / n`` of the bytes; a reduce-scatter takes as long."""
    return (gpus - 1) / gpus * size / bandwidth


def update_of(
    arm: str, recipe: Recipe, shapes: Shapes, machine: Machine, *, rate: float, gpus: int, batch: int, parts: int
) -> Update:
    """Time of one update.

    Args:
        arm: "plain" for the same recipe without sub branch, else the recipe's own method.
        recipe: how it is sharded.
        shapes: operations and bytes.
        machine: links.
        rate: operations a second of one GPU, in fact reached.
        gpus: how many.
        batch: images at once on each.
        parts: batches of each that make the update.
    """
    sharded = recipe.train.shard == "full" and gpus > 1
    bandwidth = machine.bandwidth(gpus)
    compute = communication = seconds = 0.0
    for part in range(min(parts, 2)):  # all but the last are alike
        last = part == 1 or parts == 1
        times = 1 if last else parts - 1
        passes = list(_passes(arm, shapes))
        for number, (name, operations) in enumerate(passes):
            # What is in no block stays gathered from a forward to the end of its backward.
            gathered = shapes.gradients - (shapes.rest if name.endswith("backward") else 0)
            wait = all_gather_seconds(gathered, gpus, bandwidth) if sharded else 0.0
            if last and number == len(passes) - 1:
                one = all_gather_seconds(shapes.gradients, gpus, bandwidth)
                wait += one if sharded else 2 * one
            phase = Phase(name, operations * batch / rate, wait)
            compute += times * phase.compute
            communication += times * phase.communication
            seconds += times * phase.seconds
    return Update(arm, gpus, batch, parts, compute, communication, seconds, sent=communication * bandwidth)


def _passes(arm: str, shapes: Shapes) -> Iterator[tuple[str, float]]:
    """Name and operations of each forward and backward of a batch, for one image."""
    share = shapes.backward
    plain, teacher = arm == "plain", shapes.main_forward_only and arm != "plain"
    main, sub = (shapes.plain, 0.0) if plain else (shapes.main, shapes.sub)
    joint = not plain and main > 0 and sub > 0 and len(shapes.held.kept) == 1 and not teacher
    if main:
        yield "main forward", main if teacher else main * (1 - share)
    if main and not (teacher or joint):
        yield "main backward", main * share
    if sub:
        yield "sub forward", sub * (1 - share)
        yield "sub backward", sub * share
    if joint:  # one backward goes through both graphs, the last one first
        yield "main backward", main * share
