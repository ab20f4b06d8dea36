"""Whether a path is a run folder, or can become one. Nothing heavy is imported: a wrong path is told at once."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from .errors import InputError

__all__ = ["LOCK", "WRITING", "check_new_run", "check_place", "check_runs", "what_is_wrong"]

NEEDED = ("recipe.yaml", "classes.json")
LOCK = ".lock"
WRITING = ".writing"
"""How the name ends of a file that is being written."""
BEGINNINGS = (LOCK, "checkpoints", "classes.json", "environment.json")
"""What may be there before recipe.yaml is, which is written last."""


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


def check_place(folder: Path, what: str = "a run folder") -> None:
    """See that a folder can be made there, or be written to if it is there. Makes one beside it for a moment.

    Args:
        folder: need not exist yet.
        what: it is to be, for the message.

    Raises:
        InputError: a file, or a place that can't be written to.
    """
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder} is a file: --out needs a folder")
    parent = next(each for each in (folder, *folder.absolute().parents) if each.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        raise InputError(f"--out {folder}: can't make {what}, {parent} is no folder that can be written to")
    try:
        if parent != folder:  # a file system may refuse for reasons of its own
            Path(tempfile.mkdtemp(prefix=".masksub-", dir=parent)).rmdir()
    except OSError as error:
        raise InputError(f"--out {folder}: can't make {what} in {parent} ({error.strerror})") from None


def check_new_run(folder: Path, *, resume: bool, overwrite: bool) -> None:
    """See that a run can be trained in this folder.

    Raises:
        InputError: it holds a run and neither ``resume`` nor ``overwrite`` is wanted, or it holds something else: that
            is nobody's to move away or to write between. Or it can't be written to.
    """
    check_place(folder)
    names = [item.name for item in folder.iterdir()] if folder.is_dir() else []
    others = [name for name in names if name not in BEGINNINGS and not name.endswith(WRITING)]
    others += ["checkpoints"] if any((folder / "checkpoints").glob("*")) else []
    # Asked after the listing: another command may be making the run at this moment.
    if others and not (folder / "recipe.yaml").exists():
        raise InputError(
            f"--out {folder} is no run folder: it has no recipe.yaml, but holds {min(others)}; choose another --out"
        )
    if set(names) - {LOCK} and not (resume or overwrite):
        raise InputError(f"{folder} exists: go on with --resume, or start anew with --overwrite (it is set aside)")
