"""From a recipe to a model, an optimizer, a learning-rate schedule and a criterion: timm's, with clear mistakes."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from typing import Any, cast

import timm
import timm.optim
import timm.scheduler
import torch
from timm.loss import BinaryCrossEntropy, SoftTargetCrossEntropy
from torch import nn

from masksub.core.checkpointing import recomputes
from masksub.core.methods import METHODS

from .drop_path import settle_drop_path
from .errors import InputError
from .named_models import did_you_mean
from .settings import Recipe
from .weights import create_with_weights

__all__ = ["create_criterion", "create_model", "create_optimizer", "create_schedule"]

UNSEEN = 0.05
"""Share of an image's side that may be left over by its patches; DeiT III trains patches of 14 px at 160."""


def create_model(recipe: Recipe, num_classes: int, tell: Callable[[str], None] | None = None) -> nn.Module:
    """The recipe's model for its image size, channels and this number of classes, with initial weights.

    Args:
        recipe: data, model, and what concerns train.recompute.
        num_classes: the data's classes.
        tell: gets one line on what came from model.weights, what is new, and what was left out.

    Raises:
        InputError: no such model, an argument that it does not take, an image size that its patches do not divide,
            weights that are missing, unsafe or do not fit, blocks that can't be run again (train.recompute).
    """
    data, wanted = recipe.data, recipe.model
    if not timm.is_model(wanted.name):
        hint = did_you_mean(wanted.name, timm.list_models())
        raise InputError(f"model.name = {wanted.name!r}: timm {timm.__version__} has no such model{hint}")
    for key, source in (
        ("num_classes", "the data's classes"),
        ("in_chans", "data.channels"),
        ("img_size", "data.image_size"),
    ):
        if key in wanted.kwargs:
            raise InputError(f"model.kwargs.{key} = {wanted.kwargs[key]!r}: it is taken from {source}; leave it out")
    arguments: dict[str, Any] = {"in_chans": data.channels, "num_classes": num_classes, **wanted.kwargs}

    def build(**more: Any) -> nn.Module:
        return _build(wanted.name, arguments, data.image_size, more)

    if wanted.weights is None:
        model = build()
    else:
        model = create_with_weights(build, wanted.name, wanted.weights, num_classes, data, tell)
    _check_patches(model, recipe, tell)
    settle_drop_path(model, recipe)
    if recipe.train.recompute:
        _recompute(model, recipe)
    return model


def _build(name: str, arguments: dict[str, Any], image_size: int, more: dict[str, Any]) -> nn.Module:
    try:
        try:
            return cast("nn.Module", timm.create_model(name, img_size=image_size, **arguments, **more))
        except TypeError as error:
            if "img_size" not in str(error):
                raise
            # Convolutional nets take any size.
            return cast("nn.Module", timm.create_model(name, **arguments, **more))
    except Exception as error:
        if more or not isinstance(error, (TypeError, AssertionError, ValueError, RuntimeError, OSError, KeyError)):
            raise  # with weights, create_with_weights finds out whose mistake it is
        raise InputError(
            f"model.kwargs: timm can't build {name} with {arguments} at {image_size} px: {error}"
        ) from error


def _recompute(model: nn.Module, recipe: Recipe) -> None:
    """Have blocks run again in backward in place of keeping their activations.

    Raises:
        InputError: the model has no switch for it, or the method runs both branches in one backward.
    """
    place, method = "train.recompute = true", METHODS[recipe.method]
    if method.drops == "both":
        raise InputError(f"{place}: not with method {recipe.method}, whose two branches share one backward")
    wanted = recipe.sub
    sub = method.branch(0.0, unit=wanted.unit, p=wanted.p, efficient=wanted.efficient, bn=wanted.bn)
    # What runs one branch alone has one backward for it, whatever the mode.
    if wanted.mode == "joint" and recipe.method not in ("plain", "direct-mask") and sub.inside_blocks(model):
        raise InputError(
            f'{place}: not with sub.mode "joint" here: {sub!r} changes what happens inside of blocks, and one backward '
            f'for both branches can\'t know which branch a block belongs to; use sub.mode "split"'
        )
    if any(isinstance(each, nn.modules.batchnorm._NormBase) and each.track_running_stats for each in model.modules()):
        raise InputError(
            f"{place}: {recipe.model.name} has batch norm, whose running statistics would count each batch twice"
        )
    switch: Any = getattr(model, "set_grad_checkpointing", None)
    try:
        if switch is not None:
            switch(True)
    except (AssertionError, NotImplementedError):
        switch = None
    if switch is None or not recomputes(model):
        raise InputError(f"{place}: timm's {recipe.model.name} can't run its blocks again; leave it false")


