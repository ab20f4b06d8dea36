"""What is wrong with the links of pages, told without a network: for Markdown as a code host shows it, and for HTML."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

from docs_build.pages import FENCE, links

HEADING = re.compile(r"^#{1,6}\s+(.*?)\s*#*\s*$")
ATTRIBUTE = re.compile(r"""<[a-z][^>]*?\s(?:href|src)=["']([^"']+)["']""")
IDENTITY = re.compile(r"""<[a-z][^>]*?\s(?:id|name)=["']([^"']+)["']""")
FETCHED = {"script": "src", "img": "src", "iframe": "src", "source": "src", "video": "src"}


def outside_complaint(target: str) -> str | None:
    """What is wrong with an address outside of the site; it is not asked for."""
    parts = urlsplit(target)
    if parts.scheme != "https":
        return "is not https"
    if not re.fullmatch(r"([a-z0-9-]+\.)+[a-z]{2,}", parts.netloc):
        return "has no host"
    return "has a blank or a bracket too many" if re.search(r"[\s<>{}\\]|%(?![0-9A-Fa-f]{2})", target) else None


@cache
def markdown_anchors(page: Path) -> frozenset[str]:
    """Anchors of a page on a code host: its headings, and what carries an id."""
    found: dict[str, int] = {}
    fence = None
    named = set()
    for line in page.read_text(encoding="utf-8").splitlines():
        mark = FENCE.match(line)
        if mark and fence is None:
            fence = mark[1]
        elif mark and line.strip(" >") == fence:
            fence = None
        if fence is not None:
            continue
        named.update(IDENTITY.findall(line))
        if heading := HEADING.match(line):
            text = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", heading[1])
            slug = re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-")
            found[slug] = found.get(slug, -1) + 1
            named.add(f"{slug}-{found[slug]}" if found[slug] else slug)
    return frozenset(named)


def markdown_complaints(page: Path, root: Path) -> list[str]:
    """Each link of a Markdown page that leads nowhere, with its line."""
    text = page.read_text(encoding="utf-8")
    inline = [*links(text), *((0, target) for target in ATTRIBUTE.findall(re.sub(r"(?ms)^[ >]*```.*?```", "", text)))]
    found = []
    for line, target in inline:
        path, _, anchor = target.partition("#")
        if re.match(r"[a-z][a-z+.-]*:", target):
            wrong = outside_complaint(target)
        else:
            there = (page.parent / unquote(path)).resolve() if path else page
            if not there.is_relative_to(root.resolve()) or not there.exists():
                wrong = "is no file"
            elif anchor and there.suffix == ".md" and unquote(anchor) not in markdown_anchors(there):
                wrong = f"has no such heading; there are {', '.join(sorted(markdown_anchors(there)))}"
            else:
                wrong = None
        if wrong:
            found.append(f"{page.relative_to(root)}:{line}: {target} {wrong}")
    return found


@dataclass
class Links(HTMLParser):
    """What an HTML page offers and asks for."""

    identities: set[str] = field(default_factory=set)
    targets: list[str] = field(default_factory=list)
    fetched: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value for name, value in attrs if value is not None}
        self.identities.update(values[name] for name in ("id", "name") if name in values)
        if tag == "a" and "href" in values:
            self.targets.append(values["href"])
        if tag == "link" and values.get("rel") not in ("canonical",):
            self.fetched.append(values["href"])
        if values.get(FETCHED.get(tag, "")):
            self.fetched.append(values[FETCHED[tag]])


def site_links(site: Path) -> dict[Path, Links]:
    """All HTML pages below ``site``."""
    pages = {}
    for path in sorted(site.rglob("*.html")):
        pages[path] = Links()
        pages[path].feed(path.read_text(encoding="utf-8"))
    return pages


def site_complaints(site: Path, pages: dict[Path, Links]) -> list[str]:
    """Each link of a built site that leads nowhere, and all that a browser would fetch from elsewhere."""
    found = []
    for page, own in pages.items():
        for target in dict.fromkeys([*own.targets, *own.fetched]):
            if target.startswith("data:"):
                continue
            wrong = None
            path, _, anchor = target.partition("#")
            if re.match(r"[a-z][a-z+.-]*:|//", target):
                wrong = "is fetched from elsewhere" if target in own.fetched else outside_complaint(target)
            else:
                # The page for what is not found is shown at any depth, so its links begin at the root.
                root = page.name == "404.html" and path.startswith("/")
                there = (site / path[1:] if root else page.parent / unquote(path.partition("?")[0])).resolve()
                there = page if not path else there / "index.html" if there.is_dir() else there
                if path.startswith("/") and not root:
                    wrong = "begins at the root of a server"
                elif not there.is_file():
                    wrong = "is no file of the site"
                elif anchor and there in pages and unquote(anchor) not in pages[there].identities:
                    wrong = "has no such anchor"
            if wrong:
                found.append(f"{page.relative_to(site)}: {target} {wrong}")
    for path in sorted(site.rglob("*.css")):
        loads = re.findall(r"url\(\s*[\"']?((?:https?:)?//[^)\"']+)", path.read_text(encoding="utf-8"))
        found += [f"{path.relative_to(site)}: {target} is fetched from elsewhere" for target in loads]
    return found
