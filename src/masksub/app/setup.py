"""Everything that a training run needs, made from its recipe. Wrong input ends here, before anything is written."""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from timm.utils import ModelEmaV3
from torch import Tensor, nn

from masksub.core.branches import Branch
from masksub.core.methods import METHODS
from masksub.core.seeds import mix
from masksub.core.step import TwoBranchStep

from .attention import settle_attention
from .cost import FlopTable
from .data import EvalBatches, TrainBatches, open_data
from .data.held import choose_holding
from .models import create_criterion, create_model, create_optimizer, create_schedule
from .settings import Recipe
from .sharding import prepare, shards

__all__ = ["Setup", "set_up"]


@dataclass
class Setup:
    """The objects of one run.

    Attributes:
        recipe: with the choices that were made here: attention, and where images are held.
        classes: names; the index is the label.
        images: of the training and of the validation data.
        batches: of training, for this process.
        eval_batches: of validation, for this process.
        plain_model: the model itself.
        model: the same in what makes it run on several processes, or compiled.
        sub: what the sub branch changes; its ratio follows the schedule.
        step: the two-branch step.
        optimizer: as Accelerate wraps it.
        schedule: of the learning rate, by update.
        ema: moving average of the weights, if there is one.
        flops: of an update.
        parts: batches of this process that make one update.
        images_per_update: on all processes together.
        updates_per_epoch: a whole number; what does not fill an update is left out.
        updates: of the whole training.
    """

    recipe: Recipe
    classes: list[str]
    images: tuple[int, int]
    batches: TrainBatches
    eval_batches: EvalBatches
    plain_model: nn.Module
    model: nn.Module
    sub: Branch
    step: TwoBranchStep
    optimizer: Any
    schedule: Any
    ema: ModelEmaV3 | None
    flops: FlopTable
    parts: int
    images_per_update: int
    updates_per_epoch: int
    updates: int

    def settings_at(self, progress: float) -> tuple[float, float]:
        """Ratio and weight in force at this point of training, progress from 0 to 1."""
        sub = self.recipe.sub
        return METHODS[self.recipe.method].settings(sub.ratio_schedule(progress), sub.weight_schedule(progress))

    def stream(self, update: int) -> Generator[tuple[Tensor, Tensor], None, None]:
        """Batches of this process without end, from the first one of an update on."""
        epoch, within = divmod(update, self.updates_per_epoch)
        start = within * self.parts
        while True:
            yield from self.batches.epoch(epoch, start=start)
            epoch, start = epoch + 1, 0


def set_up(
    recipe: Recipe,
    accelerator: Accelerator,
    *,
    restored: bool,
    reading: Callable[[int, int], None],
    tell: Callable[[str], None],
) -> Setup:
    """Open the data and build model, optimizer and step.

    Args:
        recipe: of the run.
        accelerator: device, precision and processes.
        restored: weights will come from a checkpoint, so that those to start from are not asked for again.
        reading: called with (done, total) while images are decoded to be held.
        tell: is told what is worth knowing about the weights that training starts from.

    Raises:
        InputError: anything in the recipe that can't be had.
    """
    method, wanted = METHODS[recipe.method], recipe.sub
    parts = recipe.train.parts(accelerator.num_processes)

    # 1. Data and model.
    train_source, val_source = open_data(recipe.data, recipe.seed, reading)
    classes = train_source.classes
    torch.manual_seed(mix(recipe.seed, "weights"))
    model = create_model(recipe.changed("model", weights=None) if restored else recipe, len(classes), tell)
    recipe = settle_attention(recipe, model, accelerator)
    sub = method.branch(0.0, unit=wanted.unit, p=wanted.p, efficient=wanted.efficient, bn=wanted.bn)
    criterion = create_criterion(recipe)
    flops = FlopTable(model, criterion, recipe, len(classes))
    start = method.settings(wanted.ratio_schedule(0.0), wanted.weight_schedule(0.0))
    flops.per_image(*start)  # also the first try of the masked forward, on shapes alone

    # 2. Batches.
    place = {"rank": accelerator.process_index, "world": accelerator.num_processes, "device": accelerator.device}
    if recipe.data.cache == "auto":
        # Held images are augmented by other random numbers, so all processes must decide alike.
        choice = choose_holding(len(train_source), recipe.data, accelerator.device, recipe.augment.per_image)
        choices = gather_object([choice])
        recipe = recipe.changed("data", cache="none" if "none" in choices else choice)
    batches = TrainBatches(
        train_source,
        recipe.data,
        recipe.augment,
        seed=recipe.seed,
        batch_size=recipe.train.batch_size,
        accumulate=parts,
        num_classes=len(classes),
        smoothing=recipe.loss.smoothing,
        progress=reading,
        **place,
    )
    recipe = recipe.changed("data", cache=batches.held)
    eval_size = recipe.train.eval_batch_size or recipe.train.batch_size
    eval_batches = EvalBatches(val_source, recipe.data, recipe.augment, batch_size=eval_size, progress=reading, **place)
    updates_per_epoch = batches.batches_per_epoch // parts
    updates = max(1, round(recipe.train.epochs * updates_per_epoch))

    if recipe.train.shard == "full" and not shards(accelerator, recipe):
        tell("train.shard = 'full': there is one process, so that the model stays whole")

    # 3. Moving average, processes, optimizer, schedule, and the step.
    ema = None
    if recipe.train.ema_decay is not None:
        # In one operation for all tensors shards would meet statistics of batch norm, which are whole.
        together = not shards(accelerator, recipe)
        ema = ModelEmaV3(model, decay=recipe.train.ema_decay, use_warmup=True, foreach=together)
    prepared: Any = prepare(accelerator, recipe, model, None if ema is None else ema.module)
    optimizer = accelerator.prepare_optimizer(create_optimizer(recipe, model))  # of shards, where there are any
    schedule = create_schedule(recipe, optimizer, updates, updates_per_epoch)
    if recipe.train.compile:
        prepared = torch.compile(prepared)
    return Setup(
        recipe=recipe,
        classes=classes,
        images=(len(train_source), len(val_source)),
        batches=batches,
        eval_batches=eval_batches,
        plain_model=model,
        model=prepared,
        sub=sub,
        step=TwoBranchStep(prepared, criterion, sub=sub, mode=recipe.sub.mode, **method.step_arguments()),
        optimizer=optimizer,
        schedule=schedule,
        ema=ema,
        flops=flops,
        parts=parts,
        images_per_update=recipe.train.batch_size * parts * accelerator.num_processes,
        updates_per_epoch=updates_per_epoch,
        updates=updates,
    )
