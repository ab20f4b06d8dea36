"""What is inside one tar shard of webdataset: its images, where they lie, and their labels. Nothing is unpacked.

An image is a member KEY.jpg, .jpeg, .png or .webp; its label is the number in KEY.cls, or the number under "label" or
"cls" in KEY.json. KEY is everything before the first point of the file's name, folders included. Other members are
passed over, and so are names that begin with "." or "__". KEY.x.jpg is another image of KEY, such as a map of its
segments, and passed over too; but with a label of its own, KEY.x.cls or KEY.x.json, it is a problem: as it is named it
would be lost to the training.
"""

from __future__ import annotations

import json
import re
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from masksub.app.errors import InputError

__all__ = ["Shard", "scan"]

IMAGES = ("jpg", "jpeg", "png", "webp")
MOST_CLASSES = 1_000_000
"""A label of that or more is taken for a mistake: a model has an output for each class up to the largest label."""
_LARGEST = {"cls": 64, "json": 2**20}
"""Bytes of a member that holds a label; a longer one is none."""
_BUFFER = 16 * 1024


@dataclass(frozen=True)
class Shard:
    """The images of one shard, in its order, and what is wrong with it."""

    name: str
    """Path below the folder that all shards share."""
    size: int
    mtime_ns: int
    members: list[str]
    """Names of the images, fit to be printed."""
    spans: NDArray[np.int64]
    """(images, 2): first byte and number of bytes."""
    labels: NDArray[np.int64]
    """(images,)"""
    problems: list[tuple[str, str]]
    """(member, what is wrong with it) of what can't be used; the member is "" for the shard itself."""


@dataclass
class _Sample:
    """The members of one key; what has a further point in its name is kept under the name up to the last one."""

    images: list[tuple[str, int, int]] = field(default_factory=list)
    labels: dict[str, list[tuple[str, int, int]]] = field(default_factory=dict)


def scan(path: Path, name: str) -> Shard:
    """Read the headers and the labels of a shard.

    A shard that is cut short or has a damaged header is read up to there; what comes after it is one problem.

    Raises:
        InputError: it can't be opened.
    """
    samples: dict[str, _Sample] = {}
    problems: list[tuple[str, str]] = []
    members, spans, labels = [], [], []
    try:
        stat = path.stat()
        with path.open("rb", buffering=_BUFFER) as file:
            for member, wrong in _members(file, stat.st_size):
                _sort(member, wrong, samples, problems)
            for stem, sample in samples.items():
                if not sample.images:
                    continue
                label = _label(sample, file)
                key, pointed, _ = stem.rpartition("/")[2].partition(".")
                if pointed:
                    if "cls" not in sample.labels and isinstance(label, str):
                        continue
                    label = f"its name has a point before its suffix; its key would be {_printable(key)!r}"
                if isinstance(label, str):
                    problems.append((sample.images[0][0], label))
                    continue
                ((member_name, *span),) = sample.images
                members.append(member_name)
                spans.append(span)
                labels.append(label)
    except OSError as error:
        raise InputError(f"{path} can't be read: {error.strerror or error}") from error
    return Shard(
        name,
        stat.st_size,
        stat.st_mtime_ns,
        members,
        np.array(spans, dtype=np.int64).reshape(-1, 2),
        np.array(labels, dtype=np.int64),
        problems,
    )


def _members(file: BinaryIO, size: int) -> Iterator[tuple[tarfile.TarInfo | None, str]]:
    """Each member, and in the end (None, what is wrong with the rest) if something is."""
    end, reason = 0, ""
    try:
        with tarfile.open(fileobj=file, mode="r:") as archive:
            for member in archive:
                if member.size < 0:  # tarfile would go back, and never come to an end
                    yield None, f"the size of {_printable(member.name)} is negative"
                    return
                if member.offset_data + member.size > size:
                    yield None, f"the shard is cut short inside {_printable(member.name)}"
                    return
                yield member, ""
                end = archive.offset
    except (tarfile.TarError, ValueError, EOFError, OverflowError, MemoryError) as error:
        reason = f" ({error})"
    file.seek(end)
    block = file.read(tarfile.BLOCKSIZE)
    if block == bytes(tarfile.BLOCKSIZE):
        return
    if len(block) < tarfile.BLOCKSIZE:
        yield None, f"the shard is cut short after byte {size}: it has no end mark"
    else:
        yield None, f"the header at byte {end} is damaged{reason}"


def _sort(
    member: tarfile.TarInfo | None, wrong: str, samples: dict[str, _Sample], problems: list[tuple[str, str]]
) -> None:
    """Put a member where it belongs."""
    if member is None:
        problems.append(("", wrong))
        return
    name = member.name.removeprefix("./")
    parts = name.split("/")
    stem, _, extension = parts[-1].rpartition(".")
    extension = extension.lower()
    if member.isdir() or not stem or stem.startswith(".") or extension not in (*IMAGES, *_LARGEST):
        return
    shown = _printable(name)
    if name.startswith("/") or ".." in parts:
        problems.append((shown, "its name leads out of the archive"))
        return
    if any(part.startswith((".", "__")) for part in parts):
        return
    if "." in stem and not member.isreg():
        return
    if not member.isreg() or member.issparse():
        kind = "a link" if member.issym() or member.islnk() else "no regular file"
        problems.append((shown, f"it is {kind}; accepted are regular files"))
        return
    sample = samples.setdefault("/".join([*parts[:-1], stem]), _Sample())
    place = (shown, member.offset_data, member.size)
    if extension in IMAGES:
        sample.images.append(place)
    else:
        sample.labels.setdefault(extension, []).append(place)


def _label(sample: _Sample, file: BinaryIO) -> int | str:
    """The label of a sample, or what is wrong with it."""
    if len(sample.images) > 1:
        return f"its key comes {len(sample.images)} times in the shard ({', '.join(each[0] for each in sample.images)})"
    for kind in ("cls", "json"):
        places = sample.labels.get(kind)
        if not places:
            continue
        name, start, size = places[0]
        if len(places) > 1:
            return f"its label {name} comes {len(places)} times in the shard"
        if size > _LARGEST[kind]:
            return f"its label {name} takes {size} bytes, more than the {_LARGEST[kind]} that are accepted"
        file.seek(start)
        content = file.read(size)
        label = _number(content) if kind == "cls" else _from_json(content)
        if label is None:
            what = "a whole number" if kind == "cls" else 'JSON with a whole number under "label" or "cls"'
            return f"its label {name} is {_printable(repr(content[:30])[1:])}; accepted is {what}"
        if not 0 <= label < MOST_CLASSES:
            return f"its label {name} is {label}, out of range; accepted are 0 to {MOST_CLASSES - 1}"
        return label
    return "its label is missing: there is neither a .cls nor a .json of the same name"


def _number(content: bytes) -> int | None:
    return int(content) if re.fullmatch(rb"\s*-?\d{1,18}\s*", content) else None


def _from_json(content: bytes) -> int | None:
    try:
        found: Any = json.loads(content)
    except (ValueError, RecursionError):
        return None
    if not isinstance(found, dict):
        return None
    label = found.get("label", found.get("cls"))
    return label if isinstance(label, int) and not isinstance(label, bool) and abs(label) < 10**18 else None


def _printable(name: str) -> str:
    """The name without what would confuse a terminal or a log file."""
    return name if name.isprintable() else ascii(name)[1:-1]
