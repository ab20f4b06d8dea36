"""``docs/recipes.md`` says what the recipes hold. If these fail, the page tells of other values, or leaves some out."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from benchmarks.recipe_page import FAMILIES, PAGE, header, render
from masksub.app.recipe import packaged_recipes


def test_the_page_is_made_from_the_recipes() -> None:
    assert PAGE.read_text(encoding="utf-8") == render(), "make it anew: python -m benchmarks.recipe_page"


def test_every_recipe_of_the_paper_is_on_it_and_can_be_opened() -> None:
    page = PAGE.read_text(encoding="utf-8")
    listed = re.findall(r"\[`([\w/]+)`\]\((\S+)\)", page)
    assert {name for name, _ in listed} == {n for n in packaged_recipes() if n.partition("/")[0] in FAMILIES}
    assert all((PAGE.parent / link).resolve().samefile(packaged_recipes()[name]) for name, link in listed)


def test_the_figures_of_the_paper_are_those_of_the_headers() -> None:
    """Each pair of figures in a header makes a row; one that the pattern misses would silently be "not repeated"."""
    page = PAGE.read_text(encoding="utf-8")
    for name, path in packaged_recipes().items():
        if name.partition("/")[0] in FAMILIES:
            rows = [line for line in page.splitlines() if line.startswith(f"| [`{name}`]")]
            told = header(path)["Paper"]
            assert len(rows) == max(1, told.count("->") - ("plain -> MaskSub" in told)), name
            assert ("not repeated" in told) == ("| not repeated |" in rows[0]), name


def test_a_file_without_header_is_refused(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text("method: plain\n")
    with pytest.raises(ValueError, match="does not begin with a header"):
        header(tmp_path / "r.yaml")
