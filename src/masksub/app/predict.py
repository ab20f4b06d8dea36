"""Using a finished run: its accuracy on any data with its classes, and labels for single images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from .checkpoint import latest, load_weights
from .data import EvalBatches, normalise, open_data, open_path
from .data.decode import load_image, prepare
from .errors import InputError
from .evaluate import evaluate
from .models import create_model
from .progress import Reporter
from .run_check import check_runs
from .runs import RunFolder
from .settings import Recipe

__all__ = ["evaluate_run", "predict_images"]


def evaluate_run(
    path: Path, *, data: Path | None = None, weights: Path | None = None, batch_size: int = 128
) -> dict[str, float]:
    """Evaluate a run's model, unmasked.

    Args:
        path: run folder.
        data: folder or archive of class folders whose classes the run knows; the run's own validation set if None.
        weights: file of weights; those of the last whole checkpoint if None.
        batch_size: images of one forward.

    Returns:
        See ``evaluate.evaluate``.

    Raises:
        InputError: not a run, no checkpoint, weights that do not fit or are unsafe, classes that the run lacks.
    """
    model, recipe, classes = _load(path, weights)
    source = open_data(recipe.data, recipe.seed)[1] if data is None else open_path(data, classes, recipe.data.channels)
    device = _device()
    batches = EvalBatches(source, recipe.data, recipe.augment, batch_size=batch_size, device=device)
    return evaluate(model.to(device), batches, kind=_kind(recipe))


def predict_images(path: Path, images: list[Path], *, top: int = 3) -> list[dict[str, Any]]:
    """The most probable labels of images.

    Args:
        path: run folder.
        images: image files.
        top: labels for each.

    Returns:
        For each image its path and ``labels``: label and probability, the most probable first.

    Raises:
        InputError: as ``evaluate_run``, or an image that can't be read, named.
    """
    check_runs(path, files=tuple(images))
    model, recipe, classes = _load(path, None)
    data = recipe.data
    pixels = [
        prepare(load_image(image, data.channels), data.image_size, recipe.augment.test_crop, data.channels)
        for image in images
    ]
    results = []
    with torch.no_grad():
        for image, pixel in zip(images, pixels):
            logits = model.eval()(normalise(pixel.unsqueeze(0), data))[0]
            probabilities = logits.sigmoid() if _kind(recipe) == "sigmoid" else logits.softmax(dim=0)
            best = probabilities.topk(min(top, len(classes)))
            labels = [
                {"label": classes[index], "probability": round(value, 6)}
                for value, index in zip(best.values.tolist(), best.indices.tolist())
            ]
            results.append({"image": str(image), "labels": labels})
    return results


def _load(path: Path, weights: Path | None) -> tuple[nn.Module, Recipe, list[str]]:
    run = RunFolder.existing(path)
    recipe, classes = run.recipe().changed("data", cache="auto"), run.classes()
    model = create_model(recipe.changed("model", weights=None), len(classes))
    if weights is None:
        refused: list[str] = []
        last = latest(run.checkpoints, refused.append)
        if last is None:
            why = "; ".join(refused) or "none has been written"
            raise InputError(f"{run.path} has no checkpoint to use: {why}")
        for each in refused:
            Reporter().warn(f"{each}; {last.path} is used")
        weights = last.weights
    load_weights(model, weights)
    return model.eval(), recipe, classes


def _device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _kind(recipe: Recipe) -> str:
    return "sigmoid" if recipe.loss.name == "bce" else "softmax"
