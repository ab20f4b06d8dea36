"""A run is a folder: recipe, environment, metrics and summary as plain text, and checkpoints.

It is the only source of truth: evaluation, comparison and reports read these files and nothing else.
"""

from __future__ import annotations

import contextlib
import json
import os
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import filelock

from .environment import command_line, environment
from .errors import InputError, RunBusy
from .recipe import dump_recipe, load_recipe
from .run_check import LOCK, WRITING, check_runs
from .settings import Recipe

__all__ = [
    "RunFolder",
    "differing_keys",
    "differing_values",
    "told_difference",
    "write_text_atomically",
]


def write_text_atomically(path: Path, text: str) -> None:
    """Write a file so that a reader, or a machine that loses power, sees the old content or the new one."""
    # A name of its own: two commands may write the same result at the same moment.
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:12]}{WRITING}")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


class RunFolder:
    """The files of one run.

    Args:
        path: the folder; it need not exist yet.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.checkpoints = self.path / "checkpoints"
        self._metrics = self.path / "metrics.jsonl"

    @classmethod
    def existing(cls, path: str | Path) -> RunFolder:
        """A run that must be there.

        Raises:
            InputError: no such folder, or not a run folder.
        """
        run = cls(path)
        check_runs(run.path)
        return run

    @property
    def exists(self) -> bool:
        """Whether there is anything at the path, an unused lock apart."""
        if not self.path.is_dir():
            return self.path.exists()
        return any(item.name != LOCK for item in self.path.iterdir())

    @property
    def begun(self) -> bool:
        """Whether the folder was made to the end; what a process killed before that left is made anew."""
        return (self.path / "recipe.yaml").exists()

    def create(self, recipe: Recipe, classes: list[str], command: list[str], processes: int = 1) -> None:
        """Write what is known before the first update."""
        self.checkpoints.mkdir(parents=True, exist_ok=True)
        write_text_atomically(self.path / "classes.json", json.dumps(classes, ensure_ascii=False, indent=0) + "\n")
        facts = {**environment(recipe, command), "processes": processes, "resumed": []}
        self._write_environment(facts)
        write_text_atomically(self.path / "recipe.yaml", dump_recipe(recipe))

    def environment(self) -> dict[str, Any]:
        """environment.json; "processes" and "resumed" are there in any case."""
        facts = json.loads((self.path / "environment.json").read_text(encoding="utf-8"))
        return {"processes": 1, "resumed": [], **facts}

    def _write_environment(self, facts: dict[str, Any]) -> None:
        write_text_atomically(self.path / "environment.json", json.dumps(facts, indent=2) + "\n")

    def note_resumed(self, recipe: Recipe, facts: dict[str, Any]) -> None:
        """Add to environment.json how the run goes on, and keep the recipe that is in force from here.

        Args:
            recipe: in force; what a resumed run may not change is as before.
            facts: update, processes, exact, changed keys.
        """
        now = environment(recipe, command_line())
        known = self.environment()
        # What stayed the same is not said again.
        other = {key: value for key, value in now.items() if value != known.get(key) and key != "seed"}
        # The recipe first: killed between the two, the images of an update are written down, and another number of
        # processes is not taken for the one before.
        if facts["changed"]:
            write_text_atomically(self.path / "recipe.yaml", dump_recipe(recipe))
        self._write_environment({**known, "resumed": [*known["resumed"], {**facts, **other}]})

    def check_metrics(self) -> None:
        """See that metrics.jsonl can be written.

        Raises:
            InputError: it can't.
        """
        try:
            self._metrics.open("a", encoding="utf-8").close()
        except OSError as error:
            raise InputError(f"{self._metrics} can't be written: {error.strerror or error}") from error

    def flush_metrics(self) -> None:
        """Have the disk hold all lines of metrics.jsonl."""
        if self._metrics.exists():
            with self._metrics.open("a", encoding="utf-8") as file:
                os.fsync(file.fileno())

    def sweep_away_unfinished(self) -> None:
        """Remove what a killed process was writing; nobody else may be writing."""
        for path in self.path.glob(f".*{WRITING}"):
            path.unlink(missing_ok=True)

    def set_aside(self) -> Path:
        """Move the folder out of the way, under a name that is free, and return that name; nothing is lost."""
        number = 1
        while (target := self.path.with_name(f"{self.path.name}.replaced-{number}")).exists():
            number += 1
        self.path.rename(target)
        return target

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the run for this process alone, so that no two train it; the folder is made if it is not there.

        The operating system holds the lock: it ends with the process, however that ends. Between machines it needs a
        shared file system whose locks work (NFS 4, Lustre, GPFS). May be nested in one process.

        Raises:
            RunBusy: another process holds it.
            InputError: the file system has no locks.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        lock = filelock.FileLock(self.path / LOCK, timeout=0, is_singleton=True)
        try:
            lock.acquire()
        except filelock.Timeout:
            raise RunBusy(f"{self.path} is being trained by another process") from None
        except NotImplementedError:
            raise InputError(f"{self.path}: its file system has no file locks; keep runs on another one") from None
        try:
            yield
        finally:
            lock.release()

    def recipe(self) -> Recipe:
        """The recipe of the run, every value resolved."""
        return load_recipe(self.path / "recipe.yaml")

    def classes(self) -> list[str]:
        """Names of the classes; the index is the label."""
        names = json.loads((self.path / "classes.json").read_text(encoding="utf-8"))
        return [str(name) for name in names]

    def append(self, record: dict[str, Any]) -> None:
        """Add one line to metrics.jsonl."""
        with self._metrics.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")

    def metrics(self) -> Iterator[dict[str, Any]]:
        """The records of metrics.jsonl; a last line that a killed process left half written is passed over."""
        if not self._metrics.exists():
            return
        for line in self._metrics.read_text(encoding="utf-8").splitlines():
            try:
                yield json.loads(line)
            except json.JSONDecodeError:
                return

    def forget_after(self, update: int) -> None:
        """Drop the records after an update, so that a resumed run leaves neither doubles nor gaps."""
        kept = [json.dumps(record) + "\n" for record in self.metrics() if record["update"] <= update]
        write_text_atomically(self._metrics, "".join(kept))

    def write_summary(self, summary: dict[str, Any]) -> None:
        """Write summary.json: the run is complete."""
        write_text_atomically(self.path / "summary.json", json.dumps(summary, indent=2) + "\n")

    def write_failure(self, failure: dict[str, Any]) -> None:
        """Write failure.json: the run diverged."""
        write_text_atomically(self.path / "failure.json", json.dumps(failure, indent=2) + "\n")

    def failure(self) -> dict[str, Any] | None:
        """failure.json (update, epoch, reason), None if the run did not diverge."""
        path = self.path / "failure.json"
        return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None

    def forget_failure(self) -> None:
        """Take failure.json away: the run is tried again."""
        (self.path / "failure.json").unlink(missing_ok=True)

    def summary(self) -> dict[str, Any] | None:
        """summary.json, None while the run is not complete."""
        path = self.path / "summary.json"
        return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def differing_values(one: dict[str, Any], two: dict[str, Any], prefix: str = "") -> list[tuple[str, Any, Any]]:
    """Dotted names of the keys in which two resolved recipes differ, each with both values."""
    found: list[tuple[str, Any, Any]] = []
    for key in sorted(one.keys() | two.keys()):
        a, b = one.get(key), two.get(key)
        if isinstance(a, dict) and isinstance(b, dict):
            found += differing_values(a, b, f"{prefix}{key}.")
        elif a != b:
            found.append((f"{prefix}{key}", a, b))
    return found


def told_difference(difference: tuple[str, Any, Any]) -> str:
    """One of ``differing_values`` for people."""
    key, one, two = difference
    return f"{key}: {one!r} -> {two!r}"


def differing_keys(one: dict[str, Any], two: dict[str, Any]) -> list[str]:
    """The keys in which two resolved recipes differ, with both values, for people."""
    return [told_difference(each) for each in differing_values(one, two)]
