"""What the pages show works. If it fails, a reader who copies the code gets an error."""

from __future__ import annotations

import re
import textwrap
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]

FENCE = re.compile(r"[ >]*(?P<ticks>`{3,}|~{3,})\s*(?P<language>[\w+-]*)")
MARKER = re.compile(r"\s*<!-- not run: (?P<reason>.*\S) -->\s*$")
LANGUAGES = ("python", "py", "python3")


@dataclass(frozen=True)
class Block:
    """A Python block of a page; ``line`` is that of its first line of code, from 1."""

    line: int
    code: str
    exempt: str | None = None


def python_blocks(text: str) -> list[Block]:
    """The Python blocks of a page, in order.

    Raises:
        ValueError: a block that is never closed, or a "not run" marker that no Python block follows.
    """
    blocks = []
    lines = iter(enumerate(text.splitlines(), start=1))
    reason, marked_at = None, 0
    for number, line in lines:
        fence = FENCE.match(line)
        python = fence is not None and fence["language"].lower() in LANGUAGES
        if reason is not None and line.strip() and not python:
            raise ValueError(f"line {marked_at}: marked as not run, but no Python block follows")
        if marker := MARKER.match(line):
            reason, marked_at = marker["reason"], number
        elif line.strip().startswith("<!-- not run"):
            raise ValueError(f"line {number}: write <!-- not run: reason -->, alone on its line")
        if fence is None:
            continue
        code = []
        for _, inside in lines:
            if inside.strip(" >") == fence["ticks"]:
                break
            code.append(inside)
        else:
            raise ValueError(f"line {number}: this block is never closed")
        if python:
            blocks.append(Block(number + 1, textwrap.dedent("\n".join(code)), reason))
            reason = None
    if reason is not None:
        raise ValueError(f"line {marked_at}: marked as not run, but no Python block follows")
    return blocks


def run(blocks: list[Block], page: str) -> dict[str, object]:
    """Run the blocks that are not exempt in one namespace; tracebacks point into the page."""
    namespace: dict[str, object] = {"__name__": Path(page).stem}
    for block in blocks:
        if block.exempt is None:
            padded = "\n" * (block.line - 1) + block.code
            exec(compile(padded, page, "exec", dont_inherit=True), namespace)
    return namespace


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_code_on_the_page_runs(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blocks = python_blocks(page.read_text(encoding="utf-8"))
    monkeypatch.chdir(tmp_path)
    run(blocks, str(page))


def test_readme_shows_code_that_runs() -> None:
    blocks = python_blocks((ROOT / "README.md").read_text(encoding="utf-8"))
    assert any(block.exempt is None for block in blocks), "README.md has no Python block that is run"


PAGE = """\
```python
first = 1
```
<!-- not run: needs eight GPUs -->

```python
raise RuntimeError
```
~~~bash
```python
~~~
- in a list:
  ```py
  second = first + 1
  ```
"""


def test_blocks_are_found_in_order_and_share_names() -> None:
    blocks = python_blocks(PAGE)
    assert [(block.line, block.exempt) for block in blocks] == [(2, None), (7, "needs eight GPUs"), (14, None)]
    assert run(blocks, "page.md")["second"] == 2


def test_a_failing_block_fails_at_its_line_of_the_page() -> None:
    with pytest.raises(ZeroDivisionError) as error:
        run(python_blocks("Text.\n\n```python\nx = 1\nx / 0\n```\n"), "page.md")
    last = error.traceback[-1]
    assert (str(last.path).endswith("page.md"), last.lineno + 1) == (True, 5)


@pytest.mark.parametrize(
    ("page", "message"),
    [
        ("```python\nx = 1\n", "line 1: this block is never closed"),
        ("<!-- not run: slow -->\nText.\n```python\n```\n", "line 1: marked as not run"),
        ("<!-- not run: slow -->\n```bash\n```\n", "line 1: marked as not run"),
        ("<!-- not run: slow -->\n", "line 1: marked as not run"),
        ("<!-- not run -->\n```python\n```\n", "line 1: write <!-- not run: reason -->"),
    ],
)
def test_mistakes_on_a_page_are_errors(page: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        python_blocks(page)
