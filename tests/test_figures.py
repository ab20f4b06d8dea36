"""The pictures of the pages, and the scripts that make them."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
from PIL import Image, ImageDraw

from benchmarks.figures import method, report
from masksub.app.report import write_report
from tests.app.made_up import situation

DOCS = Path(__file__).resolve().parents[1] / "docs"
SHOWN = [*DOCS.parent.glob("README*.md"), *DOCS.rglob("*.md")]


@pytest.fixture(scope="module")
def page() -> str:
    return str(write_report(situation("win")))


def test_the_method_picture_is_what_its_script_draws(tmp_path: Path) -> None:
    """Otherwise the next one who changes a word in it redraws something else."""
    method.draw(tmp_path / "method.svg")
    drawn, committed = (path.read_text(encoding="utf-8") for path in (tmp_path / "method.svg", method.PICTURE))
    by = [re.search(r"Matplotlib v[\d.]+", text) for text in (drawn, committed)]
    assert by[0] and by[1]
    if by[0][0] != by[1][0]:
        pytest.skip(f"drawn by {by[1][0]}, installed is {by[0][0]}: letters may be placed otherwise")
    assert drawn == committed, "make it anew: python -m benchmarks.figures.method"


def test_pictures_are_light_and_used() -> None:
    """A page of heavy pictures is slow to read; one that no page shows is forgotten when the report changes."""
    pages = "\n".join(path.read_text(encoding="utf-8") for path in SHOWN)
    pictures = [path for path in (DOCS / "images").iterdir() if path != method.PICTURE]
    assert pictures
    for path in pictures:
        assert path.stat().st_size < 150_000, f"{path.name}: {path.stat().st_size} bytes"
        assert f"images/{path.name}" in pages, f"{path.name} is on no page"


def test_every_part_is_in_a_report(page: str) -> None:
    """If the report names its parts otherwise, pictures of them can't be made anew."""
    for part, selectors in report.PARTS.items():
        for each in " ".join(selectors).split():
            kind, name = (each[0], each[1:]) if each[0] in "#." else ("", each)
            pattern = {"#": rf'id="{name}"', ".": rf'class="{name}\b', "": rf"<{name}>"}[kind]
            assert re.search(pattern, page) or each == ".deck", f"{part}: no {each}"


def test_only_a_report_is_taken() -> None:
    with pytest.raises(ValueError, match="no report of masksub"):
        report.hide_all_but("<p>some page</p>", ("header",))


def test_the_border_is_cut_off() -> None:
    """Otherwise a picture is mostly paper."""
    picture = Image.new("RGB", (200, 300), "white")
    ImageDraw.Draw(picture).rectangle((50, 60, 89, 79), fill="black")
    cut = report.trimmed(picture, margin=5).convert("RGB")
    assert cut.size == (50, 30)
    assert [cut.getpixel(at) for at in ((4, 4), (5, 5), (44, 24), (45, 25))] == [
        (255, 255, 255), (0, 0, 0), (0, 0, 0), (255, 255, 255)]  # fmt: skip
    with pytest.raises(ValueError, match="empty"):
        report.trimmed(Image.new("RGB", (20, 20), "white"))


@pytest.mark.skipif(not any(map(shutil.which, report.BROWSERS)), reason="no browser is installed")
def test_a_part_is_shot_alone(page: str, tmp_path: Path) -> None:
    """The headline is wide and low; with all else on it, it would fill the window."""
    (tmp_path / "report.html").write_text(page, encoding="utf-8")
    report.main([str(tmp_path / "report.html"), f"headline={tmp_path / 'headline.png'}"])
    with Image.open(tmp_path / "headline.png") as picture:
        assert picture.width > 800 and 100 < picture.height < 500
