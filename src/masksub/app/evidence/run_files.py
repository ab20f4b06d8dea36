"""Finding run folders and reading them: what can't be read is named, what can be is used."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from masksub.app.errors import InputError
from masksub.app.recipe import load_recipe
from masksub.app.settings import Recipe

from .model import Problem, Run

__all__ = ["FoundRun", "find_runs", "is_number", "read_run"]

DEPTH = 3
"""Levels below a given folder at which run folders are looked for."""
MARKS = ("recipe.yaml", "classes.json", "environment.json", "metrics.jsonl", "summary.json")
"""A folder with two of these is meant as a run folder; a recipe alone may lie anywhere."""
NEEDED = ("epochs", "images", "flops", "train_seconds", "images_per_second")
"""Figures that every summary has, beside final.top1."""
_SEED = re.compile(r"^seed: *([0-9]{1,10}) *$", re.MULTILINE)


@dataclass(frozen=True)
class FoundRun:
    """A run folder as it was read.

    Attributes:
        path: as it was given, for people.
        parent: the folder that holds it, absolute.
        recipe: resolved.
        status: see ``evidence.Run``.
        summary: empty unless complete.
        reason: why it failed.
        lines: the training lines of the metrics, in order.
        evaluations: the evaluations of the metrics, in order.
        environment: empty if it can't be read.
        classes: names of the classes, empty if they can't be read.
    """

    path: str
    parent: Path
    recipe: Recipe
    status: Literal["complete", "failed", "incomplete"]
    summary: dict[str, Any] = field(default_factory=dict)
    reason: str | None = None
    lines: list[dict[str, Any]] = field(default_factory=list)
    evaluations: list[dict[str, Any]] = field(default_factory=list)
    environment: dict[str, Any] = field(default_factory=dict)
    classes: tuple[str, ...] = ()

    @property
    def top1(self) -> float | None:
        """Final top-1 in percent, None unless complete."""
        return float(self.summary["final"]["top1"]) if self.status == "complete" else None

    @property
    def versions(self) -> tuple[str | None, str | None]:
        """Of masksub and torch; builds of one torch for other hardware ("+cu126") count as the same."""
        versions = self.environment.get("versions")
        known = versions if isinstance(versions, dict) else {}
        masksub, torch = (known.get(name) for name in ("masksub", "torch"))
        return None if masksub is None else str(masksub), None if torch is None else str(torch).split("+")[0]

    def as_run(self) -> Run:
        """For the evidence."""
        best = self.summary.get("best_top1")
        skipped = [self.summary.get(key, 0) for key in ("skipped_images", "skipped_validation_images")]
        counts = [int(count) if is_number(count) else 0 for count in skipped]
        return Run(self.path, self.recipe.seed, self.status, self.top1, self.reason, best, *counts)


def find_runs(paths: Sequence[str | Path]) -> tuple[list[FoundRun], list[Problem]]:
    """All runs at and below these folders, each once, in the order of paths and names.

    Raises:
        InputError: a path is no folder.
    """
    runs: list[FoundRun] = []
    problems: list[Problem] = []
    seen: set[Path] = set()
    recipes: dict[str, Recipe] = {}
    for path in map(Path, paths):
        if not path.is_dir():
            raise InputError(f"{path}: {'is a file, not a' if path.exists() else 'there is no such'} folder of runs")
        for folder in _run_folders(path, DEPTH, problems):
            if (place := folder.resolve()) not in seen:
                seen.add(place)
                run, found = read_run(folder, recipes)
                runs += [run] if run else []
                problems += found
    return runs, problems


def _run_folders(folder: Path, depth: int, problems: list[Problem]) -> Iterator[Path]:
    """Run folders at and below ``folder``; names the folder if it holds none, and those beside runs that hold none."""
    found, others = _search(folder, depth, problems)
    if not found:
        others = [folder]
    for other in others:
        if _listed(other, []):
            what = f"no run folder in it, down to {DEPTH} levels below"
            problems.append(Problem(str(other), "foreign", what, {"code": "foreign", "depth": DEPTH}))
        else:
            problems.append(Problem(str(other), "empty", "the folder is empty", {"code": "empty"}))
    yield from found


def _search(folder: Path, depth: int, problems: list[Problem]) -> tuple[list[Path], list[Path]]:
    """Run folders, and folders beside run folders that hold none."""
    if sum((folder / name).is_file() for name in MARKS) >= 2:
        return [folder], []
    if depth == 0:
        return [], []
    found: list[Path] = []
    others: list[Path] = []
    below = [item for item in _listed(folder, problems) if item.is_dir()]
    results = [(item, *_search(item, depth - 1, problems)) for item in below]
    has_runs = any(runs == [item] for item, runs, _ in results)
    for item, runs, more in results:
        found += runs
        others += more or ([item] if has_runs and not runs else [])
    return found, others


def _listed(folder: Path, problems: list[Problem]) -> list[Path]:
    """What a folder holds and is not to be passed over, by name, numbers in it by their size."""
    try:
        items = list(folder.iterdir())
    except OSError as error:
        values = {"code": "closed", "error": error.strerror or str(error)}
        problems.append(Problem(str(folder), "unreadable", f"can't be looked into: {values['error']}", values))
        return []
    kept = [i for i in items if not i.name.startswith(".") and i.name != "checkpoints" and ".replaced-" not in i.name]
    return sorted(kept, key=lambda item: [(int(p), "") if p.isdecimal() else (-1, p) for p in _parts(item.name)])


def _parts(name: str) -> list[str]:
    return [part for part in re.split(r"([0-9]+)", name) if part]


def read_run(folder: Path, recipes: dict[str, Recipe] | None = None) -> tuple[FoundRun | None, list[Problem]]:
    """Read one run folder.

    Args:
        folder: of the run.
        recipes: recipes that were read before, by their text without the seed: the same is not checked a hundred times.

    Returns:
        The run, None if there is no recipe to be read; and what is wrong with the folder.
    """
    problems: list[Problem] = []
    path = folder / "recipe.yaml"
    if not path.is_file():
        said = "it has no recipe.yaml: the making of the run was cut off, or the file was taken away"
        return None, [Problem(str(folder), "incomplete", said, {"code": "no-recipe"})]
    try:
        recipe = _recipe(path, {} if recipes is None else recipes)
    except (InputError, OSError, UnicodeDecodeError) as error:
        values = {"code": "bad-recipe", "error": str(error)}
        return None, [Problem(str(path), "unreadable", f"can't be read: {error}", values)]
    summary = _json(folder / "summary.json", dict, problems)
    if summary is not None and not _is_summary(summary):
        values, said = {"code": "lacks-figures"}, "lacks figures that a summary has"
        problems.append(Problem(str(folder / "summary.json"), "unreadable", said, values))
        summary = None
    failure = None if summary is not None else _failure(folder, problems)
    lines, evaluations = _metrics(folder, problems)
    run = FoundRun(
        path=str(folder),
        parent=folder.resolve().parent,
        recipe=recipe,
        status="complete" if summary is not None else "failed" if failure is not None else "incomplete",
        summary=summary or {},
        reason=failure,
        lines=lines,
        evaluations=evaluations,
        environment=_json(folder / "environment.json", dict, problems, needed=True) or {},
        classes=tuple(map(str, _json(folder / "classes.json", list, problems, needed=True) or ())),
    )
    if run.status == "failed":
        said = f"seed {recipe.seed} diverged: {failure}"
        problems.append(
            Problem(str(folder), "failed", said, {"code": "failed", "seed": recipe.seed, "reason": failure})
        )
    elif run.status == "incomplete" and not (folder / "summary.json").exists():
        problems.append(_incomplete(folder, run))
    return run, problems


def _incomplete(folder: Path, run: FoundRun) -> Problem:
    last = max((record["epoch"] for record in (*run.lines, *run.evaluations)), default=0.0)
    epochs = run.recipe.train.epochs
    values: dict[str, Any] = {"code": "incomplete", "seed": run.recipe.seed, "epoch": last, "epochs": epochs}
    said = f"the run is not complete: {last:.3g} of {epochs:.3g} epochs"
    pruned = _json(folder / "pruned.json", dict, []) or {}
    if "reason" in pruned:
        said = f"{said}, pruned: {pruned['reason']}"
        values |= {"code": "pruned", "pruned": str(pruned["reason"])}
    return Problem(str(folder), "incomplete", said, values)


def _recipe(path: Path, known: dict[str, Recipe]) -> Recipe:
    text = path.read_text(encoding="utf-8")
    seeds = _SEED.findall(text)
    if len(seeds) != 1:  # not as dump_recipe writes it
        return load_recipe(path)
    key = _SEED.sub("", text)
    if key not in known:
        known[key] = load_recipe(path)
    return known[key].model_copy(update={"seed": int(seeds[0])})


def _json(path: Path, kind: type, problems: list[Problem], *, needed: bool = False) -> Any:
    """The value of a file, None with a problem if it is not of this kind; None without one if it need not be there."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        if needed:
            problems.append(Problem(str(path), "unreadable", "is missing", {"code": "missing"}))
        return None
    except (OSError, ValueError) as error:  # a text that is no JSON or no UTF-8 is a ValueError
        said = f"can't be read, is it cut off? {error}"
        problems.append(Problem(str(path), "unreadable", said, {"code": "cut-off", "error": str(error)}))
        return None
    if isinstance(value, kind):
        return value
    what = "an object" if kind is dict else "a list"
    code = f"not-{what.replace(' ', '-')}"
    problems.append(Problem(str(path), "unreadable", f"must hold {what}", {"code": code}))
    return None


