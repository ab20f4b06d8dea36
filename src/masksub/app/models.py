"""From a recipe to a model, an optimizer, a learning-rate schedule and a criterion: timm's, with clear mistakes."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any, cast

import timm
import timm.optim
import timm.scheduler
import torch
from timm.loss import BinaryCrossEntropy, SoftTargetCrossEntropy
from torch import nn

from .checkpoint import read_weights
from .errors import InputError
from .settings import Model, Recipe

__all__ = ["create_criterion", "create_model", "create_optimizer", "create_schedule"]


def create_model(recipe: Recipe, num_classes: int) -> nn.Module:
    """The recipe's model for its image size, channels and this number of classes, with initial weights.

    Raises:
        InputError: no such model, an argument that it does not take, an image size that its patches do not divide,
            weights that are missing, unsafe or do not fit.
    """
    data, wanted = recipe.data, recipe.model
    if not timm.is_model(wanted.name):
        near = difflib.get_close_matches(wanted.name, timm.list_models(), n=3)
        hint = f"; did you mean {', '.join(near)}?" if near else ""
        raise InputError(f"model.name = {wanted.name!r}: timm {timm.__version__} has no such model{hint}")
    for key, source in (
        ("num_classes", "the data's classes"),
        ("in_chans", "data.channels"),
        ("img_size", "data.image_size"),
    ):
        if key in wanted.kwargs:
            raise InputError(f"model.kwargs.{key} = {wanted.kwargs[key]!r}: it is taken from {source}; leave it out")
    arguments: dict[str, Any] = {"in_chans": data.channels, "num_classes": num_classes, **wanted.kwargs}
    if wanted.weights is not None:
        arguments["pretrained"] = True
        if wanted.weights != "pretrained":
            if not Path(wanted.weights).is_file():
                raise InputError(f"model.weights = {wanted.weights!r}: there is no such file; or say 'pretrained'")
            # custom_load is timm's reader of numpy archives, which some models ask for whatever the file.
            overlay = {
                "file": wanted.weights,
                "hf_hub_id": None,
                "url": "",
                "custom_load": False,
                **_classes_of(wanted),
            }
            arguments["pretrained_cfg_overlay"] = overlay
    model = _build(wanted.name, arguments, data.image_size, wanted.weights)
    _check_patches(model, recipe)
    return model


def _build(name: str, arguments: dict[str, Any], image_size: int, weights: str | None) -> nn.Module:
    try:
        try:
            return cast("nn.Module", timm.create_model(name, img_size=image_size, **arguments))
        except TypeError as error:
            if "img_size" not in str(error):
                raise
            return cast("nn.Module", timm.create_model(name, **arguments))  # convolutional nets take any size
    except (TypeError, AssertionError, ValueError) as error:
        raise InputError(
            f"model.kwargs: timm can't build {name} with {arguments} at {image_size} px: {error}"
        ) from error
    except (RuntimeError, OSError, KeyError) as error:
        if weights is None:
            raise InputError(f"model.kwargs: timm can't build {name} with {arguments}: {error}") from error
        raise InputError(f"model.weights = {weights!r} can't be loaded into {name}: {error}") from error


def _classes_of(wanted: Model) -> dict[str, int]:
    """How many classes a file of weights has: with as many as the data, timm keeps its head.

    The file is read safely first, so that what timm then does with it, in any version, is safe too.
    """
    state = read_weights(Path(str(wanted.weights)))
    for key in ("state_dict_ema", "model_ema", "state_dict", "model"):  # as timm looks for them
        if isinstance(state.get(key), dict):
            state = state[key]
            break
    classifier = timm.get_pretrained_cfg_value(wanted.name, "classifier")  # two names for a distilled model
    first = classifier[0] if isinstance(classifier, (tuple, list)) else classifier
    head = state.get(f"{first}.weight")
    return {} if head is None else {"num_classes": len(head)}


def _check_patches(model: nn.Module, recipe: Recipe) -> None:
    patch = getattr(getattr(model, "patch_embed", None), "patch_size", None)
    size = recipe.data.image_size
    if patch is not None and any(size % side for side in patch):
        raise InputError(
            f"data.image_size = {size}: {recipe.model.name} has patches of {patch[0]} x {patch[1]} px, which do not "
            f"divide it; use a multiple, or another model.kwargs.patch_size"
        )


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
