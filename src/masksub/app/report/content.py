"""What a report holds, in the reader's language but in no format yet."""

from __future__ import annotations

import datetime
from dataclasses import dataclass
from typing import Any

from masksub.app.evidence.model import Arm, Evidence

from .language import Language
from .record_tables import recipe_tables, run_tables
from .statements import PARTS, Statement, Tone, chosen_arm, data_name
from .tables import Table, comparison_tables, run_numbers, sweep_tables
from .verdict import state_verdict

__all__ = ["Content", "Part", "gather_content"]


@dataclass(frozen=True)
class Part:
    """One part of the verdict.

    Attributes:
        key: of ``statements.PARTS``.
        title: its name.
        tone: of its first statement.
        sentences: text and tone of each statement; code stands between the marks of ``language``.
        gauge: where interval and mean lie on the common axis of the gains, in percent of its width; None for none.
    """

    key: str
    title: str
    tone: Tone
    sentences: tuple[tuple[str, Tone], ...]
    gauge: dict[str, float] | None = None


@dataclass(frozen=True)
class Content:
    """All text and tables.

    Attributes:
        title, lead: of the page; the lead names data, model, number of runs and the date.
        document: title of the window.
        headline: the verdict in one sentence.
        deck: what must be read with it, "" for nothing.
        tone: of the headline.
        parts: the rest of the verdict.
        comparison, sweep, recipe, runs: tables.
        statements: the verdict without a language.
    """

    title: str
    lead: str
    document: str
    headline: str
    deck: str
    tone: Tone
    parts: tuple[Part, ...]
    comparison: tuple[Table, ...]
    sweep: tuple[Table, ...]
    recipe: tuple[Table, ...]
    runs: tuple[Table, ...]
    statements: tuple[Statement, ...]


def gather_content(evidence: Evidence, language: Language, day: datetime.date) -> Content:
    """Everything but charts and images."""
    said = state_verdict(evidence)
    who = chosen_arm(evidence)
    about = {"data": data_name(evidence), "model": evidence.recipe.get("model", {}).get("name")}
    shown = {**about, "data": language.say("lead.data", **about, classes=len(evidence.classes))}
    shown = shown if evidence.classes else about
    headline = said[0]
    return Content(
        title=language.say("page.title"),
        lead=language.say("page.lead", runs=len(run_numbers(evidence)), date=day, **shown),
        document=language.say("page.document", **about),
        headline=language.say(headline.key, **headline.values),
        deck=language.say("space").join(
            language.say(each.key, **each.values) for each in said[1:] if each.part == "headline"
        ),
        tone=headline.tone,
        parts=tuple(_part(key, said, who, language) for key in PARTS[1:] if any(each.part == key for each in said)),
        comparison=tuple(comparison_tables(evidence, language)),
        sweep=tuple(sweep_tables(evidence, language)),
        recipe=tuple(recipe_tables(evidence, language)),
        runs=tuple(run_tables(evidence, language)),
        statements=tuple(said),
    )


def _part(key: str, said: list[Statement], who: Arm | None, language: Language) -> Part:
    mine = [each for each in said if each.part == key]
    sentences = tuple((language.say(each.key, **each.values), each.tone) for each in mine)
    reference = {"epochs": "plain", "compute": "plain-equal"}.get(key, "")
    return Part(key, language.say(f"part.{key}"), mine[0].tone, sentences, _gauge(who, reference))


def _gauge(who: Arm | None, reference: str) -> dict[str, float] | None:
    """Both gains on one axis that holds 0 and both intervals; none where no interval may be claimed."""
    if who is None or reference not in who.versus:
        return None
    spans = {}
    for name, paired in who.versus.items():
        at = paired.interval
        if paired.claims and at.low is not None and at.high is not None:
            spans[name] = (at.low, at.mean, at.high)
    if reference not in spans:
        return None
    ends: list[float] = [0.0, *(value for span in spans.values() for value in span)]
    low, high = min(ends), max(ends)
    room = 0.08 * (high - low) or 1.0
    low, high = low - room, high + room

    def place(value: float) -> float:
        return round(100 * (value - low) / (high - low), 2)

    values: dict[str, Any] = dict(zip(("low", "mean", "high"), map(place, spans[reference])))
    return {**values, "zero": place(0.0)}
