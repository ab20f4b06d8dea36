"""What follows from the figures: which setting to use, what to try next, and what they do not show."""

from __future__ import annotations

from typing import Any

from masksub.app.evidence.model import Arm, Evidence, Sweep

from .statements import SUB_METHODS, Statement, settings_of

__all__ = ["limits", "next_steps", "recommendation"]


def recommendation(evidence: Evidence, who: Arm | None) -> list[Statement]:
    """Whether to use the method at all, and with which setting."""
    said = []
    if who is not None and who.top1 is not None:
        epochs, compute = (_verdict(who, reference) for reference in ("plain", "plain-equal"))
        values = {"who": who.key}
        if compute == "worse" and epochs == "better":
            said.append(Statement("recommended", "recommended.longer", "worse", values))
        elif "worse" in (epochs, compute) and "better" not in (epochs, compute):
            said.append(Statement("recommended", "recommended.stay", "worse", values))
        elif "better" not in (epochs, compute):
            said.append(Statement("recommended", "recommended.nothing-yet", "none", values))
    if evidence.sweep is not None:
        return said + _from_sweep(evidence.sweep)
    tried = {} if who is None else settings_of(evidence, who, *_keys(who))
    key = "recommended.unswept" if tried else "recommended.unswept-unknown"
    key = "recommended.unswept-other" if tried and who and who.method != "masksub" else key
    return [*said, Statement("recommended", key, "unknown", {"settings": tried} if tried else {})]


def _keys(who: Arm) -> tuple[str, ...]:
    return ("sub.ratio", "sub.weight") if who.method == "masksub" else ("sub.p", "sub.weight")


def _from_sweep(sweep: Sweep) -> list[Statement]:
    if sweep.recommended is None:
        return [Statement("recommended", "recommended.none-complete", "unknown", {"settings": len(sweep.points)})]
    point = sweep.points[sweep.recommended]
    seeds = sum(run.status == "complete" for run in point.runs)
    values: dict[str, Any] = {"settings": dict(point.settings), "seeds": seeds, "tried": len(sweep.points)}
    if point.top1 is not None:
        values |= {"mean": point.top1.mean, "low": point.top1.low, "high": point.top1.high, "level": point.top1.level}
    interval = point.top1 is not None and point.top1.low is not None and seeds >= 3
    said = [Statement("recommended", "recommended.sweep" if interval else "recommended.sweep-few", "note", values)]
    if point.versus_plain is not None:
        verdict = point.versus_plain.verdict
        at = point.versus_plain.interval
        versus = {"mean": at.mean, "low": at.low, "high": at.high, "level": at.level}
        said.append(Statement("recommended", f"recommended.versus.{verdict}", verdict, versus))
    if sweep.best is not None and sweep.best != sweep.recommended:
        best = sweep.points[sweep.best]
        mean = best.top1.mean if best.top1 else None
        fewer = sum(run.status == "complete" for run in best.runs) < seeds
        key = "recommended.best-fewer" if fewer else "recommended.not-best"
        said.append(Statement("recommended", key, "note", {"settings": dict(best.settings), "mean": mean}))
    for key, loss in sweep.sensitivity.items():
        said.append(Statement("recommended", "recommended.sensitivity", "note", {"name": key, "loss": loss}))
    return said


def next_steps(evidence: Evidence, who: Arm | None) -> list[Statement]:
    """What would make the answer surer or wider, the most useful first."""
    said: list[tuple[str, dict[str, Any]]] = []
    if any(run.status == "incomplete" for arm in evidence.arms for run in arm.runs):
        said.append(("next.resume", {}))
    if who is None:
        said.append(("next.run-masksub", {}))
    failed = [arm.key for arm in evidence.arms if arm.failed]
    if failed:
        said.append(("next.failed", {"arms": failed}))
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
            seeds = max(len(paired.seeds) for paired in unsure)
            said.append(("next.more-seeds", {"seeds": seeds, "more": 4 * seeds}))
    if evidence.sweep is None:
        said += [("next.sweep", {})] if who is None or who.method == "masksub" else []
    elif edges := _edges(evidence.sweep):
        said.append(("next.edge", {"names": edges}))
    said += [("next.longer", {})] if who is not None and "better" in map(_of(who), who.versus) else []
    said.append(("next.held-out", {}))
    return [Statement("next", key, "note", values) for key, values in said]


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
    data, model = evidence.recipe.get("data", {}), evidence.recipe.get("model", {})
    name = data.get("name") if data.get("name") != "folder" else data.get("val") or data.get("train")
    epochs = evidence.recipe.get("train", {}).get("epochs")
    said: list[tuple[str, dict[str, Any]]] = []
    if name is not None and model.get("name") is not None:
        said.append(("limits.one", {"data": str(name), "model": str(model["name"])}))
    if who is not None and who.complete:
        said.append(("limits.seeds", {"seeds": len(who.complete), "who": who.key}))
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
