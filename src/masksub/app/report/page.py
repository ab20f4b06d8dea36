"""The report as one HTML file: styles, script, charts and images inside, nothing from a network."""

from __future__ import annotations

import base64
import datetime
import hashlib
import re
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape
from plotly.offline import get_plotlyjs

from masksub import __version__
from masksub.app.evidence.model import Evidence

from .analysis import analysis_pictures, analysis_tables
from .charts import STYLES, curve_charts, difference_chart, training_charts
from .content import gather_content
from .inputs import draw_inputs
from .language import CODE_END, CODE_START, RUN_END, RUN_START, Language
from .sweep_charts import sweep_charts

__all__ = ["render_page"]

HERE = Path(__file__).parent
DASHES = {"solid": "", "dash": "7 4", "dot": "2 4", "dashdot": "7 3 2 3", "longdash": "11 4", "longdashdot": "11 3 2 3"}
"""Plotly's names of dashes for the legend, which is not Plotly's: it stands once for several charts."""
MARKERS = {
    "circle": "M20 4a4 4 0 1 1 0 8a4 4 0 1 1 0-8Z", "square": "M16 4h8v8h-8Z", "diamond": "M20 3l5 5l-5 5l-5-5Z",
    "triangle-up": "M20 3l5 9h-10Z", "triangle-down": "M20 13l5-9h-10Z",
    "x": "M16 6l2-2l2 2l2-2l2 2l-2 2l2 2l-2 2l-2-2l-2 2l-2-2l2-2Z",
    "cross": "M18.5 3h3v3.5h3.5v3h-3.5v3.5h-3v-3.5h-3.5v-3h3.5Z",
    "star": "M20 2l1.8 4.2l4.2.4l-3.2 2.9l1 4.3l-3.8-2.3l-3.8 2.3l1-4.3l-3.2-2.9l4.2-.4Z",
}  # fmt: skip
_RUN = re.compile(f"{RUN_START}([0-9]+){RUN_END}")


def render_page(
    evidence: Evidence, language: Language, *, day: datetime.date, analysis: list[dict[str, Any]] | None = None
) -> str:
    """The page.

    Args:
        evidence: what the runs say.
        language: of the reader.
        day: date of the report.
        analysis: results of ``masksub analyze``, shown as pictures and tables.

    Returns:
        HTML, complete.
    """
    environment = Environment(
        loader=FileSystemLoader(HERE),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["rich"] = rich_text
    scripts = [get_plotlyjs(), (HERE / "page.js").read_text(encoding="utf-8")]
    legend = [
        {
            "name": language.arm(arm.key), "color": style.color, "dash": DASHES.get(style.dash, style.dash),
            "marker": MARKERS[style.symbol], "number": number,
        }
        for number, arm in enumerate(evidence.arms)
        for style in (STYLES[number % len(STYLES)],)
    ]  # fmt: skip
    return environment.get_template("page.html.j2").render(
        say=language.say,
        language=language.code,
        content=gather_content(evidence, language, day),
        style=Markup((HERE / "page.css").read_text(encoding="utf-8")),
        scripts=[Markup(script) for script in scripts],
        hashes=[_hash(script) for script in scripts],
        legend=legend,
        curves=curve_charts(evidence, language),
        differences=difference_chart(evidence, language),
        training=training_charts(evidence, language),
        sweep=sweep_charts(evidence, language),
        inputs=draw_inputs(evidence, language),
        analysis=analysis_tables(analysis or [], language),
        pictures=analysis_pictures(analysis or [], language),
        version=__version__,
    )


def rich_text(text: str) -> Markup:
    """A sentence as HTML: all of it escaped, its code in code elements, its runs linked to the table of runs."""
    safe = str(escape(text)).replace(CODE_START, "<code>").replace(CODE_END, "</code>")
    return Markup(_RUN.sub(r'<a href="#run-\1">\1</a>', safe))


def _hash(script: str) -> str:
    """By which the page allows this script and no other."""
    return "sha256-" + base64.b64encode(hashlib.sha256(script.encode("utf-8")).digest()).decode("ascii")
