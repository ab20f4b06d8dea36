"""From a recipe and a machine to a plan."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from masksub.app.errors import InputError
from masksub.app.models import warmup_updates
from masksub.app.settings import Recipe

from .data import DataSize, data_size
from .hardware import Machine
from .memory import Memory, memory_of
from .shapes import Shapes, count_shapes
from .steps import Update, update_of

__all__ = ["COUNTS", "Plan", "Rates", "Total", "make_plan"]

COUNTS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
"""Numbers of GPUs in the table of a plan."""


@dataclass(frozen=True)
class Rates:
    """Operations a second that one GPU reaches, and how that is known.

    Attributes:
        plain: in a plain step.
        method: in a step of the recipe's method.
        source: where it was measured, or peak times utilisation.
        measured: which of the two.
    """

    plain: float
    method: float
    source: str
    measured: bool


@dataclass(frozen=True)
class Total:
    """A whole training.

    Attributes:
        updates: of all epochs.
        hours: of training alone, without evaluation.
        gpu_hours: of all GPUs.
        flops: operations of all GPUs.
    """

    updates: int
    hours: float
    gpu_hours: float
    flops: float


@dataclass(frozen=True)
class Plan:
    """The figures of a plan.

    Attributes:
        recipe: what is planned.
        data: images and classes.
        machine: assumptions.
        rates: operations a second of one GPU.
        shapes: counts of the model.
        memories: of one GPU, by way of training.
        updates: at the wanted number of GPUs, by way of training: "plain" and the method.
        totals: of these.
        table: for each number of GPUs that the recipe's update can be split over: memory and updates.
        checkpoint: bytes of one.
    """

    recipe: Recipe
    data: DataSize
    machine: Machine
    rates: Rates
    shapes: Shapes
    memories: dict[str, Memory]
    updates: dict[str, Update]
    totals: dict[str, Total]
    table: list[tuple[dict[str, Memory], dict[str, Update], dict[str, Total]]]
    checkpoint: int

    @property
    def memory(self) -> Memory:
        """Of one GPU, with the recipe's method."""
        return self.memories[self.recipe.method]

    @property
    def gpus(self) -> int:
        """The wanted number of GPUs."""
        return self.updates[self.recipe.method].gpus

    @property
    def available(self) -> float:
        """Bytes of a GPU that a training may use."""
        return self.machine.memory * 1e9 * (1 - self.machine.reserve)

    @property
    def fits(self) -> bool:
        """Whether the training fits in a GPU's memory."""
        return self.memory.total <= self.available

    def as_dict(self) -> dict[str, Any]:
        """For JSON: the same figures as the text, bytes and seconds without rounding."""
        return {
            "model": self.recipe.model.name,
            "method": self.recipe.method,
            "gpus": self.gpus,
            "nodes": self.machine.nodes(self.gpus),
            "data": asdict(self.data),
            "assumptions": asdict(self.machine),
            "rates": asdict(self.rates),
            "counts": asdict(self.shapes),
            "memory": {arm: {**asdict(each), "total": each.total} for arm, each in self.memories.items()},
            "memory_available": self.available,
            "fits": self.fits,
            "updates": {arm: _update(update) for arm, update in self.updates.items()},
            "totals": {arm: asdict(total) for arm, total in self.totals.items()},
            "table": [
                {
                    "gpus": next(iter(updates.values())).gpus,
                    "memory": {arm: each.total for arm, each in memories.items()},
                    "updates": {arm: _update(update) for arm, update in updates.items()},
                    "totals": {arm: asdict(total) for arm, total in totals.items()},
                }
                for memories, updates, totals in self.table
            ],
            "checkpoint_bytes": self.checkpoint,
            "checkpoint_seconds": self.checkpoint / (self.machine.disk * 1e9),
        }


def _update(update: Update) -> dict[str, Any]:
    derived = ("images", "images_per_second", "exposed", "efficiency")
    return {**asdict(update), **{name: getattr(update, name) for name in derived}}


