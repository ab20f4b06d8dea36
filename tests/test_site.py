"""The documentation: the site is built without a network, its links lead somewhere, and it says what the code says."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from filelock import FileLock

import masksub
from docs_build import families, pages
from tests.links import Links, markdown_complaints, site_complaints, site_links

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
NEWS = [name for name in ("README.md", "README.ja.md", "CONTRIBUTING.md", "CHANGELOG.md") if (ROOT / name).exists()]
PAGES = sorted([*(ROOT / name for name in NEWS), *(ROOT / "benchmarks").glob("*.md"), *DOCS.rglob("*.md")])
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)

# Whatever asks for a network while the site is built fails.
BUILD = """
import os, socket
def refuse(*_): raise OSError("the build asked for the network")
socket.socket.connect = socket.getaddrinfo = refuse
os.environ["NO_MKDOCS_2_WARNING"] = "1"
from mkdocs.__main__ import cli
cli()
"""


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built site; one for all processes of the tests."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "site"
    with FileLock(folder.with_suffix(".lock")):
        log = folder.with_suffix(".log")
        if not log.exists():
            command = [sys.executable, "-W", "ignore", "-c", BUILD, "build", "--strict", "--site-dir", str(folder)]
            built = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
            log.write_text(f"{built.returncode}\n{built.stdout}{built.stderr}", encoding="utf-8")
    told = log.read_text(encoding="utf-8")
    assert told.startswith("0\n"), f"mkdocs build --strict failed:\n{told}"
    return folder.resolve()


@pytest.fixture(scope="session")
def built(site: Path) -> dict[Path, Links]:
    return site_links(site)


def test_every_link_of_the_site_leads_somewhere(site: Path, built: dict[Path, Links]) -> None:
    """Else a reader ends at a page that is not there, or a page opened without a network hangs."""
    assert len(built) > 30 and sum(len(page.targets) for page in built.values()) > 1000
    complaints = site_complaints(site, built)
    assert not complaints, "\n".join(complaints)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_of_a_page_leads_somewhere(page: Path) -> None:
    """As a code host shows it: files beside the page, headings by its rule."""
    complaints = markdown_complaints(page, ROOT)
    assert not complaints, "\n".join(complaints)


def test_everything_public_has_its_place_on_an_api_page(site: Path, built: dict[Path, Links]) -> None:
    """Else a user finds a name in an example and nothing that explains it."""
    documented = {name for path, page in built.items() if path.parent == site / "api" for name in page.identities}
    wanted = [f"masksub.{name}" for name in masksub.__all__]
    wanted += ["masksub.core.adapter.Adapter", "masksub.core.dropping.TokenDrop", "masksub.core.filling.CellFill"]
    wanted += [f"masksub.schedule.{name}" for name in masksub.schedule.__all__]
    integrations = [path.stem for path in (ROOT / "src/masksub/integrations").glob("[!_]*.py")]
    wanted += [f"masksub.integrations.{name}" for name in integrations]
    assert len(integrations) >= 4
    missing = [name for name in wanted if not any(n == name or n.startswith(f"{name}.") for n in documented)]
    assert missing == [], f"of {len(documented)} names on the pages of docs/api"


def test_pages_render_as_a_code_host_renders_them(site: Path) -> None:
    """Else lists run into the paragraph before, and tables show as lines with bars."""
    found = []
    for path in sorted(site.rglob("*.html")):
        body = path.read_text(encoding="utf-8").partition("<article")[2].partition("</article>")[0]
        body = re.sub(r"(?s)<pre.*?</pre>|<code.*?</code>", "", body)
        found += [
            f"{path.relative_to(site)}: {text!r}" for text in re.findall(r"\n(?:[-*] |\| ?-{3}|\| )[^\n]{0,60}", body)
        ]
        found += [f"{path.relative_to(site)}: {text!r}" for text in re.findall(r"\*\*[^\n]{0,40}|:::[^\n]{0,40}", body)]
    assert not found, "\n".join(found)


def test_the_table_of_families_is_that_of_the_code() -> None:
    """Else a reader is told that a model is masked in a way that it isn't."""
    page = families.PAGE.read_text(encoding="utf-8")
    assert page == families.with_table(page), "make it anew: python -m docs_build.families"
    assert all(adapter.where.replace("_", r"\_") in page for adapter in families.FAMILIES)


def test_the_figures_of_the_sweep_are_those_of_the_study() -> None:
    """Else the advice on ratio and weight rests on other figures than the results."""
    cells = [re.split(r" *\| *", line.replace("*", "").strip("| ")) for line in _rows("results.md", "| 0.", "| **0.")]
    study = {tuple(row[:5]) for row in cells}
    page = [tuple(re.split(r" *\| *", line.strip("| "))) for line in _rows("ratio-and-weight.md", "| 0.")]
    assert len(page) == 9
    wanted = {(ratio, weight, seeds, top1, cost) for ratio, weight, seeds, top1, cost in page}
    known = {(row[0].removesuffix(" (Recommended)"), *row[1:]) for row in study if len(row) == 5}
    assert wanted <= known, f"not in the study: {sorted(wanted - known)}"


