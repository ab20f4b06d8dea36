"""Weights in numpy archives, as the JAX originals of vision transformers are published."""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .errors import InputError

__all__ = ["load_numpy"]


def load_numpy(model: nn.Module, path: Path, name: str, fetched: bool) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Load an archive by the model's own reader, which unpickles nothing.

    The reader does not say what it loaded. What is still not a number afterwards was not.

    Args:
        model: has its initial values, and keeps those that the archive does not give.
        path: the archive.
        name: timm's name of the model, for messages.
        fetched: the archive lies in a cache; a damaged one is removed, so that it is fetched again.

    Returns:
        All weights of the model, and those that were loaded.

    Raises:
        InputError: the model has no such reader, or it can't make sense of the archive.
    """
    reader: Any = getattr(model, "load_pretrained", None)
    if reader is None:
        raise InputError(f"{path}: {name} can't read numpy archives; give a .safetensors or .pth file")
    own = {key: value for key, value in model.state_dict().items() if value.is_floating_point()}
    initial = {key: value.clone() for key, value in own.items()}
    for value in own.values():
        value.fill_(torch.nan)
    try:
        with zipfile.ZipFile(path):
            pass  # numpy would leave the file of a broken archive open
        reader(str(path))
    except Exception as error:
        if fetched and _damaged(path):  # one that is whole and fits another model stays
            path.unlink(missing_ok=True)
        raise InputError(f"{path} can't be read as a numpy archive of {name}: {error}") from error
    new = [key for key, value in own.items() if bool(value.isnan().any())]
    for key in new:
        own[key].copy_(initial[key])
    return own, {key: value for key, value in own.items() if key not in new}


def _damaged(path: Path) -> bool:
    """Whether an archive is cut short or altered."""
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.testzip() is not None
    except (OSError, EOFError, zipfile.BadZipFile, zlib.error, NotImplementedError):
        return True
