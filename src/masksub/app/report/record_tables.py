"""The tables of how the runs were made: recipes, environments, every run with its folder, and what was left out."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from masksub.app.evidence.model import Evidence, Problem, Run

from .language import Language
from .tables import Table, run_numbers

__all__ = ["recipe_tables", "run_tables"]

CLASSES_SHOWN = 20


def recipe_tables(evidence: Evidence, language: Language) -> list[Table]:
    """Differences between the arms, the recipe that they share, and where the runs were made."""
    say, code = language.say, language.code_span
    changes = [
        (language.arm(arm.key), code(key), language.format_field(there, "value"), language.format_field(here, "value"))
        for arm in evidence.arms
        for key, (there, here) in arm.changes.items()
    ]
    there = say("table.there" if evidence.arm("plain") else "table.there-first")
    head = (say("table.arm"), say("table.key"), there, say("table.here"))
    tables = []
    if evidence.arms:
        note = "" if changes else say("note.no-changes")
        tables.append(Table("changes", say("table.changes.caption"), head, tuple(changes), note))
    shared = tuple((code(key), language.format_field(value, "value")) for key, value in _flat(evidence.recipe))
    if shared:
        names = (say("table.key"), say("table.value"))
        tables.append(Table("recipe", say("table.recipe.caption"), names, shared, _classes(evidence, language)))
    if evidence.environments:
        tables.append(_environments(evidence, language))
    return tables


def _environments(evidence: Evidence, language: Language) -> Table:
    say = language.say
    keys = list(dict.fromkeys(key for each in evidence.environments for key in each))
    rows = []
    for key in sorted(keys, key=lambda key: key != "runs"):
        name = say(f"environment.{key}") if language.has(f"environment.{key}") else language.code_span(key)
        rows.append((name, *(language.format_field(each.get(key), "value") for each in evidence.environments)))
    names = [say("environment.n", n=number) for number in range(1, len(evidence.environments) + 1)]
    head = (say("table.what"), *names)
    return Table("environment", say("table.environment.caption"), head, tuple(rows))


def run_tables(evidence: Evidence, language: Language) -> list[Table]:
    """Every run with its folder, and what was left out."""
    say, numbers = language.say, run_numbers(evidence)
    groups: list[tuple[str, Sequence[Run]]] = [(language.arm(arm.key), arm.runs) for arm in evidence.arms]
    if evidence.sweep is not None:
        groups += [(language.format_field(p.settings, "settings"), p.runs) for p in evidence.sweep.points]
    rows: dict[str, tuple[str, ...]] = {}
    for name, runs in groups:
        for run in runs:
            status = say(f"status.{run.status}")
            status = say("status.reason", status=status, reason=run.reason) if run.reason else status
            top1, path = language.format_field(run.top1, "decimal"), language.code_span(run.path)
            rows.setdefault(run.path, (str(numbers[run.path]), name, str(run.seed), status, top1, path))
    head = tuple(say(f"table.{name}") for name in ("run", "arm", "seed", "status", "top1", "folder"))
    found = tuple(rows.values())
    tables = [Table("runs", say("table.runs.caption"), head, found, numeric=frozenset({2, 4}))] if found else []
    head = tuple(say(f"table.{name}") for name in ("folder", "what", "why"))
    problems = tuple(_problem(each, language) for each in evidence.problems)
    note = "" if problems else say("note.no-problems")
    return [*tables, Table("problems", say("table.problems.caption"), head, problems, note)]


def _problem(problem: Problem, language: Language) -> tuple[str, ...]:
    """Its reason in words; without a text of ours, or the values that it needs, as it was told in English."""
    values = problem.values
    code = str(values.get("code", problem.kind))
    code += "-used" * (code == "version" and values.get("used") is True) + "-other" * (
        code == "double" and "top1" in values
    )
    try:
        why = language.say(f"problem.code.{code}", **{**values, "message": problem.message})
    except (KeyError, TypeError, ValueError):
        why = language.say("problem.why", message=problem.message)
    return language.code_span(problem.path), language.say(f"problem.{problem.kind}"), why


def _flat(recipe: dict[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    for key, value in recipe.items():
        if isinstance(value, dict) and value:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _classes(evidence: Evidence, language: Language) -> str:
    names = evidence.classes
    if not names:
        return ""
    if len(names) <= CLASSES_SHOWN:
        return language.say("note.classes", n=len(names), names=names)
    more = len(names) - CLASSES_SHOWN
    return language.say("note.classes-more", n=len(names), names=names[:CLASSES_SHOWN], more=more)
