"""What the pages show works. If these fail, a reader who copies a block gets an error."""

from __future__ import annotations

import re
import shlex
from collections import Counter
from pathlib import Path

import pytest

from tests.pages.blocks import PAGES, ROOT, Block, find_blocks, prose
from tests.pages.commands import check_mention
from tests.pages.runner import Page, check, names_in, unknown_names
from tests.pages.sandbox import NO_NETWORK, Sandbox

EXEMPT = {
    r"needs .*GPUs?\b": 9,
    r"takes (some )?(minutes|hours)": 4,
    r"names a \w+ that does not exist": 2,
}
"""Why a block may stay unrun, as its marker begins, and how many blocks at most. One more is worth a second thought."""


def named(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def blocks_of(page: Path) -> list[Block]:
    try:
        return find_blocks(page.read_text(encoding="utf-8"))
    except ValueError as error:
        raise AssertionError(f"{named(page)}, {error}") from None


def run_page(page: Path, folder: Path, warm: Path, monkeypatch: pytest.MonkeyPatch, *, whole: bool = False) -> None:
    sandbox = Sandbox(folder, warm, whole=whole)
    running = Page(named(page), sandbox)
    monkeypatch.chdir(sandbox.work)
    for name, value in NO_NETWORK.items():
        monkeypatch.setenv(name, value)
    for block in blocks_of(page):
        if block.exempt is None:
            running.run(block)


RUN = [page for page in PAGES if page.name != "README.ja.md"]
"""``test_readme_ja`` holds its code to be README.md's, letter for letter; the slow tests run it, too."""


@pytest.mark.parametrize("page", RUN, ids=named)
def test_the_page_runs(page: Path, tmp_path: Path, warm: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_page(page, tmp_path, warm, monkeypatch)


WITH_DIFFS = [page for page in PAGES if "\n```diff\n" in page.read_text(encoding="utf-8")]


@pytest.mark.parametrize("page", WITH_DIFFS, ids=named)
def test_lines_that_a_diff_adds_have_names_that_are_there(page: Path) -> None:
    """Else whoever changes these lines in a script of theirs gets a NameError or an AttributeError."""
    blocks = blocks_of(page)
    example = {name for block in blocks if block.language == "python" for name in names_in(block.code)}
    diffs = [block for block in blocks if block.language == "diff" and block.title is None]
    together = "\n".join(block.code for block in diffs)
    for block in diffs:
        assert unknown_names(block.code, example, together) == set(), f"{named(page)}:{block.line}"


def test_each_trainer_has_a_page_with_lines_to_change() -> None:
    assert {page.stem for page in WITH_DIFFS} >= {"bare-loop", "accelerate", "timm", "transformers", "lightning"}


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=named)
def test_the_page_runs_as_it_is_written(
    page: Path, tmp_path: Path, warm: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With launchers and their eight processes, and all seeds; only installing and the demonstration are left out."""
    if not any(block.exempt is None and block.language in ("bash", "console") for block in blocks_of(page)):
        pytest.skip("no commands on this page")
    run_page(page, tmp_path, warm, monkeypatch, whole=True)


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_commands_are_what_the_command_accepts(page: Path) -> None:
    """Also in blocks that are not run, and in sentences."""
    for block in blocks_of(page):
        check(named(page), block)
    for line, text in prose(page.read_text(encoding="utf-8")):
        for command in re.findall(r"`masksub ((?!\[)[^`]+)`", text):
            try:
                check_mention([word for word in shlex.split(command) if word not in ("...", "|")])
            except ValueError as error:
                raise AssertionError(f"{named(page)}:{line}: `masksub {command}`: {error}") from error


def test_few_blocks_are_not_run() -> None:
    """Else the other tests say nothing about the pages."""
    reasons: Counter[str] = Counter()
    for page in PAGES:
        for block in blocks_of(page):
            if block.exempt is not None:
                kinds = [kind for kind in EXEMPT if re.match(kind, block.exempt)]
                assert kinds, f"{named(page)}:{block.line}: not run because it {block.exempt!r}; known are {[*EXEMPT]}"
                reasons[kinds[0]] += 1
    assert all(count <= EXEMPT[kind] for kind, count in reasons.items()), reasons


def test_each_language_of_the_pages_is_run_somewhere() -> None:
    run = {block.language for page in PAGES for block in blocks_of(page) if block.exempt is None}
    assert {"python", "bash", "yaml"} <= run
