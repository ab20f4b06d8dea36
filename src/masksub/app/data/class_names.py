"""Names of the classes of a set of shards, from a file beside them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from masksub.app.errors import InputError

__all__ = ["class_names"]


def class_names(folder: Path) -> list[str] | None:
    """The class names of a folder of shards, None if it has none.

    Raises:
        InputError: a file of names that is not what is accepted.
    """
    text, parsed = folder / "classes.txt", folder / "classes.json"
    try:
        if text.is_file():
            return _checked([line.strip() for line in text.read_text(encoding="utf-8").rstrip().splitlines()], text)
        if parsed.is_file():
            return _checked(_from_json(json.loads(parsed.read_text(encoding="utf-8"))), parsed)
    except (OSError, ValueError, RecursionError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{text if text.is_file() else parsed} can't be read: {error}") from error
    return None


def _from_json(content: Any) -> Sequence[Any]:
    if not isinstance(content, dict):
        return content if isinstance(content, list) else []
    order = sorted(content, key=lambda name: content[name] if isinstance(content[name], int) else -1)
    return order if [content[name] for name in order] == list(range(len(order))) else []


def _checked(names: Sequence[Any], file: Path) -> list[str]:
    if not names or not all(isinstance(name, str) and name for name in names):
        raise InputError(
            f"{file}: accepted is a name for each label: lines of classes.txt, or in classes.json a list of names or "
            f"an object from name to label, from 0 without gaps"
        )
    if len({*names}) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise InputError(f"{file}: {twice!r} comes twice; classes are told apart by their names")
    return list(names)
