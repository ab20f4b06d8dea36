"""The demonstration: a comparison on the embedded digits, from run folders to a table and a picture."""

from __future__ import annotations

import json
import time
from pathlib import Path

from .experiment.arms import ARMS, DEFAULT_ARMS
from .experiment.compare import plan_comparison, train_cells
from .experiment.workers import default_jobs
from .progress import Reporter
from .recipe import load_recipe
from .runs import write_text_atomically
from .settings import Recipe

__all__ = ["run_demo"]

RECIPE = "digits/vit_micro"
EVALUATIONS = 20
"""Evaluations of each run: points of its curves."""
CHECKPOINT_UPDATES = 200
"""Updates between two checkpoints: some seconds of work, should it be interrupted."""


def run_demo(folder: Path, *, seeds: int, reporter: Reporter, overrides: tuple[str, ...] = ()) -> str:
    """Train all arms, as many at a time as there are cores, and say what was seen.

    Runs that are complete are not made again; interrupted ones go on.

    Args:
        folder: gets one run folder for each arm and seed, ``comparison.json`` and ``demo.png``.
        seeds: paired seeds, 0 to seeds - 1.
        reporter: where progress is told.
        overrides: changes to the recipe, for tests.

    Returns:
        The table and what was seen.

    Raises:
        InputError: the folder holds runs of another recipe.
    """
    base = _recipe(overrides)
    jobs = default_jobs(base.train.device)
    arms = [ARMS[key] for key in DEFAULT_ARMS]
    cells = plan_comparison(base, folder, arms=arms, seeds=seeds, jobs=jobs)
    began = time.perf_counter()
    with reporter:
        train_cells(cells, jobs=jobs, reporter=reporter)
    from .evidence.gather import gather
    from .evidence.table import text_table
    from .figures import draw_demo  # SciPy and matplotlib, needed at the end only

    evidence = gather([folder])
    result = folder / "comparison.json"
    write_text_atomically(result, json.dumps(evidence.as_dict(), indent=2) + "\n")
    picture = folder / "demo.png"
    runs = {arm.name: [cell.folder for cell in cells if cell.folder.name.startswith(f"{arm.key}-s")] for arm in arms}
    draw_demo(picture, runs, base)
    took = f"{time.perf_counter() - began:.0f} s; runs, {result} and picture: {picture}"
    return f"{text_table(evidence)}\n\n{took}; the page: masksub report {folder}"


def _recipe(overrides: tuple[str, ...]) -> Recipe:
    base = load_recipe(RECIPE, overrides)
    every = base.train.epochs / EVALUATIONS
    return base.changed("train", eval_every=every, checkpoint_every=CHECKPOINT_UPDATES, tensorboard=False)
