"""What can be known to be wrong with a set of runs before the first of them is trained."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

import torch

from masksub.app.data import open_source
from masksub.app.data.held import choose_holding
from masksub.app.errors import InputError
from masksub.app.models import warmup_updates
from masksub.app.run_check import check_place
from masksub.app.runs import RunFolder
from masksub.app.settings import Recipe

from .arms import Costs

__all__ = ["check_folder", "check_trainable", "seeds_of", "settle_cache"]

MOST = 50
"""Different recipes whose models are tried; of a larger grid the first ones."""


def seeds_of(base: Recipe, count: int) -> range:
    """The recipe's seed and those after it.

    Raises:
        InputError: fewer than one, or beyond what a recipe accepts.
    """
    if count < 1:
        raise InputError(f"--seeds {count}: must be at least 1")
    if base.seed + count > 2**31:
        raise InputError(f"seed = {base.seed} and --seeds {count}: seeds must stay below {2**31}")
    return range(base.seed, base.seed + count)


def check_folder(folder: Path) -> None:
    """See that run folders can be made there.

    Raises:
        InputError: a file, or a place that can't be written to.
    """
    check_place(folder, "a folder of runs")


def settle_cache(base: Recipe, folder: Path, jobs: int) -> Recipe:
    """The recipe with data.cache "auto" decided once for all runs: images that are held and images that are not are
    augmented by other random numbers, and runs that are compared must not differ in that.

    Args:
        base: the recipe.
        folder: of the runs; what one of them has already is taken.
        jobs: processes that will hold the images at one time.
    """
    if base.data.cache != "auto":
        return base
    for path in sorted(folder.glob("*/recipe.yaml")):
        return base.changed("data", cache=RunFolder(path.parent).recipe().data.cache)
    images = len(open_source(base.data, "train", base.seed))
    held = choose_holding(images * jobs, base.data, torch.device("cpu"), base.augment.per_image)
    return base.changed("data", cache=held)


def check_trainable(recipes: Iterable[Recipe]) -> None:
    """Build each model once, try its branches on shapes alone, and see that the schedule has room for its warm-up.

    Raises:
        InputError: a recipe that can't be trained.
    """
    known: set[str] = set()
    for recipe in recipes:
        facts = recipe.model_dump(mode="json", exclude={"seed": True, "sub": {"ratio", "weight"}})
        if len(known) >= MOST or (key := json.dumps(facts, sort_keys=True)) in known:
            continue
        known.add(key)
        Costs(recipe).per_image(recipe.method)
        images = len(open_source(recipe.data, "train", recipe.seed))
        per_epoch = images // (recipe.train.batch_size * recipe.train.parts(1))
        if per_epoch:  # else the run itself says so, with the number of processes
            warmup_updates(recipe, max(1, round(recipe.train.epochs * per_epoch)), per_epoch)
