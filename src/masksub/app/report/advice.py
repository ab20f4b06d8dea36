"""What follows from the figures: which setting to use, what to try next, and what they do not show."""

from __future__ import annotations

import math
from typing import Any

import scipy.stats

from masksub.app.evidence.model import Arm, Evidence, Sweep, SweepPoint

from .statements import SUB_METHODS, Statement, apart, data_name, other_keys, settings_of, variant

__all__ = ["limits", "next_steps", "recommendation"]


def recommendation(evidence: Evidence, who: Arm | None) -> list[Statement]:
    """Whether to use the method at all, and with which setting."""
    said = []
    if who is not None and who.top1 is not None:
        epochs, compute = (_verdict(who, reference) for reference in ("plain", "plain-equal"))
        plain = evidence.arm("plain")
        epochs = None if plain is not None and apart(who.epochs, plain.epochs, 0.01) else epochs
        values = {"who": who.key}
        if compute == "worse" and epochs == "better":
            said.append(Statement("recommended", "recommended.longer", "worse", values))
        elif "worse" in (epochs, compute) and "better" not in (epochs, compute):
            said.append(Statement("recommended", "recommended.stay", "worse", values))
        elif "better" not in (epochs, compute):
            said.append(Statement("recommended", "recommended.nothing-yet", "none", values))
    if (failed := _only_failed(evidence)) is not None:
        return [*said, Statement("recommended", "recommended.only-failed", "worse", {"n": failed})]
    if evidence.sweep is not None:
        return said + _from_sweep(evidence, evidence.sweep, who)
    tried = {} if who is None else settings_of(evidence, who, *_keys(who))
    key = "recommended.unswept" if tried else "recommended.unswept-unknown"
    key = "recommended.unswept-other" if tried and who and who.method != "masksub" else key
    return [*said, Statement("recommended", key, "unknown", {"settings": tried} if tried else {})]


def _only_failed(evidence: Evidence) -> int | None:
    """How many runs diverged, where some did and none is complete; else None."""
    status = {run.path: run.status for arm in evidence.arms for run in arm.runs}
    if evidence.sweep is not None:  # some of its runs may also be an arm's
        status |= {run.path: run.status for point in evidence.sweep.points for run in point.runs}
    failed = sum(each == "failed" for each in status.values())
    return failed if failed and "complete" not in status.values() else None


def _keys(who: Arm) -> tuple[str, ...]:
    return ("sub.ratio", "sub.weight") if who.method == "masksub" else ("sub.p", "sub.weight")


def _from_sweep(evidence: Evidence, sweep: Sweep, who: Arm | None) -> list[Statement]:
    if sweep.recommended is None:
        return [Statement("recommended", "recommended.none-complete", "unknown", {"settings": len(sweep.points)})]
    point = sweep.points[sweep.recommended]
    seeds = sum(run.status == "complete" for run in point.runs)
    values: dict[str, Any] = {"settings": dict(point.settings), "seeds": seeds, "tried": len(sweep.points)}
    if point.top1 is not None:
        values |= {"mean": point.top1.mean, "low": point.top1.low, "high": point.top1.high, "level": point.top1.level}
    interval = point.top1 is not None and point.top1.low is not None
    key = "recommended.sweep-few" if seeds < 3 else "recommended.sweep" if interval else "recommended.sweep-equal"
    said = [Statement("recommended", key, "note", values), *_versus_plain(evidence, point, who)]
    if sweep.best is not None and sweep.best != sweep.recommended:
        best = sweep.points[sweep.best]
        mean = best.top1.mean if best.top1 else None
        fewer = sum(run.status == "complete" for run in best.runs) < seeds
        key = "recommended.best-fewer" if fewer else "recommended.not-best"
        said.append(Statement("recommended", key, "note", {"settings": dict(best.settings), "mean": mean}))
    for key, loss in sweep.sensitivity.items():
        said.append(Statement("recommended", "recommended.sensitivity", "note", {"name": key, "loss": loss}))
    return said


def _versus_plain(evidence: Evidence, point: SweepPoint, who: Arm | None) -> list[Statement]:
    """The recommended setting against plain training; told once where it is the setting of the arm above."""
    paired, plain = point.versus_plain, evidence.arm("plain")
    if who is not None and "plain" in who.versus and {r.path for r in who.runs} & {r.path for r in point.runs}:
        return [Statement("recommended", "recommended.own", "note", {"who": who.key})]
    if paired is None:
        return []
    theirs = plain.epochs if plain is not None else None
    ours = point.settings.get("train.epochs", who.epochs if who is not None else theirs)
    at = paired.interval
    values: dict[str, Any] = {"mean": at.mean, "low": at.low, "high": at.high, "level": at.level}
    values |= {"seeds": len(paired.seeds)}
    values |= {"p": paired.p, "at": "other-epochs" if apart(ours, theirs, 0.01) else "equal-epochs"}
    said = [Statement("recommended", f"recommended.versus.{variant(paired)}", paired.verdict, values)]
    if plain is not None:
        settings = point.settings
        names = [key for key in (other_keys(who, plain) if who is not None else ()) if key not in settings]
        swept = [key for key in settings if key != "method" and not key.startswith("sub.")]
        known = settings_of(evidence, plain, *swept)
        names = [*names, *(key for key in swept if known.get(key) != settings[key])]
        if names := [key for key in names if key != "train.epochs"]:
            said.append(Statement("recommended", "recommended.confounded", "unknown", {"names": names}))
    return said


