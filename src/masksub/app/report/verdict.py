"""What the figures say, as statements without a language: never more than the figures.

A difference whose interval contains 0 is "none", fewer than three paired seeds are "unknown", whatever the means.
"""

from __future__ import annotations

from typing import Any

from masksub.app.evidence.model import Arm, Evidence, Paired

from .advice import limits, next_steps, recommendation
from .statements import PARTS, Statement, Tone, apart, chosen_arm, equal_differences, other_keys, variant
from .tables import run_numbers

__all__ = ["state_verdict"]


def state_verdict(evidence: Evidence) -> list[Statement]:
    """All statements, in the order of PARTS."""
    who = chosen_arm(evidence)
    said: list[Statement] = []
    if who is None or who.top1 is None:
        known = {} if who is None else {"who": who.key}
        said.append(Statement("headline", "headline.no-sub" if who is None else "headline.no-run", "unknown", known))
        said += _failures(evidence)
    else:
        said += _headline(evidence, who)
        said += _epochs(evidence, who)
        said += _compute(evidence, who)
        said += _cost(evidence, who)
        said += _certainty(who)
        said += _failures(evidence)
        if who.failed:
            said.append(Statement("certainty", "certainty.survivors", "worse", {"who": who.key}))
    said += _skipped(evidence)
    said += recommendation(evidence, who)
    said += next_steps(evidence, who)
    said += limits(evidence, who)
    return sorted(said, key=lambda each: PARTS.index(each.part))


def _figures(who: Arm, paired: Paired) -> dict[str, Any]:
    at = paired.interval
    return {
        "who": who.key, "mean": at.mean, "low": at.low, "high": at.high, "level": at.level,
        "seeds": len(paired.seeds), "seed_list": list(paired.seeds), "p": paired.p, "method": paired.method,
    }  # fmt: skip


def _headline(evidence: Evidence, who: Arm) -> list[Statement]:
    """At equal compute where that was tried, because it is the stricter question; else at equal epochs."""
    said = []
    if (paired := who.versus.get("plain-equal")) is not None:
        ratio = _unequal(evidence, who)
        key = f"headline.{'compute' if ratio is None else 'unequal'}.{_plainer(paired)}"
        said.append(Statement("headline", key, paired.verdict, {**_figures(who, paired), "ratio": ratio}))
        said += _confounded(evidence, who, "headline", "plain-equal")
    elif (paired := who.versus.get("plain")) is not None:
        if _other_epochs(evidence, who) is None:
            compute = "compute-untried" if evidence.arm("plain-equal") is None else "compute-open"
            values = {**_figures(who, paired), "compute": compute}
            said.append(Statement("headline", f"headline.epochs.{_plainer(paired)}", paired.verdict, values))
            said += _confounded(evidence, who, "headline", "plain")
        else:
            said.append(Statement("headline", "headline.epochs.differ", "unknown", {"who": who.key}))
    else:
        there = any(evidence.arm(key) is not None for key in ("plain", "plain-equal"))
        key = "headline.no-pairs" if there else "headline.no-reference"
        said.append(Statement("headline", key, "unknown", {"who": who.key}))
    if who.failed:
        values = {"who": who.key, "n": len(who.failed), "all": len(who.runs)}
        said.append(Statement("headline", "headline.failed", "worse", values))
    return said


def _gain(evidence: Evidence, who: Arm, part: str, reference: str, ratio: float | None = None) -> list[Statement]:
    """The paired difference to a reference arm; ``ratio`` where it did not have the compute that it should."""
    paired = who.versus.get(reference)
    if paired is None:
        arm = evidence.arm(reference)
        why = "no-arm" if arm is None else "no-pairs" if arm.complete else "none-complete"
        return [Statement(part, f"{part}.{why}", "unknown", {"who": who.key})]
    key = f"{part if ratio is None else 'unequal'}.{variant(paired)}"
    said = [Statement(part, key, paired.verdict, {**_figures(who, paired), "ratio": ratio})]
    return said + _confounded(evidence, who, part, reference)


def _plainer(paired: Paired) -> str:
    """For a headline, which does not tell why no difference was seen."""
    return "none" if paired.verdict == "none" else variant(paired)


def _confounded(evidence: Evidence, who: Arm, part: str, reference: str) -> list[Statement]:
    """What else differs, beside the epochs, which have a sentence of their own."""
    other = evidence.arm(reference)
    names = [] if other is None else [key for key in other_keys(who, other) if key != "train.epochs"]
    return [Statement(part, "gain.confounded", "unknown", {"names": names})] if names else []


def _epochs(evidence: Evidence, who: Arm) -> list[Statement]:
    said = _gain(evidence, who, "epochs", "plain")
    if "plain" in who.versus and (theirs := _other_epochs(evidence, who)) is not None:
        # First, so that the part is not headed by a gain at equal epochs that it is not.
        values = {"who": who.key, "ours": who.epochs, "theirs": theirs}
        said.insert(0, Statement("epochs", "epochs.differ", "unknown", values))
    return said


