"""A run is a folder: recipe, environment, metrics and summary as plain text, and checkpoints.

It is the only source of truth: evaluation, comparison and reports read these files and nothing else.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import filelock
import torch

from .errors import InputError, RunBusy
from .recipe import dump_recipe, load_recipe
from .settings import Recipe

__all__ = ["RunFolder", "as_recorded", "command_line", "differing_keys", "environment", "write_text_atomically"]


LOCK = ".lock"


def write_text_atomically(path: Path, text: str) -> None:
    """Write a file so that a reader, or a machine that loses power, sees the old content or the new one."""
    # A name of its own: two commands may write the same result at the same moment.
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:12]}.writing")
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
        if not run.path.is_dir():
            raise InputError(f"{run.path}: there is no such run folder")
        for name in ("recipe.yaml", "classes.json"):
            if not (run.path / name).is_file():
                raise InputError(f"{run.path} is not a run folder: it has no {name}")
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

    def create(self, recipe: Recipe, classes: list[str], command: list[str]) -> None:
        """Write what is known before the first update."""
        self.checkpoints.mkdir(parents=True, exist_ok=True)
        write_text_atomically(self.path / "classes.json", json.dumps(classes, ensure_ascii=False, indent=0) + "\n")
        write_text_atomically(self.path / "environment.json", json.dumps(environment(recipe, command), indent=2) + "\n")
        write_text_atomically(self.path / "recipe.yaml", dump_recipe(recipe))

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


def environment(recipe: Recipe, command: list[str]) -> dict[str, Any]:
    """Where and with what a run is made."""
    packages = ("masksub", "torch", "torchvision", "timm", "accelerate", "numpy", "pillow", "safetensors")
    versions = {"python": platform.python_version()}
    for name in packages:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    cuda = torch.cuda.is_available() and recipe.train.device != "cpu"
    return {
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "command": command,
        "seed": recipe.seed,
        "versions": versions,
        "platform": platform.platform(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if cuda else None,
        "git_commit": _git_commit(),
    }


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _git_commit() -> str | None:
    """The commit of the checkout that the command was started in, "-dirty" if it has changes; None outside of one."""
    try:
        command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None


def differing_keys(one: dict[str, Any], two: dict[str, Any], prefix: str = "") -> list[str]:
    """Dotted names of the keys in which two resolved recipes differ, with both values."""
    found: list[str] = []
    for key in sorted(one.keys() | two.keys()):
        a, b = one.get(key), two.get(key)
        if isinstance(a, dict) and isinstance(b, dict):
            found += differing_keys(a, b, f"{prefix}{key}.")
        elif a != b:
            found.append(f"{prefix}{key}: {a!r} -> {b!r}")
    return found


def as_recorded(recipe: Recipe, run: RunFolder) -> Recipe:
    """The recipe with which a run was started, if this one is the same."""
    recorded = RunFolder.existing(run.path).recipe()
    # The run has the choices that were made when it began; others would draw other random numbers or round otherwise.
    if recipe.model.attention == "auto":
        recipe = recipe.changed("model", attention=recorded.model.attention)
    if recipe.data.cache == "auto":
        recipe = recipe.changed("data", cache=recorded.data.cache)
    if differing := differing_keys(recorded.model_dump(), recipe.model_dump()):
        raise InputError(
            f"{run.path} was started with another recipe and can't be resumed with this one. "
            f"Differing (run -> now):\n  " + "\n  ".join(differing)
        )
    return recorded


def command_line() -> list[str]:
    """The command as the user gave it, with the program's name in place of its path."""
    return [Path(sys.argv[0]).name, *sys.argv[1:]]
