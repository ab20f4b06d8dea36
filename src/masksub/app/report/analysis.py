"""Results of ``masksub analyze``: found in the run folders, shown as pictures and tables of their main figures."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from masksub.app.evidence.model import Evidence
from masksub.app.evidence.run_files import is_number

from .language import Language
from .tables import Table

__all__ = ["analysis_pictures", "analysis_tables", "find_analyses"]

USUAL_RATIO = 0.5
"""Mask ratio of the figures where the result names none."""


def find_analyses(evidence: Evidence) -> list[dict[str, Any]]:
    """The latest analysis of each run that has one, ``picture`` being its PNG; what can't be read is passed over."""
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
            picture = files[-1].with_suffix(".png")
            # Whatever the file says: a folder from elsewhere must not have another file shown.
            found.append({**result, "picture": str(picture) if picture.is_file() else None})
    return found


def analysis_pictures(analysis: list[dict[str, Any]], language: Language) -> list[dict[str, str]]:
    """The pictures as data URIs: src and alt of each."""
    pictures = []
    for result in analysis:
        if not result.get("picture"):
            continue
        try:
            data = Path(result["picture"]).read_bytes()
        except OSError:
            continue
        alt = language.say("analysis.alt", run=str(result.get("run", "")))
        pictures.append({"src": "data:image/png;base64," + base64.b64encode(data).decode("ascii"), "alt": alt})
    return pictures


def analysis_tables(analysis: list[dict[str, Any]], language: Language) -> list[Table]:
    """One table for each result: its main figures. All of them stand in its JSON, most in its picture."""
    tables = []
    for number, result in enumerate(analysis):
        rows = tuple(_rows(result, language))
        caption = language.format_field(result.get("run", number + 1), "")
        head = (language.say("table.what"), language.say("table.value"))
        if rows:
            tables.append(Table(f"analysis-{number}", caption, head, rows, numeric=frozenset({1})))
    return tables


def _rows(result: dict[str, Any], language: Language) -> Iterator[tuple[str, str]]:
    """Label and figure; gradients under masks at the ratio that the curvature was taken at, or next to it."""
    sharpness, gradients = _inside(result, "sharpness"), _inside(result, "gradients")
    ratio = sharpness.get("ratio")
    masked = [each for each in _listed(gradients, "at_ratio") if is_number(each.get("ratio"))]
    wanted = ratio if is_number(ratio) else USUAL_RATIO
    nearest = min(masked, key=lambda each: abs(each["ratio"] - wanted), default={})
    found: list[tuple[str, Any, Any]] = [("norm-main", None, _inside(gradients, "main", "norm").get("mean"))]
    for key, name in (("norm", "norm"), ("cosine", "cosine_with_main")):
        for target in ("relaxed", "labels"):
            found.append((f"{key}-{target}", nearest.get("ratio"), _inside(nearest, target, name).get("mean")))
    for branch in ("main", "relaxed", "labels"):
        found.append((f"curvature-{branch}", ratio, _inside(sharpness, branch).get("curvature")))
    for point in _listed(_inside(result, "evaluation"), "points"):
        found.append(("top1", point.get("ratio"), _inside(point, "top1_percent").get("mean")))
    for key, at, value in found:
        if is_number(value) and (at is None or is_number(at)):
            yield language.say(f"analysis.{key}", ratio=at), language.format_field(value, "number")


def _inside(result: Any, *names: str) -> dict[str, Any]:
    """The object at these names, an empty one if there is none: the file may be anybody's."""
    for name in names:
        result = result.get(name) if isinstance(result, dict) else None
    return result if isinstance(result, dict) else {}


def _listed(result: dict[str, Any], name: str) -> list[dict[str, Any]]:
    values = result.get(name)
    return [each for each in values if isinstance(each, dict)] if isinstance(values, list) else []
