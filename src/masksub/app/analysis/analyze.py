"""Why a run is stable: gradients of both branches, their agreement, accuracy under masks, sharpness of the losses."""

from __future__ import annotations

import math
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from masksub.app.data import EvalBatches, open_data
from masksub.app.errors import InputError
from masksub.app.models import create_criterion
from masksub.app.progress import Reporter
from masksub.app.runs import RunFolder
from masksub.app.settings import Recipe
from masksub.core.branches import MaskSub
from masksub.core.methods import METHODS
from masksub.core.seeds import generator

from .branch_gradients import BranchLosses, Loss, compare_gradients, evaluating
from .inputs import load_models, place_in_training, some_images, training_batches
from .masked_accuracy import masked_accuracy
from .sharpness import sharpness
from .text import text, write_analysis

__all__ = ["RATIOS", "analyze", "text", "write_analysis"]

RATIOS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
USUAL_RATIO = 0.5
"""Where the losses' sharpness is taken for a run that masks nothing itself."""
GRADIENT_RATIOS = 5
"""Ratios at which gradients are compared: two backward passes each, so not at all that are asked for."""


def analyze(
    path: Path,
    *,
    images: int = 512,
    ratios: Sequence[float] = RATIOS,
    seed: int = 0,
    batch_size: int = 128,
    checkpoint: int | None = None,
    unit: int | None = None,
    reporter: Reporter | None = None,
) -> dict[str, Any]:
    """Analyze a run, complete or still training, on its own data. Nothing is written.

    Accuracy and agreement are those of the weights that ``masksub eval`` uses (the moving average if there is one), on
    validation images in eval mode. Gradients and sharpness are those of the weights that are trained, on augmented
    training images with the recipe's criterion, in eval mode too (``branch_gradients`` says why): a recipe's dropout
    and drop path are off and batch norm uses its running statistics, so for models that have these the figures describe
    the loss surface without that noise. All is computed in fp32.

    Args:
        path: run folder.
        images: validation images, and at most so many training images, drawn by ``seed``; all if there are fewer.
        ratios: mask ratios of the evaluation, 0 <= ratio < 1; 0 is always among them. Gradients are compared at up to
            five of those above 0.
        seed: of the choice of images, of augmentation and masks. With the same seed and batch size the result is the
            same.
        batch_size: most images of one forward.
        checkpoint: number of updates of the checkpoint to take; the last whole one if None.
        unit: side in pixels of what is masked as one; the run's own (``sub.unit``) if None.
        reporter: where progress is told.

    Returns:
        Plain values, ready for JSON; a number that is not finite is None. Where it comes from: run, method, run_seed,
        checkpoint {path, update, epoch, status: "complete",
        "failed" or "incomplete" of the run}, settings (the arguments), device, versions, notes. ``evaluation``:
        weights, images, of_images, points (see ``masked_accuracy``). ``gradients``: weights, images, batches,
        images_per_batch, main, at_ratio (a list: ratio, and "relaxed" and "labels" for masksub's target and for true
        labels on the masked input, with ``share_of_update`` at ``weight``), run (the method's own main and sub branch
        with its ratio and weight at that update; sub is None for plain). See ``compare_gradients``. ``sharpness``:
        weights, ratio, and for "main", "relaxed" and "labels" what ``sharpness`` returns.

    Raises:
        InputError: not a run, no whole checkpoint, an argument out of range, data that the run does not know, or a
            model that can't be masked with this unit.
    """
    ratios = _checked(images, ratios, seed, batch_size, unit)
    reporter = reporter or Reporter()
    run = RunFolder.existing(path)
    recipe, classes = run.recipe().changed("data", cache="auto"), run.classes()
    trained, evaluated, chosen = load_models(run, recipe, len(classes), checkpoint, reporter)
    train_source, val_source = open_data(recipe.data, recipe.seed)
    for source in (train_source, val_source):
        if list(source.classes) != classes:
            raise InputError(f"{source.name} has other classes than {run.path} was trained on (classes.json)")
    place = place_in_training(run, recipe, chosen.update)
    unit = recipe.sub.unit if unit is None else unit
    notes: list[str] = []
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")  # as masksub eval

    with reporter, evaluating(trained), evaluating(evaluated):
        trained.to(device), evaluated.to(device)
        _check_maskable(trained, recipe, unit, [r for r in ratios if r > 0] or [USUAL_RATIO], device)
        chosen_images = some_images(val_source, images, seed, "validation", notes)
        eval_batches = EvalBatches(chosen_images, recipe.data, recipe.augment, batch_size=batch_size, device=device)
        batches = training_batches(train_source, recipe, images, seed, batch_size, device, notes)
        for note in notes:
            reporter.line(note)
        losses = BranchLosses(trained, create_criterion(recipe), batches, seed)
        points = masked_accuracy(
            evaluated,
            eval_batches,
            ratios,
            unit=unit,
            kind=losses.kind,
            seed=seed,
            progress=lambda done, total: reporter.step("evaluating masked", done, total),
        )
        # Differences of gradients need all of fp32; convolutions on a GPU would take TF32.
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            gradients = _gradients(losses, recipe, place, ratios, unit, reporter)
            sharp = _sharpness(losses, place["mask_ratio"] or USUAL_RATIO, unit, reporter)
    seen = {"images": sum(len(y) for _, y in batches), "batches": len(batches), "images_per_batch": len(batches[0][1])}
    result = {
        "run": str(path),
        "method": recipe.method,
        "run_seed": recipe.seed,
        "checkpoint": {
            "path": str(chosen.path),
            "update": chosen.update,
            "epoch": place["epoch"],
            "status": _status(run),
        },
        "settings": {
            "images": images,
            "ratios": ratios,
            "seed": seed,
            "batch_size": batch_size,
            "unit": unit,
        },
        "device": torch.cuda.get_device_name() if device.type == "cuda" else "cpu",
        "versions": {name: metadata.version(name) for name in ("masksub", "torch", "timm")},
        "notes": notes,
        "evaluation": {
            "weights": chosen.weights.name,
            "images": len(chosen_images) - eval_batches.skipped,
            "of_images": len(val_source),
            "points": points,
        },
        "gradients": {"weights": "model.safetensors", **seen, **gradients},
        "sharpness": {"weights": "model.safetensors", **seen, **sharp},
    }
    plain: dict[str, Any] = _finite(result)
    return plain


