"""The report in a real browser: it draws, it fits, it reaches no network, and names stay text."""

from __future__ import annotations

import base64
import hashlib
import html
import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from masksub.app.report import write_report
from tests.app.made_up import HOSTILE, situation

NAMES = ("chromium", "chromium-browser", "google-chrome")
BROWSER = next(filter(None, map(shutil.which, NAMES)), None)
pytestmark = pytest.mark.skipif(BROWSER is None, reason=f"no browser is installed: none of {', '.join(NAMES)}")

OPTIONS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--virtual-time-budget=8000",
    "--enable-logging=stderr",
)

PROBE = """
window.addEventListener("load", function () {
  var all = function (selector) { return Array.from(document.querySelectorAll(selector)); };
  var root = document.documentElement;
  var luminance = function (color) {
    var parts = color.match(/[\\d.]+/g).slice(0, 3).map(function (n) {
      n = n / 255; return n <= 0.03928 ? n / 12.92 : Math.pow((n + 0.055) / 1.055, 2.4); });
    return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2];
  };
  var behind = function (element) {
    for (; element; element = element.parentElement) {
      var color = getComputedStyle(element).backgroundColor;
      if (!/, 0\\)$/.test(color)) return color;
    }
    return "rgb(255, 255, 255)";
  };
  var faint = [];
  all("body *").forEach(function (e) {
    var own = Array.from(e.childNodes).some(function (n) { return n.nodeType === 3 && n.textContent.trim(); });
    if (!own || e.closest("svg, script, style, noscript, .skip")) return;
    var a = luminance(getComputedStyle(e).color) + 0.05, b = luminance(behind(e)) + 0.05;
    if (Math.max(a, b) / Math.min(a, b) < 4.5) faint.push(e.tagName + " " + e.className);
  });
  var stops = all("a[href], button, summary, [tabindex='0']").filter(function (e) {
    return e.getClientRects().length; });
  var deaf = stops.filter(function (e) {
    e.focus();
    return document.activeElement !== e || parseFloat(getComputedStyle(e).outlineWidth) === 0;
  });
  var plots = all(".plot");
  var button = document.querySelector(".legend button"), shown = function () {
    return plots.filter(function (p) { return p.data.some(function (t) {
      return t.meta && t.meta.arm === 0 && t.visible !== false; }); }).length; };
  var before = shown();
  if (button) button.click();
  var result = {
    width: innerWidth, scrollWidth: root.scrollWidth, lang: root.lang,
    plots: plots.length, drawn: plots.filter(function (p) { return p.querySelector("svg.main-svg"); }).length,
    outside: plots.filter(function (p) {
      return p.querySelector("svg.main-svg").getBoundingClientRect().width > p.clientWidth + 1; }).length,
    resources: performance.getEntriesByType("resource").map(function (r) { return r.name; })
      .filter(function (n) { return !/^(data|blob):/.test(n); }),
    faint: faint, deaf: deaf.map(function (e) { return e.outerHTML.slice(0, 80); }),
    order: stops.map(function (e) { return e.className || e.tagName; }),
    unreachable: all("div, section").filter(function (e) {
      var scrolls = /auto|scroll/.test(getComputedStyle(e).overflowX);
      return scrolls && e.scrollWidth > e.clientWidth + 1 && e.tabIndex < 0; }).length,
    injected: all("b, [onerror], img[src='x'], .plot a, .plot img").length,
    labels: plots.map(function (p) { return p.textContent; }).join(" "),
    shown: [before, shown()], pressed: button && button.getAttribute("aria-pressed"),
    headings: all("h1, h2, h3").map(function (e) { return Number(e.tagName[1]); }),
    captions: all("table").every(function (t) { return t.caption && t.querySelector("th[scope=row]"); }),
    mains: all("main").length, alts: all("img, [role=img]").every(function (e) { return e.alt || e.ariaLabel; })
  };
  parent.postMessage(JSON.stringify(result), "*");
});
"""
FRAME = """<!doctype html><body style="margin:0"><pre id="out"></pre><script>
addEventListener("message", function (event) { document.getElementById("out").textContent = event.data; });
</script><iframe src="page.html" width="WIDTH" height="900" style="border:0"></iframe></body>"""


