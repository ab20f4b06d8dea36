"""README.ja.md says the same as README.md. If these fail, readers of one of the languages get what no longer holds."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
ENGLISH, JAPANESE = ((ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "README.ja.md"))


def code(page: str) -> list[str]:
    """The code blocks, without comments, which are translated."""
    return [re.sub(r"\s*#.*", "", block) for block in re.findall(r"^```\w+\n(.*?)^```", page, flags=re.M | re.S)]


def links(page: str) -> list[str]:
    """Where the links and pictures lead, in any order; but those from one language to the other."""
    return sorted(set(re.findall(r"\]\(([^)]+)\)", page)) - {"README.md", "README.ja.md"})


def figures(page: str) -> list[list[str]]:
    """The numbers of each row of each table, code left out."""
    rows = [line for line in re.sub(r"^```.*?^```", "", page, flags=re.M | re.S).splitlines() if line.startswith("|")]
    return [re.findall(r"[+-]?\d+(?:[,.]\d+)*", re.sub(r"\([\w/.]*\)", "", row)) for row in rows]


@pytest.mark.parametrize("part", [code, links, figures])
def test_both_languages_say_the_same(part) -> None:
    """Commands, code, links, and the figures of tables."""
    assert len(part(ENGLISH)) > 5
    assert part(JAPANESE) == part(ENGLISH)


def test_both_languages_have_the_same_sections() -> None:
    levels = [re.findall(r"^(#+) ", re.sub(r"^```.*?^```", "", page, flags=re.M | re.S), flags=re.M)
              for page in (ENGLISH, JAPANESE)]  # fmt: skip
    assert levels[0] == levels[1] and len(levels[0]) > 8


def test_a_difference_is_seen() -> None:
    assert code(JAPANESE.replace("step(x, y)", "step(y, x)", 1)) != code(ENGLISH)
    assert figures(JAPANESE.replace("97.0", "98.0")) != figures(ENGLISH)
