"""The code blocks of a page: where they are, their language, and whether the page says that they are not run."""

from __future__ import annotations

import re
import textwrap
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGES = [*sorted(ROOT.glob("README*.md")), ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]

ALIASES = {"py": "python", "python3": "python", "sh": "bash", "shell": "bash", "yml": "yaml"}
CODE = ("python", "bash", "console", "yaml", "toml", "json", "diff")
NOT_CODE = ("text", "mermaid", "bibtex")

FENCE = re.compile(r"(?P<indent>[ >]*)(?P<ticks>`{3,}|~{3,})\s*(?P<info>[^`]*)$")
MARKER = re.compile(r"[ >]*<!-- not run: (?P<reason>.*\S) -->\s*$")
INDENTED = re.compile(r"(?: {4,}|\t)(?:\$ )?(?:masksub|torchrun|python3?|pip|accelerate launch) \S")


@dataclass(frozen=True)
class Block:
    """A code block; ``line`` is that of its first line of code, from 1; ``title`` the file that it shows."""

    line: int
    language: str
    code: str
    title: str | None = None
    exempt: str | None = None


def find_blocks(text: str) -> list[Block]:
    """The code blocks of a page in order, without those of ``NOT_CODE``.

    Raises:
        ValueError: with its line: a block that is never closed, has no language or one that nothing here runs; code
            that is set off by spaces only; a "not run" marker that no code block follows.
    """
    blocks = []
    lines = iter(enumerate(text.splitlines(), start=1))
    reason, marked_at = None, 0
    for number, line in lines:
        fence = FENCE.match(line)
        language, title = _info(number, fence["info"]) if fence else ("", None)
        if reason is not None and line.strip(" >") and language not in CODE:
            raise ValueError(f"line {marked_at}: marked as not run, but no block of code follows")
        if marker := MARKER.match(line):
            reason, marked_at = marker["reason"], number
        elif "<!-- not run" in line and "`<!-- not run" not in line:
            raise ValueError(f"line {number}: write <!-- not run: reason -->, alone on its line")
        if fence is None:
            if INDENTED.match(line):
                raise ValueError(f"line {number}: put commands in a block of ```bash, so that they are run")
            continue
        code = []
        for _, inside in lines:
            if inside.strip(" >") == fence["ticks"]:
                break
            code.append(inside.removeprefix(fence["indent"]) if ">" in fence["indent"] else inside)
        else:
            raise ValueError(f"line {number}: this block is never closed")
        if language in CODE:
            blocks.append(Block(number + 1, language, textwrap.dedent("\n".join(code)) + "\n", title, reason))
            reason = None
    if reason is not None:
        raise ValueError(f"line {marked_at}: marked as not run, but no block of code follows")
    return blocks


def prose(text: str) -> list[tuple[int, str]]:
    """The lines of a page outside its blocks, each with its number from 1."""
    kept, ticks = [], None
    for number, line in enumerate(text.splitlines(), start=1):
        if ticks is not None:
            ticks = None if line.strip(" >") == ticks else ticks
        elif fence := FENCE.match(line):
            ticks = fence["ticks"]
        else:
            kept.append((number, line))
    return kept


def _info(number: int, info: str) -> tuple[str, str | None]:
    """Language and title of a fence's first line."""
    first = re.match(r"[\w+-]*", info)
    language = (first[0] if first else "").lower()
    language = ALIASES.get(language, language)
    if language not in CODE + NOT_CODE:
        raise ValueError(f"line {number}: language {language!r}; blocks are {', '.join(CODE + NOT_CODE)}")
    title = re.search(r"""\btitle=(["'])(?P<title>.+?)\1""", info)
    return language, title["title"] if title else None
