"""The report: what was gained, what it cost, how sure that is, and what to set.

One page, opened without a network, or Markdown, or JSON, in English or Japanese. The verdict never says more than the
figures.
"""

from __future__ import annotations

import dataclasses
import datetime
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from masksub.app.errors import InputError
from masksub.app.evidence.model import Evidence
from masksub.app.runs import write_text_atomically

from .analysis import find_analyses
from .language import LANGUAGES, Language, plain_text

__all__ = ["FORMATS", "LANGUAGES", "find_analyses", "write_report"]

FORMATS = ("html", "md", "json")


def write_report(
    evidence: Evidence,
    *,
    language: str = "en",
    format: str = "html",
    output: Path | None = None,
    analysis: list[dict[str, Any]] | None = None,
    day: datetime.date | None = None,
) -> str | Path:
    """Write a report.

    Args:
        evidence: what the run folders say.
        language: "en" or "ja".
        format: of FORMATS.
        output: the file to write; None to return the text.
        analysis: results of ``masksub analyze`` to be shown, too.
        day: date of the report, today if None.

    Returns:
        The file's path, or the text where there is no output.

    Raises:
        InputError: no such language or format, or a file that can't be written; before anything is written.
    """
    if format not in FORMATS:
        raise InputError(f"format {format!r}: choose from {', '.join(FORMATS)}")
    said_in, day = Language(language), day or datetime.date.today()
    if output is not None and (output.is_dir() or not output.absolute().parent.is_dir()):
        what = "is a folder" if output.is_dir() else f"there is no folder {output.absolute().parent}"
        raise InputError(f"{output}: can't write a report there, {what}")
    text = _render(evidence, said_in, format, analysis, day)
    if output is None:
        return text
    try:
        write_text_atomically(output, text)
    except OSError as error:
        raise InputError(f"{output}: can't write a report there ({error.strerror})") from error
    return output


def _render(
    evidence: Evidence, language: Language, format: str, analysis: list[dict[str, Any]] | None, day: datetime.date
) -> str:
    if format == "html":
        from .page import render_page  # needs plotly and jinja2, which the other formats do without

        return render_page(evidence, language, day=day, analysis=analysis)
    from .content import gather_content
    from .markdown import render_markdown

    content = gather_content(evidence, language, day)
    if format == "md":
        return render_markdown(content, language)
    said = [
        {**dataclasses.asdict(each), "text": plain_text(language.say(each.key, **each.values))}
        for each in content.statements
    ]
    result = {"language": language.code, "date": day.isoformat(), "verdict": said, "evidence": _with_verdicts(evidence)}
    result |= {"analysis": analysis} if analysis else {}
    return json.dumps(_finite(result), ensure_ascii=False, indent=2, default=str, allow_nan=False) + "\n"


def _with_verdicts(evidence: Evidence) -> dict[str, Any]:
    """The evidence, each paired difference with what may be said of it."""
    found = evidence.as_dict()
    for arm, told in zip(evidence.arms, found["arms"]):
        for reference, paired in arm.versus.items():
            told["versus"][reference]["verdict"] = paired.verdict
    if evidence.sweep is not None:
        for point, told in zip(evidence.sweep.points, found["sweep"]["points"]):
            if point.versus_plain is not None:
                told["versus_plain"]["verdict"] = point.versus_plain.verdict
    return found


def _finite(value: Any) -> Any:
    """JSON has neither NaN nor infinity: what is no number is null."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {str(key): _finite(each) for key, each in value.items()}
    return [_finite(each) for each in value] if isinstance(value, (list, tuple)) else value
