"""Heat map and Pareto front of a sweep as Plotly figures."""

from __future__ import annotations

from typing import Any

import plotly.graph_objects as go

from masksub.app.evidence.model import Evidence, Sweep, SweepPoint

from .charts import Chart, as_json, chart_text, layout
from .language import Language

__all__ = ["sweep_charts"]

MAPS_SHOWN = 6
SCALE = [[0.0, "#f3f6f8"], [0.5, "#8fbcd9"], [1.0, "#0b5c8f"]]
"""Light to dark in one hue: read by lightness alone."""


def sweep_charts(evidence: Evidence, language: Language) -> list[Chart]:
    """Mean top-1 over the swept keys, a heat map for each choice of those after the second, and the Pareto front."""
    sweep = evidence.sweep
    if sweep is None or not any(point.top1 for point in sweep.points):
        return []
    charts = [_line(sweep, language)] if len(sweep.keys) == 1 else _maps(sweep, language)
    if any(point.flops and point.top1 for point in sweep.points):
        charts.append(_pareto(sweep, language))
    return charts


def _ordered(values: list[Any]) -> list[Any]:
    """Distinct values, numbers by size and before all else."""
    distinct = list({repr(value): value for value in values}.values())
    number = [value for value in distinct if isinstance(value, (int, float)) and not isinstance(value, bool)]
    return sorted(number) + [value for value in distinct if value not in number]


def _maps(sweep: Sweep, language: Language) -> list[Chart]:
    x_key, y_key, *others = sweep.keys
    groups: dict[str, list[int]] = {}
    for at, point in enumerate(sweep.points):
        groups.setdefault(repr([point.settings.get(key) for key in others]), []).append(at)
    means = [point.top1.mean for point in sweep.points if point.top1]
    span = (min(means), max(means) if max(means) > min(means) else min(means) + 1)
    return [
        _map(sweep, members, (x_key, y_key), others, span, number, language)
        for number, members in enumerate(list(groups.values())[:MAPS_SHOWN])
    ]


def _map(
    sweep: Sweep,
    members: list[int],
    keys: tuple[str, str],
    others: list[str],
    span: tuple[float, float],
    number: int,
    language: Language,
) -> Chart:
    """One heat map; cells are placed by number, so that values of any kind can stand at the axes."""
    say, (x_key, y_key) = language.say, keys
    xs, ys = (_ordered([sweep.points[at].settings.get(key) for at in members]) for key in keys)
    cells: list[list[float | None]] = [[None] * len(xs) for _ in ys]
    texts = [[""] * len(xs) for _ in ys]
    shapes = []
    for at in members:
        point = sweep.points[at]
        col, row = xs.index(point.settings.get(x_key)), ys.index(point.settings.get(y_key))
        cells[row][col] = point.top1.mean if point.top1 else None
        texts[row][col] = _cell(point, language)
        if at == sweep.recommended:
            edge = {"x0": col - 0.48, "x1": col + 0.48, "y0": row - 0.48, "y1": row + 0.48}
            shapes.append({"type": "rect", **edge, "line": {"color": "#D55E00", "width": 4}})
    notes = [
        {
            "x": col,
            "y": row,
            "showarrow": False,
            "text": text,
            "font": {"size": 14, "color": _ink(cells[row][col], span)},
        }
        for row, line in enumerate(texts)
        for col, text in enumerate(line)
        if text
    ]
    figure = go.Figure(
        go.Heatmap(z=cells, zmin=span[0], zmax=span[1], colorscale=SCALE, showscale=False, xgap=2, ygap=2,
                   hoverinfo="skip")
    )  # fmt: skip
    axes = [
        {
            "title": {"text": chart_text(key)}, "tickvals": list(range(len(values))), "showgrid": False, "ticks": "",
            "ticktext": [chart_text(language.format_field(value, "number"), 16) for value in values],
        }
        for key, values in ((x_key, xs), (y_key, ys))
    ]  # fmt: skip
    height = max(220, 100 + 62 * len(ys))
    figure.update_layout(layout(height=height, xaxis=axes[0], yaxis=axes[1], shapes=shapes, annotations=notes))
    title = say("chart.heat", x=x_key, y=y_key)
    note = say("sweep.note")
    if others:
        fixed = {key: sweep.points[members[0]].settings.get(key) for key in others}
        note = f"{note} {say('sweep.others', settings=fixed)}"
    alt = say("chart.alt-sweep", title=title)
    return Chart(f"heat-{number}", title, alt, as_json(figure), height, note=note)