def next_steps(evidence: Evidence, who: Arm | None) -> list[Statement]:
    """What would make the answer surer or wider, the most useful first."""
    said: list[tuple[str, dict[str, Any]]] = []
    if any(run.status == "incomplete" for arm in evidence.arms for run in arm.runs):
        said.append(("next.resume", {}))
    if who is None:
        said.append(("next.run-masksub", {}))
    if failed := [arm for arm in evidence.arms if arm.failed]:
        half = any("fp16" in settings_of(evidence, arm, "train.precision").values() for arm in failed)
        said.append(("next.failed-fp16" if half else "next.failed", {"arms": [arm.key for arm in failed]}))
        if _only_failed(evidence) is not None:  # more runs, or a sweep, of what diverges would tell nothing
            return [Statement("next", key, "note", values) for key, values in reversed(said)]
    if evidence.arm("plain") is None:
        said.append(("next.plain", {}))
    if evidence.arm("plain-equal") is None:
        said.append(("next.plain-equal", {}))
    if who is not None:
        pairs = [paired for paired in who.versus.values() if not paired.claims]
        unsure = [paired for paired in who.versus.values() if paired.verdict == "none"]
        if pairs or not who.versus:
            said.append(("next.seeds", {}))
        elif unsure:
            seeds, level = max((len(paired.seeds), paired.interval.level) for paired in unsure)
            share = _half_width(4 * seeds, level) / _half_width(seeds, level)
            said.append(("next.more-seeds", {"seeds": seeds, "more": 4 * seeds, "share": share}))
    if evidence.sweep is None:
        said += [("next.sweep", {})] if who is None or who.method == "masksub" else []
    elif edges := _edges(evidence.sweep):
        said.append(("next.edge", {"names": edges}))
    said += [("next.longer", {})] if who is not None and "better" in map(_of(who), who.versus) else []
    said.append(("next.held-out", {}))
    return [Statement("next", key, "note", values) for key, values in said]


def _half_width(seeds: int, level: float) -> float:
    """Of a t-interval, in standard deviations."""
    return float(scipy.stats.t.ppf((1 + level) / 2, seeds - 1)) / math.sqrt(seeds)


def _edges(sweep: Sweep) -> list[str]:
    """Keys along which the recommended setting is the outermost that was tried."""
    if sweep.recommended is None:
        return []
    chosen, found = sweep.points[sweep.recommended].settings, []
    for key in sweep.keys:
        values = {point.settings[key] for point in sweep.points if isinstance(point.settings.get(key), (int, float))}
        if len(values) > 1 and chosen.get(key) in (min(values), max(values)):
            found.append(key)
    return found


def limits(evidence: Evidence, who: Arm | None) -> list[Statement]:
    """What the figures do not show; always said."""
    name, model = data_name(evidence), evidence.recipe.get("model", {})
    epochs = evidence.recipe.get("train", {}).get("epochs")
    said: list[tuple[str, dict[str, Any]]] = []
    if name is not None and model.get("name") is not None:
        said.append(("limits.one", {"data": name, "model": str(model["name"])}))
    if who is not None and who.complete:
        said.append(("limits.seeds", {"seeds": len(who.complete), "who": who.key}))
        if who.versus:
            said.append(("limits.sample", {}))
    if epochs is not None:
        said.append(("limits.epochs", {"epochs": epochs}))
    if evidence.sweep is not None:
        said.append(("limits.chosen", {"tried": len(evidence.sweep.points)}))
    elif who is not None and who.key != "masksub":
        others = [arm.key for arm in evidence.arms if arm.method in SUB_METHODS and arm.top1]
        if len(others) > 1:
            said.append(("limits.best-of", {"arms": others, "who": who.key}))
    said.append(("limits.validation", {}))
    comparisons = sum(len(arm.versus) for arm in evidence.arms)
    if comparisons > 2:
        said.append(("limits.many", {"n": comparisons}))
    if len(evidence.environments) > 1:
        said.append(("limits.environments", {"n": len(evidence.environments)}))
    said.append(("limits.speed", {}))
    return [Statement("limits", key, "note", values) for key, values in said]


def _of(who: Arm) -> Any:
    return lambda reference: who.versus[reference].verdict


def _verdict(who: Arm, reference: str) -> str | None:
    paired = who.versus.get(reference)
    return paired.verdict if paired is not None else None
