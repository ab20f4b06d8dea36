"""Checkpoints: written atomically, verified before use, weights under the model's own names.

One folder each: ``model.safetensors`` (and ``ema.safetensors``), which ``timm.create_model(..., checkpoint_path=...)``
loads as they are, ``training.pt`` with the optimizer and the place in training, and ``manifest.json`` with the checksum
of each file. The folder gets its name when all of it is on disk.
"""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import shutil
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from .errors import InputError

__all__ = [
    "Checkpoint",
    "any_in",
    "damage",
    "latest",
    "latest_state",
    "load_weights",
    "prune",
    "read_weights",
    "save",
    "set_aside_after",
    "sweep_away_unfinished",
]

_PREFIX = "update-"
_WRITING = ".writing-"


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that was found complete and undamaged."""

    path: Path
    update: int

    @property
    def weights(self) -> Path:
        """The weights to evaluate: the moving average if there is one."""
        ema = self.path / "ema.safetensors"
        return ema if ema.exists() else self.path / "model.safetensors"

    def training_state(self) -> dict[str, Any]:
        """Optimizer, scaler and place in training. Nothing but tensors and plain values is ever unpickled.

        Raises:
            InputError: it holds something else, or can't be read.
        """
        file = self.path / "training.pt"
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # torch on a file of an unusual kind; what matters is said here
                state: dict[str, Any] = torch.load(file, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError as error:
            raise InputError(f"{file.name} holds more than tensors and plain values, and could run code") from error
        except (RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
            raise InputError(f"{file.name} can't be read: {_first_line(error)}") from error
        if not isinstance(state, dict):
            raise InputError(f"{file.name} holds a {type(state).__name__}")
        return state


def save(
    folder: Path,
    update: int,
    weights: dict[str, dict[str, Tensor]],
    training: dict[str, Any],
    keep: int,
    flush: Callable[[], None] = lambda: None,
) -> Checkpoint:
    """Write a checkpoint and remove the oldest beyond ``keep``.

    Args:
        folder: the run's ``checkpoints``.
        update: number of optimizer updates done.
        weights: state dicts by file stem, "model" and perhaps "ema".
        training: tensors and plain values only.
        keep: how many checkpoints stay, at least 1.
        flush: has the disk hold what must not be older than the checkpoint, such as lines of metrics.

    Returns:
        The checkpoint. One of the same update that is there and whole is left as it is.

    Raises:
        OSError: the disk is full or not writable; older checkpoints are untouched.
    """
    target = folder / f"{_PREFIX}{update:08d}"
    if target.exists() and damage(target) is None:
        prune(folder, keep)  # a process that was killed while it did may have left half of one
        return Checkpoint(target, update)
    writing = folder / f"{_WRITING}{update:08d}"
    shutil.rmtree(writing, ignore_errors=True)
    try:
        writing.mkdir(parents=True)
        for stem, tensors in weights.items():
            save_file(_on_cpu(tensors), writing / f"{stem}.safetensors", metadata={"format": "pt"})
        with (writing / "training.pt").open("wb") as file:  # by Python, which says why a write fails
            torch.save(training, file)
        files = {path.name: _fingerprint(path) for path in sorted(writing.iterdir())}
        manifest = {"format": 1, "update": update, "files": files}
        (writing / "manifest.json").write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
        for path in (*writing.iterdir(), writing):
            _flush(path)
        flush()
        shutil.rmtree(target, ignore_errors=True)  # a damaged one of the same update
        writing.rename(target)
    except BaseException as error:
        shutil.rmtree(writing, ignore_errors=True)  # on a full disk, its room is needed
        if isinstance(error, (safetensors.SafetensorError, RuntimeError)):  # their own words for what the disk said
            raise OSError(_first_line(error)) from error
        raise
    _flush(folder)
    prune(folder, keep)
    return Checkpoint(target, update)


def sweep_away_unfinished(folder: Path) -> None:
    """Remove what a killed process was writing; nobody else may be writing."""
    for path in folder.glob(f"{_WRITING}*"):
        shutil.rmtree(path, ignore_errors=True)


def any_in(folder: Path) -> bool:
    """Whether there are checkpoints, whole or not."""
    return bool(_folders(folder))


def latest(folder: Path, tell: Callable[[str], None]) -> Checkpoint | None:
    """The newest checkpoint that is whole; each damaged one is named through ``tell`` and passed over."""
    return next(_whole(folder, tell), None)


def latest_state(folder: Path, tell: Callable[[str], None]) -> tuple[Checkpoint, dict[str, Any]] | None:
    """The newest checkpoint that is whole and can be loaded, with its state of training; else as ``latest``."""
    for found in _whole(folder, tell):
        try:
            return found, found.training_state()
        except InputError as error:
            tell(_refusal(found.path, str(error)))
    return None


def _whole(folder: Path, tell: Callable[[str], None]) -> Iterator[Checkpoint]:
    for path in reversed(_folders(folder)):
        why = damage(path)
        if why is None:
            yield Checkpoint(path, _update_of(path))
        else:
            tell(_refusal(path, why))


def _refusal(path: Path, why: str) -> str:
    return f"checkpoint {path} is refused: {why}; looking for the one before"


def damage(path: Path) -> str | None:
    """Why a checkpoint can't be used, None if it is whole."""
    try:
        manifest = json.loads((path / "manifest.json").read_text(encoding="utf-8"))
        files = dict(manifest["files"])
        if any(name != Path(name).name for name in files) or not {"model.safetensors", "training.pt"} <= files.keys():
            return "manifest.json does not list the files of a checkpoint"
        if any(not {"bytes", "sha256"} <= dict(each).keys() for each in files.values()):
            return "manifest.json has no checksum of a file"
    except (OSError, ValueError, KeyError, TypeError):
        return "manifest.json is missing or unreadable"
    for name, expected in files.items():
        file = path / name
        if not file.is_file():
            return f"{name} is missing"
        if file.stat().st_size != expected["bytes"]:
            return f"{name} is cut short or altered: {file.stat().st_size} bytes instead of {expected['bytes']}"
        if _fingerprint(file) != expected:
            return f"{name} is altered: its checksum differs"
    return None


