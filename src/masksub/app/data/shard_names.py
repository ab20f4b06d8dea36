"""Which tar shards a recipe means: a folder of them, one file, or names with braces."""

from __future__ import annotations

import itertools
import re
from pathlib import Path

from masksub.app.errors import InputError

__all__ = ["expand", "find_shards"]

ACCEPTED = 'a folder of .tar files, a .tar file, and names with braces such as "train-{0000..1023}.tar"'
MOST = 1_000_000
"""Names that braces may stand for; a slip of the keyboard must not fill the memory."""
_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d+)\.\.(\d+)")


def expand(pattern: str) -> list[str]:
    """The names that a pattern with braces stands for, as a shell would list them.

    Args:
        pattern: "{0000..1023}" counts up, with zeros in front if either end has them; "{a,b}" takes one after the
            other. Several groups are combined, the last one changing first.

    Raises:
        InputError: braces without a partner or inside one another, a range that counts down, too many names.
    """
    parts = _BRACES.split(pattern)  # text, inside of braces, text, ...
    if any(brace in part for part in parts[::2] for brace in "{}"):
        raise InputError(f"{pattern}: braces must come in pairs and not inside one another, as in x-{{0000..1023}}.tar")
    choices: list[list[str]] = []
    total = 1
    for number, part in enumerate(parts):
        if number % 2 == 0:
            choices.append([part])
            continue
        choices.append(_alternatives(part, pattern, MOST // total))
        total *= len(choices[-1])
    return ["".join(each) for each in itertools.product(*choices)]


def _alternatives(inside: str, pattern: str, most: int) -> list[str]:
    found = _RANGE.fullmatch(inside)
    if found is None:
        if ".." in inside or "," not in inside:
            raise InputError(
                f"{pattern}: {{{inside}}} is neither a range of numbers that counts up, such as {{0000..1023}}, nor a "
                f"list, such as {{a,b}}"
            )
        names = inside.split(",")
    else:
        first, last = found.groups()
        count = int(last) - int(first) + 1
        if count < 1:
            raise InputError(f"{pattern}: {{{inside}}} counts down; accepted are ranges that count up")
        padded = any(len(end) > 1 and end.startswith("0") for end in (first, last))
        width = max(len(first), len(last)) if padded else 0
        names = [f"{number:0{width}d}" for number in range(int(first), int(first) + min(count, most + 1))]
    if len(names) > most:
        raise InputError(f"{pattern} stands for more than {MOST:,} names")
    return names


def find_shards(path: str, key: str) -> tuple[list[Path], list[Path]]:
    """The shards that are there, in the order of their names or of the pattern, and those that should be.

    Args:
        path: see ``ACCEPTED``.
        key: what the path is called in messages, such as the recipe's key.

    Raises:
        InputError: none is there, one is named twice, or it is no tar without compression.
    """
    whole = Path(path).expanduser()
    if "://" in path or path.startswith("pipe:"):
        raise InputError(f"{key} = {path}: shards are read from disks; accepted are {ACCEPTED}")
    if whole.is_dir():
        found = sorted(each for each in whole.iterdir() if each.suffix == ".tar" and not each.name.startswith("."))
        if not found:
            raise InputError(f"{key} = {path}: there are no .tar files in this folder; accepted are {ACCEPTED}")
        return found, []
    names = [path] if whole.exists() else expand(path)
    wanted = [Path(name).expanduser() for name in names]
    wrong = next((each for each in wanted if each.suffix != ".tar"), None)
    if wrong is not None:
        raise InputError(
            f"{key} = {path}: {wrong.name or wrong} is no .tar; accepted are {ACCEPTED}, not compressed, because "
            f"images are read from the middle of them"
        )
    twice = next((each for each in wanted if wanted.count(each) > 1), None) if len({*wanted}) < len(wanted) else None
    if twice is not None:
        raise InputError(f"{key} = {path}: names {twice} twice")
    found = [each for each in wanted if each.is_file()]
    if not found:
        parent = next(above for above in wanted[0].absolute().parents if above.exists())
        raise InputError(
            f"{key} = {path}: none of its {len(wanted)} shard(s) is there, {wanted[0]} being the first (the nearest "
            f"folder that exists: {parent}); accepted are {ACCEPTED}"
        )
    there = set(found)
    return found, [each for each in wanted if each not in there]
