"""The curves and differences of a comparison as Plotly figures, in JSON that can stand in a page."""

from __future__ import annotations

import html
import math
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import plotly.graph_objects as go

from masksub.app.evidence.model import Arm, Curve, Evidence

from .language import Language
from .tables import Table

__all__ = ["STYLES", "Chart", "Style", "chart_text", "curve_charts", "difference_chart", "layout", "training_charts"]

HEIGHT = 340
INK, FAINT = "#333333", "#e4e4e0"
FONT = "system-ui, 'Hiragino Sans', 'Noto Sans CJK JP', 'Noto Sans JP', 'Yu Gothic', sans-serif"


@dataclass(frozen=True)
class Style:
    """How an arm is drawn: by colour, and by dash and marker for those who don't see the colours."""

    color: str
    dash: str
    symbol: str


STYLES = (
    Style("#000000", "solid", "circle"),
    Style("#0072B2", "dash", "square"),
    Style("#D55E00", "solid", "diamond"),
    Style("#009E73", "dot", "triangle-up"),
    Style("#CC79A7", "dashdot", "x"),
    Style("#E69F00", "longdash", "cross"),
    Style("#56B4E9", "longdashdot", "triangle-down"),
    Style("#7A5195", "6px,2px", "star"),
)
"""Okabe and Ito's colours but for yellow, which is too light on white, and one more."""


@dataclass(frozen=True)
class Chart:
    """One figure.

    Attributes:
        key: names it in the page.
        title: above it.
        alt: what it shows, for those who don't see it.
        json: Plotly's data and layout; "<" and ">" are escaped, so that it can stand inside of a script element.
        height: pixels.
        wide: whether it takes the whole width.
        note: below it, "" for nothing.
        table: its figures, None where a table of the page has them.
    """

    key: str
    title: str
    alt: str
    json: str
    height: int = HEIGHT
    wide: bool = False
    note: str = ""
    table: Table | None = None


def chart_text(text: str, width: int | None = None) -> str:
    """Text as Plotly shows it: without markup, which Plotly would read in any label; broken at ``width`` letters."""
    lines = textwrap.wrap(text, width, max_lines=3, placeholder="…") if width else [text]
    # Between dollar signs Plotly looks for mathematics.
    return "<br>".join(html.escape(line, quote=False).replace("$", "&#36;") for line in lines or [""])


def layout(**more: Any) -> dict[str, Any]:
    """What all charts share, and more."""
    axis = {"gridcolor": FAINT, "zeroline": False, "linecolor": "#999999", "ticks": "outside", "tickcolor": "#999999"}
    return {
        "template": None,
        "font": {"family": FONT, "size": 13, "color": INK},
        "paper_bgcolor": "white",
        "plot_bgcolor": "white",
        "margin": {"l": 60, "r": 12, "t": 10, "b": 52},
        "showlegend": False,
        "hovermode": "closest",
        "hoverlabel": {"bgcolor": "white", "font": {"color": INK}, "namelength": -1},
        "height": more.pop("height", HEIGHT),
        "xaxis": {**axis, "automargin": True, "showgrid": False, **more.pop("xaxis", {})},
        "yaxis": {**axis, "automargin": True, **more.pop("yaxis", {})},
        **more,
    }


def curve_charts(evidence: Evidence, language: Language) -> list[Chart]:
    """Accuracy and validation loss, against epochs and against compute."""
    charts = []
    for name in ("top1", "loss"):
        arms = _with_curve(evidence, name)
        for against in ("epoch", "flops") if arms else ():
            charts.append(_curves(f"{name}-{against}", name, against, arms, language))
    return charts


def training_charts(evidence: Evidence, language: Language) -> list[Chart]:
    """Both branches' losses, their agreement, and the gradient's norm, against epochs."""
    titles = {"loss_main": "loss_main", "loss_sub": "loss_sub", "agreement": "branch-agreement"}
    charts = []
    for name in (*titles, "gradient_norm"):
        if arms := _with_curve(evidence, name):
            charts.append(_curves(titles.get(name, name), name, "epoch", arms, language))
    return charts


def _with_curve(evidence: Evidence, name: str) -> list[tuple[int, Arm, Curve]]:
    return [
        (number, arm, arm.curves[name])
        for number, arm in enumerate(evidence.arms)
        if name in arm.curves and arm.curves[name].mean
    ]


_UNITS = {"top1": "top1", "agreement": "agreement", "gradient_norm": "norm"}


