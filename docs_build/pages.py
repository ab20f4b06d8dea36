"""Build hook of MkDocs: the site carries every file of the repository that its pages link to.

Pages are written for two readers. On a code host ``../benchmarks/README.md`` is right; on the site, which may lie on a
disk without a network, that file must come along. So each linked file is published below ``repository/``, and links are
turned to it: Markdown as a page, other text as a page that shows it, JSON and pictures as they are.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files, InclusionLevel
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[1]
DOCS = "docs"
PUBLISHED = "repository"
AS_IT_IS = {".json", ".png", ".svg", ".jpg", ".webp"}
LANGUAGES = {".py": "python", ".yaml": "yaml", ".yml": "yaml", ".toml": "toml", ".cff": "yaml", ".sh": "bash"}
WIDE = ("models.md", "planning.md", "recipes.md")
"""Pages of tables with many columns, which get the room of the list of contents."""
ASSETS = ("site.css", "iframe-worker.js")

FENCE = re.compile(r"^[ >]*(`{3,}|~{3,})")
CODE = re.compile(r"(`+)(?!`).*?(?<!`)\1(?!`)")
LINK = re.compile(
    r"(?P<before>!?\[(?:[^\[\]]|\[[^\]]*\]\([^)]*\)|\[[^\]]*\])*\]\()(?P<target>[^\s)]+)(?P<after>[^)]*\))"
)


def links(markdown: str) -> Iterator[tuple[int, str]]:
    """Line, from 1, and target of each inline link and picture that is not code."""
    for number, line, is_code in _lines(markdown):
        if not is_code:
            yield from ((number, match["target"]) for match in _matches(line))


def published(path: str) -> str:
    """Where a file of the repository, by its path from the root, lies in the sources of the site."""
    if path.startswith(f"{DOCS}/"):
        return path.removeprefix(f"{DOCS}/")
    suffix = posixpath.splitext(path)[1]
    return f"{PUBLISHED}/{path}" + ("" if suffix == ".md" or suffix in AS_IT_IS else ".md")


def linked_file(target: str, page: str) -> str | None:
    """The file of the repository that a link of ``page`` means, by its path from the root; None for other links.

    Args:
        target: of the link, perhaps with an anchor.
        page: path of the page's source from the root of the repository.
    """
    path = unquote(target.partition("#")[0])
    if not path or re.match(r"[a-z][a-z+.-]*:", path) or path.startswith("/"):
        return None
    found = posixpath.normpath(posixpath.join(posixpath.dirname(page), path))
    return None if found.startswith("../") else found


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add what pages link to, and what the linked pages link to."""
    for name in ASSETS:
        files.append(File.generated(config, f"assets/{name}", abs_src_path=str(ROOT / "docs_build" / name)))
    pages = [f"{DOCS}/{file.src_uri}" for file in files.documentation_pages()]
    in_nav = [entry for entry in _targets(config.nav) if entry.startswith(f"{PUBLISHED}/")]
    waiting = [*pages, *(entry.removeprefix(f"{PUBLISHED}/") for entry in in_nav)]
    seen = set(pages)
    while waiting:
        page = waiting.pop()
        if page not in seen:
            seen.add(page)
            files.append(_file(page, config))
        if not page.endswith(".md"):
            continue
        for line, target in links((ROOT / page).read_text(encoding="utf-8")):
            path = linked_file(target, page)
            if path is None or path in seen or path.startswith(f"{DOCS}/"):
                continue
            if not (ROOT / path).is_file():
                raise PluginError(f"{page}, line {line}: links to {target}, which is no file of the repository")
            waiting.append(path)
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turn links to where their files lie on the site; give wide tables room; render as a code host does."""
    source = _source(page.file.src_uri)
    here = posixpath.dirname(page.file.src_uri)
    if page.file.src_uri in WIDE:
        page.meta["hide"] = ["toc"]

    def turned(match: re.Match[str]) -> str:
        target = match["target"]
        path = linked_file(target, source)
        if path is None:
            return match[0]
        anchor = target[len(target.partition("#")[0]) :]
        return f"{match['before']}{posixpath.relpath(published(path), here or '.')}{anchor}{match['after']}"

    lines = []
    for _, line, is_code in _lines(markdown):
        if not is_code:
            for match in reversed(list(_matches(line))):
                line = line[: match.start()] + turned(match) + line[match.end() :]
            line = line.replace("<details>", '<details markdown="1">')
        lines.append(line)
    return "\n".join(lines)


def _lines(markdown: str) -> Iterator[tuple[int, str, bool]]:
    """Number, text, and whether it belongs to a fenced block, of each line."""
    fence = None
    for number, line in enumerate(markdown.splitlines(), start=1):
        mark = FENCE.match(line)
        if fence is None and mark:
            fence = mark[1]
            yield number, line, True
        elif fence is not None:
            yield number, line, True
            if line.strip(" >") == fence:
                fence = None
        else:
            yield number, line, False


def _matches(line: str) -> Iterator[re.Match[str]]:
    """Links of a line that don't lie in its code; a link whose text is code is one."""
    code = [match.span() for match in CODE.finditer(line)]
    for match in LINK.finditer(line):
        if not any(begin < match.start("target") < end for begin, end in code):
            yield match


def _targets(nav: object) -> Iterator[str]:
    if isinstance(nav, str):
        yield nav
    elif isinstance(nav, dict):
        for value in nav.values():
            yield from _targets(value)
    elif isinstance(nav, list):
        for value in nav:
            yield from _targets(value)


def _source(src_uri: str) -> str:
    """Path from the root of the repository of what a page of the site is made from."""
    if src_uri.startswith(f"{PUBLISHED}/"):
        path = src_uri.removeprefix(f"{PUBLISHED}/")
        return path if (ROOT / path).is_file() else path.removesuffix(".md")
    return f"{DOCS}/{src_uri}"


def _file(path: str, config: MkDocsConfig) -> File:
    """A file of the repository as one of the site."""
    place = published(path)
    if posixpath.splitext(path)[1] in (".md", *AS_IT_IS):
        return File.generated(config, place, abs_src_path=str(ROOT / path), inclusion=InclusionLevel.NOT_IN_NAV)
    language = LANGUAGES.get(posixpath.splitext(path)[1], "text")
    text = (ROOT / path).read_text(encoding="utf-8")
    ticks = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
    page = f"---\nsearch:\n  exclude: true\n---\n\n# {path}\n\n{ticks}{language}\n{text.rstrip()}\n{ticks}\n"
    return File.generated(config, place, content=page, inclusion=InclusionLevel.NOT_IN_NAV)
