"""What an analysis of a run works on: the weights of one checkpoint, and some images of the run's own data."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from masksub.app.checkpoint import Checkpoint, damage, latest, load_weights
from masksub.app.data import Source, TrainBatches
from masksub.app.data.sources import View
from masksub.app.errors import InputError
from masksub.app.models import create_model
from masksub.app.progress import Reporter
from masksub.app.runs import RunFolder
from masksub.app.settings import Recipe
from masksub.core.methods import METHODS
from masksub.core.seeds import generator, mix

__all__ = ["load_models", "place_in_training", "some_images", "training_batches"]

MOST_BATCHES, FEWEST_BATCHES = 8, 4
"""Batches of training images: held in memory, so not more; and no fewer where images allow it, for the spread."""


def load_models(
    run: RunFolder, recipe: Recipe, classes: int, update: int | None, reporter: Reporter
) -> tuple[nn.Module, nn.Module, Checkpoint]:
    """The model with the weights of a checkpoint.

    Args:
        run: its folder.
        recipe: of the run.
        classes: how many there are.
        update: number of updates of the checkpoint; the last whole one if None.
        reporter: told of damaged checkpoints that are passed over.

    Returns:
        The model as it is trained, the model as it is evaluated (with the moving average of the weights; the same
        object if there is none), and the checkpoint.

    Raises:
        InputError: no such checkpoint, or it is damaged.
    """
    tries = 3
    while True:
        chosen = _checkpoint(run, update, reporter)
        try:
            trained = evaluated = create_model(recipe.changed("model", weights=None), classes)
            load_weights(trained, chosen.path / "model.safetensors")
            if chosen.weights.name != "model.safetensors":
                evaluated = create_model(recipe.changed("model", weights=None), classes)
                load_weights(evaluated, chosen.weights)
            return trained, evaluated, chosen
        except InputError:
            # A run that is still training removes old checkpoints, perhaps this one a moment ago.
            tries -= 1
            if tries == 0 or chosen.path.exists():
                raise


def _checkpoint(run: RunFolder, update: int | None, reporter: Reporter) -> Checkpoint:
    if update is not None:
        path = run.checkpoints / f"update-{update:08d}"
        if not path.is_dir():
            there = ", ".join(str(int(p.name[7:])) for p in sorted(run.checkpoints.glob("update-*"))) or "none"
            raise InputError(f"checkpoint = {update}: {run.path} has no checkpoint of that update; there are: {there}")
        if (why := damage(path)) is not None:
            raise InputError(f"checkpoint = {update}: {path} can't be used: {why}")
        return Checkpoint(path, update)
    refused: list[str] = []
    last = latest(run.checkpoints, refused.append)
    if last is None:
        raise InputError(f"{run.path} has no checkpoint to use: {'; '.join(refused) or 'none has been written'}")
    for each in refused:
        reporter.warn(f"{each}; {last.path} is used")
    return last


def place_in_training(run: RunFolder, recipe: Recipe, update: int) -> dict[str, Any]:
    """Where an update stands in training.

    Returns:
        ``epoch`` (None where no line of metrics tells how long one is), and ``mask_ratio`` and ``weight`` in force, by
        the last line of metrics up to there; those of the start where there is none.
    """
    found: dict[str, Any] | None = None
    per_epoch = None
    for record in run.metrics():
        per_epoch = record["update"] / record["epoch"] if record["epoch"] else per_epoch
        if record["update"] <= update:
            found = record
    if found is not None:
        ratio, weight = found["mask_ratio"], found["weight"]
    else:
        sub = recipe.sub
        ratio, weight = METHODS[recipe.method].settings(sub.ratio_schedule(0.0), sub.weight_schedule(0.0))
    return {"epoch": update / per_epoch if per_epoch else None, "mask_ratio": ratio, "weight": weight}


def some_images(source: Source, count: int, seed: int, what: str, notes: list[str]) -> Source:
    """So many images of a source, drawn by ``seed``: a folder's first ones would all be of one class.

    They stay in the source's order. All are taken if there are no more, and ``notes`` gets a line if there are fewer.
    """
    if count >= len(source):
        if count > len(source):
            notes.append(f"{count} {what} images were asked for; there are {len(source)}, all of them are used")
        return source
    order = torch.randperm(len(source), generator=generator(seed, "analyze", what))
    indices = order[:count].sort().values
    return View(source, indices, source.labels[indices], source.classes)


def training_batches(
    source: Source,
    recipe: Recipe,
    images: int,
    seed: int,
    batch_size: int,
    device: torch.device,
    notes: list[str],
) -> list[tuple[Tensor, Tensor]]:
    """Augmented training images, in batches of the run's own size where that leaves enough of them, else smaller ones.

    Args:
        source: training images.
        recipe: data, augmentation and batch size.
        images: at most so many.
        seed: of which images, and of augmentation.
        batch_size: most images of one batch.
        device: where the batches go; all are held there.
        notes: gets a line where there are fewer images than asked for.

    Raises:
        InputError: too few images for mixup or cutmix, or images that can't be decoded.
    """
    available = min(images, len(source))
    size = min(recipe.train.batch_size, batch_size, max(1, available // FEWEST_BATCHES))
    if recipe.augment.mixup or recipe.augment.cutmix:
        size = max(2, size // 2 * 2)  # these pair images
    wanted = min(MOST_BATCHES, available // size) * size
    if wanted == 0:
        raise InputError(f"images = {images}: mixup and cutmix pair images, so that at least 2 are needed")
    if images > len(source):
        notes.append(f"{images} training images were asked for; there are {len(source)}")
    found = TrainBatches(
        some_images(source, wanted, seed, "training", notes),
        recipe.data,
        recipe.augment,
        seed=mix(seed, "analyze"),
        batch_size=size,
        device=device,
        num_classes=len(source.classes),
        smoothing=recipe.loss.smoothing,
    )
    return list(found.epoch(0))
