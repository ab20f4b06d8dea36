"""Whether a path is a run folder. It imports nothing heavy, so that a wrong path is told at once."""

from __future__ import annotations

from pathlib import Path

from .errors import InputError

__all__ = ["check_runs", "what_is_wrong"]

NEEDED = ("recipe.yaml", "classes.json")


def what_is_wrong(path: Path) -> str | None:
    """Why a path is no run folder; None if it is one."""
    if not path.is_dir():
        return f"{path}: there is no such run folder"
    lacking = next((name for name in NEEDED if not (path / name).is_file()), None)
    return f"{path} is not a run folder: it has no {lacking}" if lacking else None


def check_runs(*runs: Path, files: tuple[Path, ...] = ()) -> None:
    """See that runs are there, and files that are to be used with them.

    Raises:
        InputError: all that is wrong, a line each.
    """
    wrong = [said for run in runs if (said := what_is_wrong(run))]
    if missing := [str(file) for file in files if not file.is_file()]:
        wrong.append(f"there is no such image: {', '.join(missing)}")
    if wrong:
        raise InputError("\n".join(wrong))