def read_weights(path: Path) -> dict[str, Any]:
    """What a file of weights holds; nothing in it is executed.

    Args:
        path: a .safetensors file, or a torch file that holds tensors and plain values only.

    Raises:
        InputError: no such file, damaged, or a pickle that holds more than weights.
    """
    if not path.is_file():
        raise InputError(f"{path}: there is no such file of weights")
    try:
        if path.suffix == ".safetensors":
            return dict(load_file(path))
        content: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise InputError(
            f"{path} is refused: it is a pickle that holds more than weights, and loading it could run code; "
            f"give a .safetensors file, or a torch file of tensors only"
        ) from error
    except (safetensors.SafetensorError, RuntimeError, EOFError, OSError, ValueError) as error:
        raise InputError(f"{path} can't be read as weights: {_first_line(error)}") from error
    if not isinstance(content, dict):
        raise InputError(f"{path} holds a {type(content).__name__}, not weights by name")
    return content


def load_weights(
    model: nn.Module, path: Path, load: Callable[[nn.Module, dict[str, Any]], Any] = nn.Module.load_state_dict
) -> None:
    """Load weights of the same model, by name, all of them.

    Args:
        model: gets the weights.
        path: as for ``read_weights``.
        load: puts them in; the model's own way, or one that knows of shards.

    Raises:
        InputError: as ``read_weights``, or names or shapes that do not fit.
    """
    state = read_weights(path)
    try:
        load(model, state)
    except (RuntimeError, TypeError, AttributeError) as error:
        raise InputError(f"{path} does not fit {type(model).__name__}: {error}") from error


def prune(folder: Path, keep: int) -> None:
    """Remove the oldest checkpoints beyond ``keep``, as far as the file system lets; the rest goes the next time."""
    for old in _folders(folder)[:-keep]:
        shutil.rmtree(old, ignore_errors=True)


def set_aside_after(folder: Path, update: int) -> list[Path]:
    """Give checkpoints of later updates, which were refused, a name that says so, and return what they are called now.

    They would count as the newest ones, and keep those from being written that training comes to again.
    """
    aside = []
    for path in _folders(folder):
        if _update_of(path) > update:
            number = 0
            while (
                target := path.with_name(f"refused-{path.name.removeprefix(_PREFIX)}{f'-{number}' * (number > 0)}")
            ).exists():
                number += 1
            path.rename(target)
            aside.append(target)
    return aside


def _folders(folder: Path) -> list[Path]:
    # A copy that somebody made beside them has another name.
    found = (path for path in folder.glob(f"{_PREFIX}*") if path.is_dir())
    return sorted(path for path in found if path.name.removeprefix(_PREFIX).isdecimal())


def _update_of(path: Path) -> int:
    return int(path.name.removeprefix(_PREFIX))


def _on_cpu(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Copies where two names share memory, which the format does not allow."""
    seen: set[int] = set()
    result = {}
    for name, tensor in tensors.items():
        tensor = tensor.detach().to("cpu").contiguous()
        result[name] = tensor.clone() if tensor.data_ptr() in seen else tensor
        seen.add(tensor.data_ptr())
    return result


def _fingerprint(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256") if hasattr(hashlib, "file_digest") else _digest(file)
    return {"bytes": path.stat().st_size, "sha256": digest.hexdigest()}


def _digest(file: Any) -> Any:
    """hashlib.file_digest, which Python 3.10 lacks."""
    digest = hashlib.sha256()
    while chunk := file.read(1 << 20):
        digest.update(chunk)
    return digest


def _flush(path: Path) -> None:
    """Have the disk hold a file or a folder before what comes next."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