def _ink(value: float | None, span: tuple[float, float]) -> str:
    """Legible on the cell's colour."""
    dark = value is not None and value - span[0] > 0.65 * (span[1] - span[0])
    return "white" if dark else "#222222"


def _cell(point: SweepPoint, language: Language) -> str:
    failed = sum(run.status == "failed" for run in point.runs)
    text = chart_text(language.format_field(point.top1.mean if point.top1 else None, "decimal"))
    return f"{text}<br>({failed} {chart_text(language.say('status.failed'))})" if failed else text


def _line(sweep: Sweep, language: Language) -> Chart:
    """One key: the means with their intervals."""
    say, key = language.say, sweep.keys[0]
    values = _ordered([point.settings.get(key) for point in sweep.points])
    figure = go.Figure()
    shown = [(at, point, point.top1) for at, point in enumerate(sweep.points) if point.top1]
    for recommended in (False, True):
        part = [(point, top1) for at, point, top1 in shown if (at == sweep.recommended) is recommended]
        color = "#D55E00" if recommended else "#0072B2"
        figure.add_scatter(
            x=[values.index(point.settings.get(key)) for point, _ in part], y=[top1.mean for _, top1 in part],
            mode="markers", name=chart_text(say("chart.recommended" if recommended else "chart.setting")),
            marker={"size": 11, "symbol": "diamond" if recommended else "circle", "color": color},
            error_y={
                "type": "data", "symmetric": False, "color": color, "thickness": 2, "width": 5,
                "array": [0 if t.high is None else t.high - t.mean for _, t in part],
                "arrayminus": [0 if t.low is None else t.mean - t.low for _, t in part],
            },
            hovertemplate="%{y:.2f}",
        )  # fmt: skip
    ticks = {"tickvals": list(range(len(values))), "range": [-0.5, len(values) - 0.5]}
    texts = [chart_text(language.format_field(value, "number"), 16) for value in values]
    figure.update_layout(
        layout(
            showlegend=True, legend=_LEGEND, margin=_MARGIN, height=380,
            xaxis={"title": {"text": chart_text(key)}, **ticks, "ticktext": texts},
            yaxis={"title": {"text": chart_text(say("chart.top1"))}},
        )
    )  # fmt: skip
    title = say("chart.line", x=key)
    return Chart("heat-0", title, say("chart.alt-sweep", title=title), as_json(figure), 380)


_LEGEND = {"orientation": "h", "x": 0, "y": 1, "yanchor": "bottom"}
_MARGIN = {"l": 60, "r": 12, "t": 44, "b": 52}


def _pareto(sweep: Sweep, language: Language) -> Chart:
    say, figure = language.say, go.Figure()
    shown = [(at, p, p.top1, p.flops) for at, p in enumerate(sweep.points) if p.top1 and p.flops]
    size, unit = language.scale_of_flops(max(flops for *_, flops in shown))
    by_index = {at: (flops / size, top1.mean) for at, _, top1, flops in shown}
    front = [by_index[at] for at in sweep.pareto if at in by_index]
    names = [chart_text(language.format_field(p.settings, "settings")) for _, p, _, _ in shown]
    figure.add_scatter(
        x=[x for x, _ in front], y=[y for _, y in front], mode="lines", hoverinfo="skip",
        line={"color": "#0072B2", "dash": "dash", "width": 2}, name=chart_text(say("chart.front")),
    )  # fmt: skip
    figure.add_scatter(
        x=[by_index[at][0] for at, *_ in shown], y=[by_index[at][1] for at, *_ in shown], mode="markers",
        marker={"size": 10, "color": "white", "line": {"color": "#333333", "width": 2}}, text=names,
        name=chart_text(say("chart.setting")), hovertemplate="%{text}<br>%{y:.2f}",
    )  # fmt: skip
    if sweep.recommended in by_index:
        x, y = by_index[sweep.recommended]
        figure.add_scatter(
            x=[x], y=[y], mode="markers", name=chart_text(say("chart.recommended")), hoverinfo="skip",
            marker={"size": 15, "symbol": "diamond", "color": "#D55E00"},
        )  # fmt: skip
    figure.update_layout(
        layout(
            showlegend=True, legend=_LEGEND, margin=_MARGIN, height=380,
            xaxis={"title": {"text": chart_text(say("chart.compute", unit=unit))}},
            yaxis={"title": {"text": chart_text(say("chart.top1"))}},
        )
    )  # fmt: skip
    title = say("chart.pareto")
    return Chart("pareto", title, say("chart.alt-sweep", title=title), as_json(figure), 380)