def _is_summary(summary: dict[str, Any]) -> bool:
    final = summary.get("final")
    figures = [final.get("top1") if isinstance(final, dict) else None, *(summary.get(key) for key in NEEDED)]
    return all(is_number(value) for value in figures)


def _failure(folder: Path, problems: list[Problem]) -> str | None:
    """Why the run failed, None if it did not: that failure.json is there says that it did."""
    path = folder / "failure.json"
    if not path.exists():
        return None
    failure = _json(path, dict, problems) or {}
    return str(failure.get("reason", "failure.json gives no reason"))


def _metrics(folder: Path, problems: list[Problem]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Training lines and evaluations. A last line that is cut off is what a stopped process leaves."""
    path = folder / "metrics.jsonl"
    kinds: dict[str, list[dict[str, Any]]] = {"train": [], "eval": []}
    try:
        texts = path.read_bytes().splitlines() if path.exists() else []
    except OSError as error:
        values = {"code": "closed", "error": error.strerror or str(error)}
        problems.append(Problem(str(path), "unreadable", f"can't be read: {values['error']}", values))
        texts = []
    bad = []
    for number, text in enumerate(texts, 1):
        try:
            record = json.loads(text)
            if not (is_number(record["epoch"]) and is_number(record["flops"])):
                raise ValueError("no place in training")
            kinds[record["kind"]].append(record)
        except (ValueError, TypeError, KeyError):
            bad.append(number)
    if bad and bad != [len(texts)]:
        places = ", ".join(map(str, bad[:5])) + (" and more" if len(bad) > 5 else "")
        said = f"{len(bad)} of {len(texts)} lines can't be read and are left out: line {places}"
        told = {"code": "bad-lines", "lines": bad[:5], "count": len(bad), "total": len(texts)}
        problems.append(Problem(str(path), "unreadable", said, told))
    return kinds["train"], kinds["eval"]


def is_number(value: Any) -> bool:
    """Whether it is a finite number."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
