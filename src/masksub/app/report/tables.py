"""The tables of measurements as plain text cells, for HTML and Markdown alike."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from masksub.app.evidence.model import Evidence, Interval, Paired, Run

from .language import Language

__all__ = ["Table", "comparison_tables", "run_numbers", "sweep_tables"]


@dataclass(frozen=True)
class Table:
    """One table.

    Attributes:
        key: names it in the page.
        caption: of the table.
        head: names of the columns; the first column heads its row.
        rows: cells, as many as the head has; code in them stands between the marks of ``language``.
        note: what stands below, "" for nothing.
        numeric: columns that are numbers, set to the right.
        marked: row that is set off, None for none.
    """

    key: str
    caption: str
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""
    numeric: frozenset[int] = frozenset()
    marked: int | None = None


def run_numbers(evidence: Evidence) -> dict[str, int]:
    """Run folder -> its number in the table of runs, by which the other tables name it."""
    runs = [run for arm in evidence.arms for run in arm.runs]
    runs += [run for point in (evidence.sweep.points if evidence.sweep else ()) for run in point.runs]
    return {path: number for number, path in enumerate(dict.fromkeys(run.path for run in runs), 1)}


def comparison_tables(evidence: Evidence, language: Language) -> list[Table]:
    """Accuracy, cost and stability of the arms; none where there are no arms."""
    if not evidence.arms:
        return []
    return [_accuracy(evidence, language), _cost(evidence, language), _stability(evidence, language)]


def _accuracy(evidence: Evidence, language: Language) -> Table:
    say = language.say
    paired = [each for arm in evidence.arms for each in arm.versus.values()]
    columns = [
        (reference, say(f"table.{name}"))
        for reference, name in (("plain", "vs-plain"), ("plain-equal", "vs-equal"))
        if any(each.reference == reference for each in paired)
    ]
    level = next((arm.top1.level for arm in evidence.arms if arm.top1), 0.95)
    between = say("table.interval", level=level)
    head = [
        say("table.arm"),
        say("table.seeds"),
        say("table.epochs"),
        say("with", value=say("table.top1"), more=between),
        say("table.spread"),
    ]
    for _, name in columns:
        head += [say("with", value=name, more=between), say("with", value=say("table.p"), more=say("table.pairs"))]
    rows = []
    for arm in evidence.arms:
        row = [language.arm(arm.key), _seeds(arm, language), _value(language, arm.epochs, "number")]
        row += [_mean(language, arm.top1), _value(language, arm.spread, "decimal")]
        for reference, _ in columns:
            found = arm.versus.get(reference)
            mean, p = _difference(language, found)
            row += [mean, p if found is None else say("with", value=p, more=len(found.seeds))]
        rows.append(tuple(row))
    notes = []
    if paired:
        methods = say("list.semicolon").join(dict.fromkeys(language.format_field(p.method, "method") for p in paired))
        notes.append(say("note.accuracy", methods=methods))
    if any(not each.claims for each in paired):
        notes.append(say("note.no-claim"))
    notes.append(_runs_note(evidence, language))
    caption = say("table.accuracy.caption")
    return Table("accuracy", caption, tuple(head), tuple(rows), say("space").join(notes), _from(1, len(head)))


def _cost(evidence: Evidence, language: Language) -> Table:
    say, plain = language.say, evidence.arm("plain")
    names = ("arm", "flops", "relative", "seconds", "relative", "speed", "memory", "energy", "reach")
    rows: list[tuple[str, ...]] = []
    for arm in evidence.arms:
        of_flops = arm.flops / plain.flops if plain and plain.flops and arm.flops is not None else None
        of_seconds = arm.seconds / plain.seconds if plain and plain.seconds and arm.seconds is not None else None
        reach = arm.flops_to_plain if plain else None
        rows.append(
            (
                language.arm(arm.key),
                _value(language, arm.flops, "flops"),
                _value(language, of_flops, "times"),
                _value(language, arm.seconds, "duration"),
                _value(language, of_seconds, "times"),
                _value(language, arm.images_per_second, "number"),
                _value(language, arm.peak_memory_bytes, "bytes"),
                _value(language, arm.energy_joules, "joules"),
                _value(language, reach, "flops"),
            )
        )
    head = [say(f"table.{name}") for name in names]
    for column in (8, 7):  # what was measured nowhere is left out
        if all(row[column] == say("absent") for row in rows):
            rows = [row[:column] + row[column + 1 :] for row in rows]
            del head[column]
    notes = [say("note.cost")]
    notes += [say("note.memory")] if any(arm.peak_memory_bytes for arm in evidence.arms) else []
    note = say("space").join([*notes, _runs_note(evidence, language)])
    return Table("cost", say("table.cost.caption"), tuple(head), tuple(rows), note, _from(1, len(head)))


def _stability(evidence: Evidence, language: Language) -> Table:
    say = language.say
    names = ("arm", "loss-variance", "norm-mean", "norm-max", "spikes", "diverged")
    rows = []
    for arm in evidence.arms:
        at = arm.stability
        numbers = (at.loss_variance, at.gradient_norm_mean, at.gradient_norm_max, at.spikes)
        failed = language.format_field(list(at.failed), "numbers") if at.failed else "0"
        failed = say("with", value=len(at.failed), more=f"{say('table.seed')} {failed}") if at.failed else failed
        rows.append((language.arm(arm.key), *(_value(language, each, "number") for each in numbers), failed))
    head = tuple(say(f"table.{name}") for name in names)
    note = say("note.stability") + say("space") + _runs_note(evidence, language, "failed")
    return Table("stability", say("table.stability.caption"), head, tuple(rows), note, _from(1, len(head)))


def sweep_tables(evidence: Evidence, language: Language) -> list[Table]:
    """Every setting of the sweep, the recommended one set off."""
    sweep, say = evidence.sweep, language.say
    if sweep is None:
        return []
    numbers = run_numbers(evidence)
    level = next((point.top1.level for point in sweep.points if point.top1), 0.95)
    between = say("table.interval", level=level)
    head = [
        *map(language.code_span, sweep.keys),
        say("table.seeds"),
        say("with", value=say("table.top1"), more=between),
    ]
    head += [say("with", value=say("table.vs-plain"), more=between), say("table.flops"), say("table.run")]
    rows = []
    for number, point in enumerate(sweep.points):
        row = [_value(language, point.settings.get(key), "number") for key in sweep.keys]
        if number == sweep.recommended:
            row[0] = say("with", value=row[0], more=say("chart.recommended"))
        row += [_seeds(point, language), _mean(language, point.top1), _difference(language, point.versus_plain)[0]]
        row += [_value(language, point.flops, "flops"), _numbers_of(language, point.runs, numbers)]
        rows.append(tuple(row))
    if all(point.versus_plain is None for point in sweep.points):
        at = len(sweep.keys) + 2
        rows = [row[:at] + row[at + 1 :] for row in rows]
        del head[at]
    few = any(point.versus_plain and not point.versus_plain.claims for point in sweep.points)
    caption, note = say("table.sweep.caption"), say("note.no-claim") if few else ""
    return [Table("sweep", caption, tuple(head), tuple(rows), note, _from(1, len(head)), sweep.recommended)]


def _runs_note(evidence: Evidence, language: Language, *more: str) -> str:
    """Which runs the figures of each row are made of: complete ones, and those of ``more`` statuses."""
    numbers, parts = run_numbers(evidence), []
    for arm in evidence.arms:
        if found := [numbers[run.path] for run in arm.runs if run.status in ("complete", *more)]:
            parts.append(language.say("note.runs.part", name=language.arm(arm.key), numbers=found))
    key = "note.runs-counted" if more else "note.runs"
    return language.say(key, parts=language.say("list.semicolon").join(parts)) if parts else ""


def _numbers_of(language: Language, runs: Sequence[Run], numbers: dict[str, int]) -> str:
    return language.format_field([numbers[run.path] for run in runs if run.status == "complete"], "runs")


def _seeds(group: Any, language: Language) -> str:
    complete = sum(run.status == "complete" for run in group.runs)
    if complete == len(group.runs):
        return str(complete)
    return language.say("table.seeds-complete", complete=complete, all=len(group.runs))


def _mean(language: Language, at: Interval | None) -> str:
    """A mean, with its interval where there is one."""
    if at is None:
        return language.say("absent")
    mean = _value(language, at.mean, "decimal")
    if at.low is None or at.high is None:
        return mean
    return language.say("with", value=mean, more=language.say("interval", low=at.low, high=at.high))


def _difference(language: Language, paired: Paired | None) -> list[str]:
    """Mean with interval, and p-value; below three seeds the mean alone, since nothing more may be claimed."""
    if paired is None:
        return [language.say("absent")] * 2
    at, mean = paired.interval, _value(language, paired.interval.mean, "signed")
    if paired.claims and at.low is not None and at.high is not None:
        mean = language.say("with", value=mean, more=language.say("interval.signed", low=at.low, high=at.high))
    p = _value(language, paired.p if paired.claims else None, "p").removeprefix("p").strip().removeprefix("=").strip()
    return [mean, p]


def _value(language: Language, value: Any, kind: str) -> str:
    return language.format_field(value, kind)


def _from(first: int, end: int) -> frozenset[int]:
    return frozenset(range(first, end))
