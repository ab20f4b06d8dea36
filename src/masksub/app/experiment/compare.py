"""Ways of training side by side, on the user's recipe: which runs are to be made, and making them."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from masksub.app.errors import InputError, RunBusy, StoppedError
from masksub.app.progress import Reporter
from masksub.app.runs import write_text_atomically
from masksub.app.settings import Recipe
from masksub.core.methods import METHODS

from .arms import ARMS, DEFAULT_ARMS, ArmKind, Costs, arm_recipe, chosen_arms
from .cells import Cell, check_cells, progress, work_on
from .check import check_folder, check_trainable, seeds_of, settle_cache
from .workers import default_jobs, run_in_processes

__all__ = ["plan_comparison", "run_comparison", "train_cells"]


def run_comparison(
    base: Recipe,
    folder: Path,
    *,
    arms: str | None,
    seeds: int,
    jobs: int | None,
    statistics: str,
    mixed_versions: bool,
    dry_run: bool,
    retry_failed: bool,
    reporter: Reporter,
) -> tuple[dict[str, Any], str]:
    """Plan a comparison, train what is missing, and tell the result.

    Args:
        base: the recipe.
        folder: of the runs; also gets comparison.json.
        arms: names with commas, "all", or None for the default ones.
        seeds: paired seeds of each arm.
        jobs: processes at a time, None for the default.
        statistics: "t" or "bootstrap".
        mixed_versions: use runs of other versions of the software, too.
        dry_run: plan only, write nothing.
        retry_failed: train diverged runs again, from their last checkpoint; with the same software and machine they
            diverge again.
        reporter: where progress is told.

    Returns:
        The result for JSON, and text for a terminal.

    Raises:
        InputError: before anything is written.
        InterruptedRun: on a signal; the same command goes on.
        StoppedError: runs could not be made, through no mistake in the recipe.
    """
    if statistics not in ("t", "bootstrap"):
        raise InputError(f"--statistics {statistics}: must be t or bootstrap")
    names = [*ARMS] if arms == "all" else [*DEFAULT_ARMS] if arms is None else [n.strip() for n in arms.split(",")]
    jobs = jobs or default_jobs(base.train.device)
    cells = plan_comparison(base, folder, arms=chosen_arms(names), seeds=seeds, jobs=jobs)
    with reporter:
        if dry_run:
            from .estimate import as_dicts, estimate_cells, estimate_text

            found = estimate_cells(cells, jobs=jobs)
            return as_dicts(found, jobs=jobs), estimate_text(found, jobs=jobs)
        if retry_failed:
            for cell in cells:
                cell.run.forget_failure()
        train_cells(cells, jobs=jobs, reporter=reporter)
    from masksub.app.evidence.gather import gather  # needs SciPy, at the end only
    from masksub.app.evidence.table import text_table

    evidence = gather([folder], statistics=statistics, mixed_versions=mixed_versions)
    result = evidence.as_dict()
    write_text_atomically(folder / "comparison.json", json.dumps(result, indent=2) + "\n")
    return result, f"{text_table(evidence)}\n\n{folder / 'comparison.json'}; the page: masksub report {folder}"


def plan_comparison(base: Recipe, folder: Path, *, arms: Sequence[ArmKind], seeds: int, jobs: int) -> list[Cell]:
    """The runs of a comparison. All arms share the seeds: initial weights, images chosen, order of the data.

    Args:
        base: the recipe; its method is replaced by each arm's, its seed is the first one.
        folder: gets a run folder ``ARM-sSEED`` for each arm and seed.
        arms: what is compared.
        seeds: how many; they count up from the recipe's own.
        jobs: processes that will train at one time, and hold images.

    Returns:
        Cells by seed, so that what is complete early can be compared, and the longest of a seed first.

    Raises:
        InputError: the folder is no folder, or holds runs of other recipes, also of arms and seeds that are not asked
            for now; or an arm that can't be trained.
    """
    check_folder(folder)
    masked = [arm.key for arm in arms if METHODS[arm.method].ratio is None and METHODS[arm.method].drops == "units"]
    if masked and base.sub.ratio_schedule.bounds[1] == 0:
        raise InputError(
            f"sub.ratio = 0: nothing would be masked in {', '.join(masked)}; without a mask it is self-distill"
        )
    base = settle_cache(base, folder, jobs)
    costs = Costs(base)
    cells = []
    for seed in seeds_of(base, seeds):
        recipes = [(arm, arm_recipe(base, arm, seed, costs)) for arm in arms]
        recipes.sort(key=lambda each: -costs.per_image(each[0].method) * each[1].train.epochs)
        cells += [Cell(recipe, folder / f"{arm.key}-s{seed}") for arm, recipe in recipes]
    check_cells([*cells, *_others(base, folder, costs, {cell.folder for cell in cells})])
    check_trainable(cell.recipe for cell in cells)
    return cells


def _others(base: Recipe, folder: Path, costs: Costs, planned: set[Path]) -> list[Cell]:
    """Runs of the folder that belong to the comparison but are not asked for now: what is told together must agree."""
    found = []
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        key, _, seed = path.name.rpartition("-s")
        if path not in planned and key in ARMS and seed.isdecimal() and (path / "recipe.yaml").is_file():
            found.append(Cell(arm_recipe(base, ARMS[key], int(seed), costs), path))
    return found


def train_cells(cells: Sequence[Cell], *, jobs: int, reporter: Reporter) -> None:
    """Train what is missing, in several processes; another command on the same folder shares the work.

    Raises:
        InputError: a run that can't be trained as its recipe says.
        InterruptedRun: on a signal; the same command goes on.
        StoppedError: runs could not be made, through no mistake in the recipe; all others were.
    """
    todo = [cell for cell in cells if cell.state in ("missing", "begun")]
    if not todo:
        return
    jobs = max(1, min(jobs, len(todo)))
    results = run_in_processes(work_on, [(todo,)] * jobs, jobs=jobs, reporter=reporter, poll=_teller(cells, reporter))
    errors = {path: why for result in results if result for path, why in result.items()}
    left = [cell for cell in todo if cell.state in ("missing", "begun")]
    if left:
        said = [f"{cell.folder}: {errors.get(str(cell.folder)) or _why_left(cell)}" for cell in left]
        raise StoppedError(
            f"{len(left)} of {len(cells)} runs could not be made; the same command tries them again:\n  "
            + "\n  ".join(said)
        )


def _why_left(cell: Cell) -> str:
    try:
        with cell.run.lock():
            return "its process was killed" if cell.run.begun else "it was not begun"
    except RunBusy:
        return "another command has it"


def _teller(cells: Sequence[Cell], reporter: Reporter) -> Callable[[], tuple[int, int, str]]:
    """How far the runs are, for the bar, with a line for each that ends, also in other commands."""
    waiting = {cell.folder: cell for cell in cells if cell.state in ("missing", "begun")}

    def poll() -> tuple[int, int, str]:
        for folder, cell in [*waiting.items()]:
            if (state := cell.state) not in ("complete", "failed"):
                continue
            del waiting[folder]
            summary, failure = cell.run.summary(), cell.run.failure()
            said = f"top-1 {summary['final']['top1']:.2f} %" if summary else (failure or {}).get("reason", "")
            reporter.line(f"{folder.name} {state}: {said} ({len(waiting)} left)")
        return progress(cells)

    return poll
