"""Pictures of parts of a report, for ``docs/proof-of-concept.md``.

    masksub report runs/recipe-compare runs/recipe-sweep
    python -m benchmarks.figures.report report.html verdict=docs/images/report-verdict.png
    python -m benchmarks.figures.report --list

The page is opened in Chromium as it is, but for a style that hides everything else, and what is left is cropped.
"""

from __future__ import annotations

import argparse
import io
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image, ImageChops

__all__ = ["PARTS", "hide_all_but", "shoot", "trimmed"]

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
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
    "--hide-scrollbars",
    "--virtual-time-budget=8000",
)
WIDTH, HEIGHT = 920, 2600
"""Of the window. Wide enough for two columns of charts, narrow enough to be read at a page's width."""
SCALE = 1.5
"""Pixels of the picture for one of the page."""
MARGIN = 16
COLOURS = 128

PARTS = {
    "verdict": ("header", ".headline", ".deck", "#part-epochs", "#part-compute", "#part-cost", "#part-certainty"),
    "decision": ("#part-recommended", "#part-next", "#part-limits"),
    "headline": ("header", ".headline", ".deck"),
    "differences": ("#chart-differences",),
    "accuracy": ("#table-accuracy",),
    "comparison": ("#chart-differences", "#table-cost"),
    "curves": ("#curves .legend", "#chart-top1-epoch", "#chart-top1-flops"),
    "sweep": ("#chart-heat-0", "#chart-pareto"),
    "inputs": ("#inputs",),
}
"""What a picture shows, by its name; anything else is taken as a CSS selector."""


def hide_all_but(page: str, selectors: tuple[str, ...]) -> str:
    """The page with a style that shows these elements alone, and what they stand in.

    Raises:
        ValueError: the page is no report.
    """
    if page.count("</head>") != 1:
        raise ValueError("this is no report of masksub: it has no single </head>")
    selectors = (*selectors, "#js-plotly-tester")  # where Plotly measures text
    wanted = ", ".join(selectors)
    inside = ", ".join(f"{each} *" for each in selectors)
    # What stands around others like them is shown, too, but is empty.
    around = ", ".join(f":has({each.split()[-1]})" for each in selectors)
    style = f"body *:not({wanted}, {inside}, {around}) {{ display: none !important; }}"
    style += " section { margin-top: 0 !important; } .page { padding: 8px 16px !important; }"
    return page.replace("</head>", f"<style>{style}</style></head>")


def trimmed(picture: Image.Image, margin: int = MARGIN) -> Image.Image:
    """Without the empty border, but for a margin in pixels; few colours, which keeps the file small.

    Raises:
        ValueError: the picture is empty.
    """
    picture = picture.convert("RGB")
    box = ImageChops.difference(picture, Image.new("RGB", picture.size, picture.getpixel((0, 0)))).getbbox()
    if box is None:
        raise ValueError("the picture is empty: the report has no such part")
    left, top, right, bottom = box
    box = (max(0, left - margin), max(0, top - margin), right + margin, bottom + margin)
    full = Image.new("RGB", (box[2] - box[0], box[3] - box[1]), picture.getpixel((0, 0)))
    full.paste(picture.crop((box[0], box[1], min(right + margin, picture.width), min(bottom + margin, picture.height))))
    return full.quantize(COLOURS, dither=Image.Dither.NONE)


def shoot(report: Path, part: str, picture: Path, *, width: int = WIDTH) -> None:
    """Write a PNG of a part of the report.

    Raises:
        RuntimeError: no browser is installed, or it made no picture.
        ValueError: the report has no such part.
    """
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        raise RuntimeError(f"no browser is installed: none of {', '.join(BROWSERS)}")
    page = hide_all_but(report.read_text(encoding="utf-8"), PARTS.get(part, (part,)))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "page.html").write_text(page, encoding="utf-8")
        command = [
            browser,
            *OPTIONS,
            f"--user-data-dir={folder / 'profile'}",
            f"--force-device-scale-factor={SCALE}",
            f"--window-size={width},{HEIGHT}",
            f"--screenshot={folder / 'page.png'}",
            f"file://{folder / 'page.html'}",
        ]
        done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "LANG": "C.UTF-8"})
        if not (folder / "page.png").exists():
            raise RuntimeError(f"{browser} made no picture: {done.stderr.strip()[-500:]}")
        shot = Image.open(io.BytesIO((folder / "page.png").read_bytes()))
        picture.parent.mkdir(parents=True, exist_ok=True)
        trimmed(shot).save(picture, optimize=True)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("report", type=Path, nargs="?")
    parser.add_argument("pictures", nargs="*", metavar="PART=PNG")
    parser.add_argument("--width", type=int, default=WIDTH, help=f"of the window, in pixels; {WIDTH}")
    parser.add_argument("--list", action="store_true", help="name the parts")
    given = parser.parse_args(arguments)
    if given.list:
        print("\n".join(PARTS))
        return
    if given.report is None or not given.pictures:
        parser.error("name a report and at least one PART=PNG")
    for each in given.pictures:
        part, equals, path = each.rpartition("=")
        if not equals:
            parser.error(f"{each}: write PART=PNG, for example verdict=verdict.png")
        try:
            shoot(given.report, part, Path(path), width=given.width)
        except (OSError, RuntimeError, ValueError) as error:
            sys.exit(f"{each}: {error}")
        print(f"{path}: {Path(path).stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