def _checked(images: int, ratios: Sequence[float], seed: int, batch_size: int, unit: int | None) -> list[float]:
    """The ratios in order, 0 among them; all mistakes are told together."""
    mistakes = [f"ratios: {r!r} is out of range, a mask ratio is 0 <= ratio < 1" for r in ratios if not 0 <= r < 1]
    for name, value, least in (("images", images, 1), ("seed", seed, 0), ("batch_size", batch_size, 1)):
        if value < least:
            mistakes.append(f"{name} = {value}: it must be at least {least}")
    if unit is not None and unit < 1:
        mistakes.append(f"unit = {unit}: it must be at least 1 pixel")
    if mistakes:
        raise InputError("\n".join(mistakes))
    return sorted({0.0, *(float(r) for r in ratios)})


def _status(run: RunFolder) -> str:
    if run.summary() is not None:
        return "complete"
    return "failed" if run.failure() is not None else "incomplete"


def _check_maskable(
    model: nn.Module, recipe: Recipe, unit: int | None, ratios: list[float], device: torch.device
) -> None:
    side = recipe.data.image_size
    x = torch.zeros(1, recipe.data.channels, side, side, device=device)
    try:
        with torch.no_grad(), MaskSub(min(ratios), unit=unit).applied(model, generator=generator("trial")):
            model(x)
    except ValueError as error:
        raise InputError(
            f"{recipe.model.name} at {side} px can't be masked in units of {unit or 'the default number of'} px: "
            f"{error} (unit: side in pixels of what is masked as one)"
        ) from error


def _gradients(
    losses: BranchLosses,
    recipe: Recipe,
    place: dict[str, Any],
    ratios: list[float],
    unit: int | None,
    reporter: Reporter,
) -> dict[str, Any]:
    """The run's own branches; then, whatever its method, both targets on masked inputs at several ratios."""
    method, weight, ratio = METHODS[recipe.method], place["weight"], place["mask_ratio"]
    batches, parameters = len(losses.batches), losses.parameters
    above = [r for r in ratios if r > 0]
    places = np.linspace(0, len(above) - 1, min(GRADIENT_RATIOS, len(above))).round().astype(int)
    picked = [above[place] for place in places]
    total = 1 + len(picked)

    branch = method.branch(ratio, unit=unit, p=recipe.sub.p, efficient=recipe.sub.efficient, bn=recipe.sub.bn)
    main: Loss = losses.main
    subs: dict[str, Loss] = {}
    if branch.mutual:
        main, subs["sub"] = losses.mutual(branch)
    elif weight > 0:
        subs["sub"] = losses.sub(branch, "labels" if method.target == "labels" else "relaxed")
    own = compare_gradients(main, subs, weight, batches, parameters)
    reporter.step("gradients", 1, total)

    # Where the run's weight leaves one branch out, shares are told for the usual half.
    shared = weight if 0 < weight < 1 else 0.5
    at_ratio = []
    whole = None
    for done, each in enumerate(picked, 2):
        masked = MaskSub(each, unit=unit)
        targets: dict[str, Loss] = {
            "relaxed": losses.sub(masked, "relaxed"),
            "labels": losses.sub(masked, "labels"),
        }
        found = compare_gradients(losses.main, targets, shared, batches, parameters)
        whole = found.pop("main")
        at_ratio.append({"ratio": each, **found})
        reporter.step("gradients", done, total)
    if whole is None:
        whole = compare_gradients(losses.main, {}, 0.0, batches, parameters)["main"]
    run = {"method": recipe.method, "ratio": ratio, "weight": weight, "main": own["main"], "sub": own.get("sub")}
    return {"weight": shared, "main": whole, "at_ratio": at_ratio, "run": run}


def _sharpness(losses: BranchLosses, ratio: float, unit: int | None, reporter: Reporter) -> dict[str, Any]:
    masked = MaskSub(ratio, unit=unit)
    wanted: dict[str, Loss] = {
        "main": losses.main,
        "relaxed": losses.sub(masked, "relaxed"),
        "labels": losses.sub(masked, "labels"),
    }
    found: dict[str, Any] = {"ratio": ratio}
    for done, (name, loss) in enumerate(wanted.items()):
        reporter.step("sharpness", done, len(wanted))
        found[name] = sharpness(loss, len(losses.batches), losses.parameters)
    return found


def _finite(value: Any) -> Any:
    """Plain values with None for every number that is not finite: JSON has no such numbers."""
    if isinstance(value, dict):
        return {key: _finite(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(each) for each in value]
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    return value