def run(folder: Path, *arguments: str) -> tuple[str, list[str]]:
    """Start the browser once; what it prints, and what pages wrote to the console."""
    assert BROWSER is not None
    command = [BROWSER, *OPTIONS, f"--user-data-dir={folder / 'profile'}", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env={**os.environ, "LANG": "C.UTF-8"})
    return done.stdout, [line for line in done.stderr.splitlines() if ":CONSOLE" in line]


def probed(folder: Path, page: str, width: int) -> dict[str, Any]:
    """What a script sees that is added to a copy of the page and allowed by its policy, as the page's own are."""
    digest = base64.b64encode(hashlib.sha256(PROBE.encode()).digest()).decode()
    assert page.count("script-src ") == 1
    copy = page.replace("script-src ", f"script-src 'sha256-{digest}' ").replace(
        "</body>", f"<script>{PROBE}</script></body>"
    )
    (folder / "page.html").write_text(copy, encoding="utf-8")
    (folder / "frame.html").write_text(FRAME.replace("WIDTH", str(width)), encoding="utf-8")
    dom, console = run(folder, "--window-size=1400,1000", "--dump-dom", f"file://{folder / 'frame.html'}")
    found = re.search(r'<pre id="out">(.*?)</pre>', dom, re.DOTALL)
    assert found and found[1], f"the page's scripts did not come to their end: {console}"
    return {**json.loads(html.unescape(found[1])), "console": console}


@pytest.fixture(scope="module", params=[("win", "en", 1280), ("win", "ja", 390), ("hostile", "en", 390)], ids=str)
def seen(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    name, code, width = request.param
    folder = tmp_path_factory.mktemp("browser")
    yield {**probed(folder, str(write_report(situation(name), language=code)), width), "name": name, "code": code}
    shutil.rmtree(folder, ignore_errors=True)


def test_all_charts_are_drawn_without_error_or_network(seen: dict[str, Any]) -> None:
    """A page that needs a network, or whose script fails, shows no curves to the person who decides."""
    assert seen["console"] == []
    assert seen["resources"] == []
    assert seen["drawn"] == seen["plots"] >= 11
    assert seen["outside"] == 0


def test_the_page_fits_its_window(seen: dict[str, Any]) -> None:
    """On a phone a page that is wider than the screen can't be read; wide tables scroll in their own region."""
    assert seen["width"] in (390, 1280) and seen["scrollWidth"] <= seen["width"]


def test_everything_is_reached_and_read_without_a_mouse(seen: dict[str, Any]) -> None:
    """Each stop takes the focus and shows it; what scrolls can be scrolled by keys; structure and contrast hold."""
    assert seen["deaf"] == [] and seen["unreachable"] == 0
    assert seen["order"][0] == "skip" and seen["order"].count("scroll") >= 7
    assert seen["faint"] == []
    assert seen["headings"][0] == 1 and all(b - a <= 1 for a, b in zip(seen["headings"], seen["headings"][1:]))
    assert seen["captions"] and seen["alts"] and seen["mains"] == 1
    assert seen["lang"] == seen["code"]


def test_an_arm_is_hidden_on_request(seen: dict[str, Any]) -> None:
    """The legend's button works in every chart that shows the arm."""
    assert seen["shown"][0] >= 6 and seen["shown"][1] == 0 and seen["pressed"] == "false"


def test_names_stay_text(seen: dict[str, Any]) -> None:
    """Nothing that a user named became an element, in the page or in Plotly's labels."""
    assert seen["injected"] == 0
    assert (HOSTILE[:12] in seen["labels"]) is (seen["name"] == "hostile"), "the name is not shown at all"


def test_a_label_that_is_not_escaped_would_be_seen(tmp_path: Path) -> None:
    """The test of hostile names can fail: the same page with one element let in is noticed."""
    page = str(write_report(situation("two seeds"))).replace("<main>", "<main><img src=x onerror=alert(1)>")
    found = probed(tmp_path, page, 1280)
    assert found["injected"] == 1 and found["console"], "the policy must refuse the handler and say so"


def test_the_page_prints(tmp_path: Path) -> None:
    """Some decide on paper."""
    write_report(situation("win"), output=tmp_path / "r.html")
    _, console = run(tmp_path, f"--print-to-pdf={tmp_path / 'r.pdf'}", f"file://{tmp_path / 'r.html'}")
    pdf = (tmp_path / "r.pdf").read_bytes()
    assert pdf.startswith(b"%PDF") and console == []
    assert 5 <= len(re.findall(rb"/Type\s*/Page\b", pdf)) <= 12 or len(pdf) > 100_000
