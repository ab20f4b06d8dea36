"""What TAB offers: recipes, run folders, and the words that an option accepts.

It runs at each TAB, so it reads names of files only and imports nothing heavy. Where it has nothing to offer, the shell
offers files, as ever.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

from masksub.app.packaged import packaged_recipes

__all__ = [
    "complete_recipe",
    "complete_recipe_or_run",
    "complete_run",
    "complete_runs",
    "one_of",
    "several_of",
]

DEPTH = 3
"""Folders from the one that is typed down to a run, as of ``masksub report``."""
LOOKED_AT = 3000
"""Entries of folders that one TAB looks at: a folder of a million images must not hold it up."""


def complete_recipe(incomplete: str) -> list[str]:
    """Packaged recipes, and YAML files of the folder that is typed."""
    files = [name for name, _ in _entries(incomplete) if name.endswith((".yaml", ".yml"))]
    return [name for name in [*files, *packaged_recipes()] if name.startswith(incomplete)]


def complete_recipe_or_run(incomplete: str) -> list[str]:
    """The same and run folders: ``train RUN --resume``."""
    return [*complete_recipe(incomplete), *complete_run(incomplete)]


def complete_run(incomplete: str) -> list[str]:
    """Run folders below the folder that is typed."""
    return sorted(_runs(incomplete))


def complete_runs(incomplete: str) -> list[str]:
    """Run folders, and the folders that hold them: ``report runs/recipe-compare``."""
    runs = complete_run(incomplete)
    above = {run.rpartition("/")[0] for run in runs}
    return sorted({*runs, *(folder for folder in above if folder and folder.startswith(incomplete))})


def one_of(*words: str) -> Callable[[str], list[str]]:
    """The words that an option accepts."""

    def complete(incomplete: str) -> list[str]:
        return [word for word in words if word.startswith(incomplete)]

    return complete


def several_of(*words: str) -> Callable[[str], list[str]]:
    """The words that an option accepts, several joined by commas."""

    def complete(incomplete: str) -> list[str]:
        before, comma, last = incomplete.rpartition(",")
        taken = before.split(",")
        return [f"{before}{comma}{word}" for word in words if word.startswith(last) and word not in taken]

    return complete


def _entries(incomplete: str) -> Iterator[tuple[str, bool]]:
    """What begins so in the folder that is typed, as it would be typed, and whether it is a folder."""
    typed = incomplete[: incomplete.rfind("/") + 1]
    try:
        with os.scandir(typed or ".") as found:
            for number, entry in enumerate(found):
                if number >= LOOKED_AT:
                    return
                if (typed + entry.name).startswith(incomplete) and not entry.name.startswith("."):
                    yield typed + entry.name, entry.is_dir()
    except OSError:
        return


def _runs(incomplete: str) -> Iterator[str]:
    looked_at, waiting = 0, [(incomplete, 1)]
    for start, depth in waiting:  # grows as it goes: the nearest first
        for name, is_folder in _entries(start):
            looked_at += 1
            if looked_at > LOOKED_AT:
                return
            if not is_folder:
                continue
            if os.path.isfile(f"{name}/recipe.yaml") and os.path.isfile(f"{name}/classes.json"):  # noqa: PTH113
                yield name
            elif depth < DEPTH:
                waiting.append((f"{name}/", depth + 1))