def test_tests_that_pages_name_exist() -> None:
    """An answer that rests on a test which is gone is a claim."""
    named = [
        (page, path, test)
        for page in DOCS.rglob("*.md")
        for path, test in re.findall(r"`(tests/[\w/]+\.py)(?:::(\w+))?`", page.read_text(encoding="utf-8"))
    ]
    assert len(named) > 20
    gone = [
        f"{page.name}: {path}::{test}"
        for page, path, test in named
        if not (ROOT / path).is_file() or (test and f"def {test}(" not in (ROOT / path).read_text(encoding="utf-8"))
    ]
    assert gone == []


@pytest.mark.skipif(BROWSER is None, reason="no browser is installed: chromium or google-chrome")
def test_the_search_works_from_a_disk(site: Path, tmp_path: Path) -> None:
    """Browsers start no worker there, and without ours the search says nothing at all."""
    command = [str(BROWSER), "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
               "--disable-background-networking", "--disable-sync", f"--user-data-dir={tmp_path}",
               "--virtual-time-budget=8000", "--dump-dom", f"{(site / 'index.html').as_uri()}?q=rotary"]  # fmt: skip
    page = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
    told = re.search(r'md-search-result__meta">([^<]*)<', page)
    assert told and re.match(r"[1-9]\d* matching", told[1].strip()), told and told[1]


def test_links_are_found_where_they_are_links() -> None:
    text = "[a](b.md#c) and `[not](x.md)` and [`code`](d.py) ![p](e.png)\n```\n[not](y.md)\n```\n[f](https://g.org)\n"
    assert list(pages.links(text)) == [(1, "b.md#c"), (1, "d.py"), (1, "e.png"), (5, "https://g.org")]


@pytest.mark.parametrize(
    ("target", "page", "file", "place"),
    [
        ("../src/a.py", "docs/x.md", "src/a.py", "repository/src/a.py.md"),
        ("../../CONTRIBUTING.md#style", "docs/api/x.md", "CONTRIBUTING.md", "repository/CONTRIBUTING.md"),
        ("docs/x.md", "README.md", "docs/x.md", "x.md"),
        ("../benchmarks/a.json", "docs/x.md", "benchmarks/a.json", "repository/benchmarks/a.json"),
        ("#here", "docs/x.md", None, None),
        ("https://example.org", "docs/x.md", None, None),
        ("../../elsewhere.md", "docs/x.md", None, None),
    ],
)  # fmt: skip
def test_linked_files_come_along(target: str, page: str, file: str | None, place: str | None) -> None:
    found = pages.linked_file(target, page)
    assert found == file
    assert found is None or pages.published(found) == place


def test_broken_links_are_told(tmp_path: Path) -> None:
    """The check itself: each of these must be found, and nothing else."""
    (tmp_path / "there.md").write_text("# One `two`\n\n# One two\n\n```\n# Not one\n```\n")
    (tmp_path / "page.md").write_text(
        "[ok](there.md#one-two) [ok](there.md#one-two-1) [ok](https://a.org/b_(c)) [1](gone.md)\n"
        "[2](there.md#not-one) [3](http://a.org) [4](https://nowhere) [5](../out.md)\n<img src='gone.png'>\n"
    )
    told = markdown_complaints(tmp_path / "page.md", tmp_path)
    assert [line.split()[1] for line in told] == [
        "gone.md", "there.md#not-one", "http://a.org", "https://nowhere", "../out.md", "gone.png",
    ]  # fmt: skip
    site = tmp_path / "site"
    site.mkdir()
    (site / "a.html").write_text("<p id='x'></p><a href='#x'></a><a href='a.html#y'></a><a href='b.html'></a>"
                                 "<a href='/a.html'></a><script src='https://a.org/b.js'></script>")  # fmt: skip
    (site / "a.css").write_text("p {background: url(https://a.org/b.png)}")
    told = site_complaints(site, site_links(site))
    assert [line.split()[1] for line in told] == [
        "a.html#y", "b.html", "/a.html", "https://a.org/b.js", "https://a.org/b.png",
    ]  # fmt: skip


def _rows(page: str, *beginnings: str) -> list[str]:
    """Rows of the tables of a page that begin in one of these ways."""
    text = (DOCS / page).read_text(encoding="utf-8")
    return [line for line in text.splitlines() if line.startswith(beginnings)]