def _check_patches(model: nn.Module, recipe: Recipe, tell: Callable[[str], None] | None) -> None:
    patch = getattr(getattr(model, "patch_embed", None), "patch_size", None)
    size = recipe.data.image_size
    if patch is None or not any(size % side for side in patch):
        return
    left = max(size % side for side in patch)
    if left > UNSEEN * size:
        raise InputError(
            f"data.image_size = {size}: {recipe.model.name} has patches of {patch[0]} x {patch[1]} px, which do not "
            f"divide it; use a multiple, or another model.kwargs.patch_size"
        )
    if tell is not None:
        tell(f"{recipe.model.name}: the last {left} of {size} px do not fill a patch and are not seen")


def create_criterion(recipe: Recipe) -> nn.Module:
    """The main branch's criterion. With mixup or cutmix the labels arrive soft and smoothed already."""
    mixed = recipe.augment.mixup > 0 or recipe.augment.cutmix > 0
    if recipe.loss.name == "bce":
        smoothing = 0.0 if mixed else recipe.loss.smoothing
        bce = BinaryCrossEntropy(smoothing=smoothing, target_threshold=recipe.loss.target_threshold)
        return cast("nn.Module", bce)
    return SoftTargetCrossEntropy() if mixed else nn.CrossEntropyLoss(label_smoothing=recipe.loss.smoothing)


def create_optimizer(recipe: Recipe, model: nn.Module) -> torch.optim.Optimizer:
    """timm's optimizer, without weight decay for biases and norms, with layer decay if asked for.

    Raises:
        InputError: no such optimizer, or an argument that it does not take.
    """
    wanted = recipe.optim
    try:
        optimizer: torch.optim.Optimizer = timm.optim.create_optimizer_v2(
            model,
            opt=wanted.name,
            lr=wanted.lr,
            weight_decay=wanted.weight_decay,
            layer_decay=wanted.layer_decay,
            **wanted.kwargs,
        )
        return optimizer
    except (TypeError, ValueError, AssertionError, RuntimeError) as error:
        near = difflib.get_close_matches(wanted.name, timm.optim.list_optimizers(), n=3)
        hint = f"; near names: {', '.join(near)}" if near else ""
        if wanted.name.startswith("fused"):  # of apex, which few have
            hint = f"; {wanted.name.removeprefix('fused')!r} is the same formula and needs no apex"
        raise InputError(f"optim.name = {wanted.name!r}, optim.kwargs = {wanted.kwargs}: {error}{hint}") from error


def warmup_updates(recipe: Recipe, updates: int, updates_per_epoch: int) -> int:
    """Updates of the warm-up.

    Raises:
        InputError: it leaves nothing of the training.
    """
    warmup = round(recipe.optim.warmup_epochs * updates_per_epoch)
    if warmup >= updates:
        raise InputError(
            f"optim.warmup_epochs = {recipe.optim.warmup_epochs}: the warm-up takes {warmup} updates of a training of "
            f"{updates}; it must be shorter than train.epochs = {recipe.train.epochs}"
        )
    return warmup


def create_schedule(recipe: Recipe, optimizer: torch.optim.Optimizer, updates: int, updates_per_epoch: int) -> Any:
    """timm's learning-rate schedule over updates; a function of the update number, so that it needs no state."""
    wanted, warmup = recipe.optim, warmup_updates(recipe, updates, updates_per_epoch)
    # One timm "epoch" is one update here: the length of a training need not be whole epochs.
    schedule, _ = timm.scheduler.create_scheduler_v2(
        optimizer,
        sched=wanted.schedule,
        num_epochs=updates,
        decay_epochs=max(1, updates // 3),
        min_lr=wanted.min_lr,
        warmup_lr=wanted.warmup_lr,
        warmup_epochs=warmup,
        step_on_epochs=False,
        updates_per_epoch=1,
    )
    return schedule