def make_plan(
    recipe: Recipe,
    machine: Machine,
    *,
    gpus: int,
    images: int | None = None,
    classes: int | None = None,
    measured: float | None = None,
    measured_plain: float | None = None,
    measured_where: str = "given",
    shapes: Shapes | None = None,
) -> Plan:
    """Plan a training.

    Args:
        recipe: what to train.
        machine: what is assumed of the machines.
        gpus: how many.
        images: of an epoch; None: of the recipe's data.
        classes: of the data; None: of the recipe's data.
        measured: images a second of this recipe on one device; None: peak times utilisation.
        measured_plain: the same of the plain method.
        measured_where: on what they were measured, for the text.
        shapes: counts of the same model and batch that were made before; None: count.

    Raises:
        InputError: numbers that do not go together, or a model that can't be built or masked.
    """
    if gpus < 1:
        raise InputError(f"--gpus {gpus}: must be at least 1")
    if gpus > machine.per_node and gpus % machine.per_node:
        raise InputError(
            f"--gpus {gpus}: more than one node of {machine.per_node} GPUs must be a multiple of that; see --per-node"
        )
    for name, value in (("images", images), ("classes", classes)):
        if value is not None and value < 1:
            raise InputError(f"--{name} {value}: must be at least 1")
    for name, rate in (("measured", measured), ("measured-plain", measured_plain)):
        if rate is not None and not 0 < rate < float("inf"):
            raise InputError(f"--{name} {rate:g}: images a second must be above 0")
    parts = _parts(recipe, gpus)
    data = data_size(recipe, images, classes)
    counted = shapes or count_shapes(recipe, data.classes)
    rates = _rates(recipe, counted, machine, measured, measured_plain, measured_where)

    def at(count: int, batch: int, parts: int) -> tuple[dict[str, Memory], dict[str, Update], dict[str, Total]]:
        updates = {
            arm: update_of(arm, recipe, counted, machine, rate=rate, gpus=count, batch=batch, parts=parts)
            for arm, rate in (("plain", rates.plain), (recipe.method, rates.method))
        }
        totals = {arm: _total(recipe, data, counted, update) for arm, update in updates.items()}
        memories = {arm: memory_of(arm, recipe, counted, gpus=count, batch=batch, parts=parts) for arm in updates}
        return memories, updates, totals

    memories, updates, totals = at(gpus, recipe.train.batch_size, parts)
    if updates[recipe.method].images > data.images:
        raise InputError(
            f"--gpus {gpus}: an update of {updates[recipe.method].images:,} images is more than the {data.images:,} "
            f"of an epoch"
        )
    per_epoch = data.images // updates[recipe.method].images
    warmup_updates(recipe, totals[recipe.method].updates, per_epoch)  # raises, as training would
    table = [at(count, *split) for count in COUNTS if (split := _split(recipe, count, data.images)) is not None]
    average = counted.weights if recipe.train.ema_decay is not None else 0
    checkpoint = counted.weights + average + counted.optimizer
    return Plan(recipe, data, machine, rates, counted, memories, updates, totals, table, checkpoint)


def _parts(recipe: Recipe, gpus: int) -> int:
    try:
        return recipe.train.parts(gpus)
    except ValueError as error:
        wanted, size = recipe.train.global_batch_size or 0, recipe.train.batch_size
        works = [count for count in range(1, wanted // size + 1) if wanted % (size * count) == 0]
        below = [count for count in works if count < gpus][-1:]
        above = [count for count in works if count > gpus][:1]
        each = _largest(recipe, gpus)
        advice = [f"{' or '.join(map(str, below + above))} GPUs work"] if works else []
        if each:
            advice.append(f"train.batch_size={each} works with {gpus}")
        raise InputError(f"--gpus {gpus}: {error}: {'; '.join(advice) or 'no number of GPUs works'}") from error


def _split(recipe: Recipe, gpus: int, images: int) -> tuple[int, int] | None:
    """Images at once and parts for the table: an update of fixed size gets smaller batches where GPUs are many."""
    wanted, size = recipe.train.global_batch_size, recipe.train.batch_size
    if wanted is None:
        fits = gpus * size * recipe.train.accumulate <= images
        return (size, recipe.train.accumulate) if fits else None
    each = _largest(recipe, gpus)
    return None if each is None or wanted > images else (each, wanted // (each * gpus))


def _largest(recipe: Recipe, gpus: int) -> int | None:
    """The largest batch, up to the recipe's, of which ``gpus`` make an update of the wanted images."""
    wanted, even = recipe.train.global_batch_size or 0, bool(recipe.augment.mixup or recipe.augment.cutmix)
    sizes = range(recipe.train.batch_size, 0, -1)
    return next((size for size in sizes if wanted % (size * gpus) == 0 and not (even and size % 2)), None)


def _rates(
    recipe: Recipe, shapes: Shapes, machine: Machine, measured: float | None, plain: float | None, where: str
) -> Rates:
    """Operations a second. A measured figure of one way of training stands in for the other, too."""
    if measured is None and plain is None:
        rate = machine.peak * 1e12 * machine.utilisation
        return Rates(rate, rate, f"{machine.peak:g} TFLOP/s x {machine.utilisation:g}", False)
    method_rate = None if measured is None else measured * (shapes.main + shapes.sub)
    plain_rate = None if plain is None else plain * shapes.plain
    told = [
        f"{value:g} images/s of {name} on one device"
        for name, value in ((recipe.method, measured), ("plain", plain))
        if value is not None
    ]
    source = f"{' and '.join(told)}, {where}"
    return Rates(plain_rate or method_rate or 0.0, method_rate or plain_rate or 0.0, source, True)


def _total(recipe: Recipe, data: DataSize, shapes: Shapes, update: Update) -> Total:
    updates = max(1, round(recipe.train.epochs * (data.images // update.images)))
    hours = updates * update.seconds / 3600
    operations = shapes.plain if update.arm == "plain" else shapes.main + shapes.sub
    return Total(updates, hours, hours * update.gpus, updates * update.images * operations)