def _compute(evidence: Evidence, who: Arm) -> list[Statement]:
    return _gain(evidence, who, "compute", "plain-equal", _unequal(evidence, who))


def _other_epochs(evidence: Evidence, who: Arm) -> float | None:
    """Epochs of plain training where they are not those of the arm."""
    plain = evidence.arm("plain")
    return plain.epochs if plain is not None and apart(who.epochs, plain.epochs, 0.01) else None


def _unequal(evidence: Evidence, who: Arm) -> float | None:
    """Operations of plain training at "equal" compute over the arm's, where they are not equal.

    The plain arm is stretched to MaskSub's cost at the recipe's ratio: other methods and ratios cost more or less.
    """
    equal = evidence.arm("plain-equal")
    return _ratio(equal.flops, who.flops) if equal is not None and apart(equal.flops, who.flops, 0.03) else None


def _cost(evidence: Evidence, who: Arm) -> list[Statement]:
    plain = evidence.arm("plain")
    if plain is None or plain.top1 is None:
        values = {"who": who.key, "flops": who.flops, "seconds": who.seconds}
        return [Statement("cost", "cost.alone", "note", values)] if who.flops and who.seconds else []
    said = []
    for key, ours, theirs in (
        ("flops", who.flops, plain.flops),
        ("seconds", who.seconds, plain.seconds),
        ("memory", who.peak_memory_bytes, plain.peak_memory_bytes),
        ("energy", who.energy_joules, plain.energy_joules if plain.energy_of == who.energy_of else None),
    ):
        if (ratio := _ratio(ours, theirs)) is not None:
            values = {"who": who.key, "ratio": ratio, "ours": ours, "theirs": theirs, "of": who.energy_of}
            values["at"] = "equal-epochs" if _other_epochs(evidence, who) is None else "other-epochs"
            said.append(Statement("cost", f"cost.{key}", "note", values))
    if plain.flops and (reach := who.flops_to_plain) is not None:
        own = _ratio(plain.flops_to_plain, plain.flops)
        values = {"who": who.key, "share": reach / plain.flops, "own": own}
        said.append(Statement("cost", "cost.reach" if own is None else "cost.reach-own", "note", values))
    elif plain.flops:
        said.append(Statement("cost", "cost.never", "note", {"who": who.key}))
    return said


def _certainty(who: Arm) -> list[Statement]:
    said = []
    for reference in ("plain-equal", "plain"):
        if (paired := who.versus.get(reference)) is None:
            continue
        key = "certainty.paired" if paired.claims and paired.p is not None else "certainty.few"
        key = "certainty.equal" if equal_differences(paired) else key
        tone: Tone = "note" if paired.claims else "unknown"
        said.append(Statement("certainty", key, tone, {**_figures(who, paired), "reference": reference}))
        if paired.claims and paired.disputed:
            said.append(Statement("certainty", "certainty.disputed", "note", {"reference": reference}))
    if not said:
        said.append(Statement("certainty", "certainty.nothing", "unknown", {"who": who.key}))
    if who.spread is not None:
        values = {"who": who.key, "spread": who.spread, "seeds": len(who.complete)}
        said.append(Statement("certainty", "certainty.spread", "note", values))
    return said


def _failures(evidence: Evidence) -> list[Statement]:
    """Seeds that diverged and runs that are not complete: told for every arm, dropped for none."""
    said = []
    for arm in evidence.arms:
        if arm.failed:
            values = {"who": arm.key, "seeds": [run.seed for run in arm.failed], "n": len(arm.failed)}
            said.append(Statement("certainty", "certainty.failed", "worse", {**values, "all": len(arm.runs)}))
        if missing := [run.seed for run in arm.runs if run.status == "incomplete"]:
            values = {"who": arm.key, "seeds": missing, "n": len(missing)}
            said.append(Statement("certainty", "certainty.incomplete", "unknown", values))
    points = evidence.sweep.points if evidence.sweep is not None else ()
    if failed := sum(run.status == "failed" for point in points for run in point.runs):
        said.append(Statement("certainty", "certainty.sweep-failed", "worse", {"n": failed}))
    return said


def _skipped(evidence: Evidence) -> list[Statement]:
    """Images left out because they could not be read; runs that left out as many are named together."""
    runs = [run for arm in evidence.arms for run in arm.runs]
    runs += [run for point in (evidence.sweep.points if evidence.sweep else ()) for run in point.runs]
    numbers, found = run_numbers(evidence), dict[tuple[int, int], set[int]]()
    for run in runs:
        counts = (run.skipped_images, run.skipped_validation_images)
        if any(counts):
            found.setdefault(counts, set()).add(numbers[run.path])
    said = []
    for (training, validation), those in found.items():
        values = {"training": training, "validation": validation, "n": len(those), "runs": sorted(those)}
        said.append(Statement("certainty", "certainty.skipped", "note", values))
    return said


def _ratio(ours: float | None, theirs: float | None) -> float | None:
    return ours / theirs if ours is not None and theirs else None