def _curves(key: str, name: str, against: str, arms: Sequence[tuple[int, Arm, Curve]], language: Language) -> Chart:
    say = language.say
    size, unit = 1.0, ""
    if against == "flops":
        size, unit = language.scale_of_flops(max(max(curve.flops) for _, _, curve in arms))
    figure = go.Figure()
    for number, arm, curve in arms:
        style, label = STYLES[number % len(STYLES)], chart_text(language.arm(arm.key))
        x = [value / size for value in (curve.flops if against == "flops" else curve.epoch)]
        meta = {"arm": number}
        figure.add_scatter(
            x=x + x[::-1], y=curve.high + curve.low[::-1], fill="toself", fillcolor=style.color, opacity=0.14,
            line={"width": 0}, mode="lines", hoverinfo="skip", name=label, meta=meta,
        )  # fmt: skip
        figure.add_scatter(
            x=x, y=curve.mean, name=label, meta=meta, mode="lines+markers",
            line={"color": style.color, "dash": style.dash, "width": 2},
            marker={"symbol": style.symbol, "size": 7, "maxdisplayed": 14, "color": style.color},
            hovertemplate="%{y:.4~g}<br>%{x:.4~g}",
        )  # fmt: skip
    yaxis: dict[str, Any] = {"title": {"text": chart_text(say(f"chart.{_UNITS.get(name, 'loss')}"))}}
    values = [value for _, _, curve in arms for value in (*curve.low, *curve.high) if math.isfinite(value)]
    note = ""
    if name == "top1":
        low, high = min(values), max(values)
        floor = _floor_of_accuracy(arms, low, high)
        room = 0.04 * (high - floor) or 1.0
        yaxis["range"] = [floor - room, high + room]
        if floor > low:
            note = say("curves.cut", low=round(floor - room, 1))
    elif name != "agreement" and min(values) > 0 and max(values) > 8 * min(values):
        ticks = _log_ticks(min(values), max(values))
        yaxis |= {"type": "log", "tickvals": ticks, "ticktext": [f"{tick:g}" for tick in ticks]}
    title = say("chart.compute", unit=unit) if against == "flops" else say("chart.epochs")
    figure.update_layout(layout(xaxis={"title": {"text": chart_text(title)}, "rangemode": "tozero"}, yaxis=yaxis))
    heading = say(f"chart.{key}")
    ends = say("list.separator").join(
        say("chart.alt-end", arm=language.arm(arm.key), value=language.format_field(curve.mean[-1], "decimal"))
        for _, arm, curve in arms
    )
    alt = say("chart.alt-curve", title=heading, ends=ends)
    table = _figures(key, heading, arms, language) if against == "epoch" else None
    return Chart(key, heading, alt, as_json(figure), note=note, table=table)


def _floor_of_accuracy(arms: Sequence[tuple[int, Arm, Curve]], low: float, high: float) -> float:
    """Where the axis begins: early values are cut off if they would press the later ones together."""
    late = [value for _, _, curve in arms for value in curve.mean[len(curve.mean) // 2 :] if math.isfinite(value)]
    floor = min(late, default=low) - 0.4 * (high - min(late, default=low))
    return low if floor - low < 0.3 * (high - low) else floor


def _log_ticks(low: float, high: float) -> list[float]:
    """1, 2 and 5 of each decade; over many decades 1 alone. Plotly's own leave the decade out."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    steps = (1, 2, 5) if len(decades) <= 4 else (1,)
    return [step * 10.0**decade for decade in decades for step in steps]


def _figures(key: str, title: str, arms: Sequence[tuple[int, Arm, Curve]], language: Language) -> Table:
    """Up to twelve points of each curve; both abscissas in one table."""
    say, rows = language.say, []
    for _, arm, curve in arms:
        last = len(curve.mean) - 1
        chosen = range(last + 1) if last < 12 else sorted({round(last * part / 11) for part in range(12)})
        for at in chosen:
            numbers = (curve.mean[at], curve.low[at], curve.high[at])
            rows.append(
                (
                    language.arm(arm.key),
                    language.format_field(round(curve.epoch[at], 2), "number"),
                    language.format_field(curve.flops[at], "flops"),
                    *(language.format_field(round(number, 4), "number") for number in numbers),
                )
            )
    head = tuple(say(f"table.{name}") for name in ("arm", "epochs", "compute", "mean", "low", "high"))
    return Table(f"figures-{key}", title, head, tuple(rows), numeric=frozenset(range(1, 6)))


def difference_chart(evidence: Evidence, language: Language) -> Chart | None:
    """Each arm's paired difference to plain training, and to plain training at equal compute."""
    say, figure = language.say, go.Figure()
    arms = [arm for arm in evidence.arms if arm.versus]
    if not arms:
        return None
    width = 18 if language.code == "en" else 14
    for reference, symbol, color, shift in (
        ("plain", "circle", "#000000", 0.14),
        ("plain-equal", "square", "#0072B2", -0.14),
    ):
        shown = [(at, arm.versus[reference]) for at, arm in enumerate(reversed(arms)) if reference in arm.versus]
        if not shown:
            continue
        ranges = [(p.interval.low, p.interval.high) if p.claims else (None, None) for _, p in shown]
        means = [paired.interval.mean for _, paired in shown]
        figure.add_scatter(
            x=means, y=[at + shift for at, _ in shown], mode="markers",
            name=chart_text(say("chart.versus", reference=reference)),
            marker={"symbol": symbol, "size": 10, "color": color},
            error_x={
                "type": "data", "symmetric": False, "thickness": 2, "width": 5, "color": color,
                "array": [0 if high is None else high - mean for (_, high), mean in zip(ranges, means)],
                "arrayminus": [0 if low is None else mean - low for (low, _), mean in zip(ranges, means)],
            },
            hovertemplate="%{x:+.2f}",
        )  # fmt: skip
    names = [chart_text(language.arm(arm.key), width) for arm in reversed(arms)]
    height = 100 + 62 * len(arms)
    figure.update_layout(
        layout(
            height=height,
            showlegend=True,
            legend={"orientation": "h", "x": 0, "y": 1, "yanchor": "bottom", "yref": "paper"},
            margin={"l": 10, "r": 12, "t": 44, "b": 52},
            xaxis={"title": {"text": chart_text(say("chart.gain"))}, "showgrid": True},
            yaxis={
                "tickvals": list(range(len(arms))), "ticktext": names, "range": [-0.6, len(arms) - 0.4],
                "showgrid": False, "ticks": "",
            },
            shapes=[{"type": "line", "x0": 0, "x1": 0, "y0": 0, "y1": 1, "yref": "paper", "line": {"width": 1}}],
        )
    )  # fmt: skip
    title = say("chart.differences")
    return Chart("differences", title, say("chart.alt-differences", title=title), as_json(figure), height, wide=True)


def as_json(figure: Any) -> str:
    """Data and layout; Plotly escapes what would end a script element."""
    return str(figure.to_json())
