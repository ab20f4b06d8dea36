"""Results of ``masksub analyze``: found in the run folders, shown as tables of the figures that are single values."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from masksub.app.evidence.model import Evidence

from .language import Language
from .tables import Table

__all__ = ["analysis_tables", "find_analyses"]

ABOUT = ("run", "settings", "versions", "device", "notes")
"""Keys of a result that say how it was made."""


def find_analyses(evidence: Evidence) -> list[dict[str, Any]]:
    """The latest analysis of each run that has one; a file that can't be read is passed over."""
    runs = [run for arm in evidence.arms for run in arm.runs]
    runs += [run for point in (evidence.sweep.points if evidence.sweep else ()) for run in point.runs]
    found = []
    for path in dict.fromkeys(run.path for run in runs):
        files = sorted((Path(path) / "analysis").glob("update-*.json"))
        try:
            result = json.loads(files[-1].read_text(encoding="utf-8")) if files else None
        except (OSError, ValueError):
            continue
        if isinstance(result, dict):
            found.append(result)
    return found


def analysis_tables(analysis: list[dict[str, Any]], language: Language) -> list[Table]:
    """One table for each result, dotted names and values as they stand in its JSON."""
    tables = []
    for number, result in enumerate(analysis):
        rows = tuple(
            (language.code_span(key), language.format_field(value, "number")) for key, value in _values(result)
        )
        caption = language.format_field(result.get("run", number + 1), "")
        head = (language.say("table.what"), language.say("table.value"))
        if rows:
            tables.append(Table(f"analysis-{number}", caption, head, rows, numeric=frozenset({1})))
    return tables


def _values(result: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in result.items():
        if not prefix and key in ABOUT:
            continue
        if isinstance(value, dict):
            yield from _values(value, f"{prefix}{key}.")
        elif isinstance(value, (str, int, float)) or value is None:
            yield f"{prefix}{key}", value
