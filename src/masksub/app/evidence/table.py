"""The evidence as text for a terminal: tables, and sentences that say no more than the figures."""

from __future__ import annotations

from collections.abc import Sequence

from masksub.app.experiment.arms import ARMS

from .model import Arm, Evidence, Paired

__all__ = ["WIDTH", "aligned", "name_of", "signed_interval", "sweep_table", "text_table"]

WIDTH = 110
"""Most columns of a table."""
LONGEST_NAME = 36
SHOWN_PROBLEMS = 10
SUB_METHODS = ("masksub", "dropsub", "pathsub", "cosub")
"""Methods that the sentences may be about; the others are comparators."""
SAME = 0.01
"""Epochs that differ by less than this share are equal ones."""
SAME_COMPUTE = 0.05


def text_table(evidence: Evidence) -> str:
    """What the arms reached, what it cost, how sure that is, and how calmly they trained.

    Returns:
        Lines of up to 110 columns in tables; sentences are as long as they are.
    """
    parts = [_results(evidence), _differences(evidence), _stability(evidence), "\n".join(_sentences(evidence))]
    return "\n\n".join(part for part in parts if part)


def sweep_table(evidence: Evidence) -> str:
    """The settings of a sweep, the recommended one, and what hangs on it; without a sweep, that there is none."""
    from .sweep_table import sweep_text  # it lays its tables out with what is here

    return sweep_text(evidence)


def name_of(key: str) -> str:
    """An arm's name for people."""
    first, _, rest = key.partition(" ")
    name = ARMS[first].name if first in ARMS else first
    name = f"{name} {rest}".strip()
    return name if len(name) <= LONGEST_NAME else f"{name[: LONGEST_NAME - 3]}..."


def aligned(head: Sequence[str], rows: Sequence[Sequence[str]], *, gap: int = 2) -> str:
    """A table: the first column to the left, the others to the right, a rule under the head."""
    widths = [max(len(row[i]) for row in (head, *rows)) for i in range(len(head))]
    lines = []
    for row in (head, *rows):
        cells = [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:]))]
        lines.append((" " * gap).join(cells).rstrip())
    lines.insert(1, "-" * (sum(widths) + gap * (len(widths) - 1)))
    return "\n".join(lines)


def signed_interval(paired: Paired) -> str:
    """Mean difference and its interval."""
    at = paired.interval
    known = at.low is not None and at.high is not None
    return f"{at.mean:+.2f}" + (f" [{at.low:+.2f}, {at.high:+.2f}]" if known else "")


def p_value(p: float | None) -> str:
    """As people write it."""
    return "-" if p is None else "<0.001" if p < 0.001 else f"{p:.3f}"


def _results(evidence: Evidence) -> str:
    plain = evidence.arm("plain")
    head = ["", "seeds", "epochs", "compute", "top-1 %", "seconds", "images/s", "memory"]
    with_energy = any(arm.energy_joules is not None for arm in evidence.arms)
    rows = []
    for arm in evidence.arms:
        relative = arm.flops / plain.flops if plain and plain.flops and arm.flops else None
        absolute = None if plain and plain.flops else arm.flops
        row = [
            name_of(arm.key),
            _seeds(arm),
            _or(arm.epochs, "{:.4g}"),
            _or(relative, "{:.2f} x") if absolute is None else f"{absolute:.3g} FLOP",
            "-" if arm.top1 is None else f"{arm.top1.mean:.2f}" + _or(arm.spread, " +- {:.2f}", ""),
            _or(arm.seconds, "{:.0f}"),
            _or(arm.images_per_second, "{:.0f}"),
            _memory(arm.peak_memory_bytes),
        ]
        rows.append(row + ([_or(arm.energy_joules and arm.energy_joules / 1e3, "{:.3g} kJ")] if with_energy else []))
    notes = [
        "top-1: mean of the last evaluation over complete seeds, +- standard deviation. Others: means of one run;",
        "seconds of training" + (", compute relative to plain." if plain and plain.flops else "."),
    ]
    if with_energy:
        notes.append(f"Energy: {'; '.join(sorted({arm.energy_of for arm in evidence.arms if arm.energy_of}))}.")
    return "\n".join([aligned(head + ["energy"] * with_energy, rows), *notes])


def _seeds(arm: Arm) -> str:
    waiting = len(arm.runs) - len(arm.complete) - len(arm.failed)
    more = [f"{n} {what}" for n, what in ((len(arm.failed), "failed"), (waiting, "open")) if n]
    return ", ".join([str(len(arm.complete)), *more])


def _or(value: float | None, form: str, absent: str = "-") -> str:
    return absent if value is None else form.format(value)


def _memory(value: float | None) -> str:
    return "-" if value is None else f"{value / 2**20:.0f} MiB" if value < 2**30 else f"{value / 2**30:.1f} GiB"


def _differences(evidence: Evidence) -> str:
    references = [key for key in ("plain", "plain-equal") if any(key in arm.versus for arm in evidence.arms)]
    if not references:
        return ""
    level = next(paired.interval.level for arm in evidence.arms for paired in arm.versus.values())
    head, rows = ["top-1, points"], []
    for key in references:
        head += [f"to {name_of(key)}", "p", "pairs"]
    for arm in evidence.arms:
        if arm.versus:
            row = [name_of(arm.key)]
            for key in references:
                found = arm.versus.get(key)
                row += [signed_interval(found), p_value(found.p), str(len(found.seeds))] if found else ["-", "-", "-"]
            rows.append(row)
    methods = sorted({paired.method for arm in evidence.arms for paired in arm.versus.values()})
    note = f"[{100 * level:g} % interval] and p of differences paired over seeds: {'; '.join(methods)}."
    return "\n".join([aligned(head, rows), note])


def _stability(evidence: Evidence) -> str:
    head = ["stability", "variance of loss", "gradient norm", "largest", "spikes", "failed seeds"]
    rows = []
    for arm in evidence.arms:
        at = arm.stability
        row = [name_of(arm.key), _or(at.loss_variance, "{:.2g}"), _or(at.gradient_norm_mean, "{:.3g}")]
        row += [_or(at.gradient_norm_max, "{:.3g}"), str(at.spikes), _named(at.failed)]
        rows.append(row)
    return aligned(head, rows)


def _named(seeds: Sequence[int]) -> str:
    """With the word: "0" alone reads as a count."""
    return f"seed{'s' * (len(seeds) > 1)} {', '.join(map(str, seeds))}" if seeds else "-"


def _sentences(evidence: Evidence) -> list[str]:
    said = []
    subs = [arm for method in SUB_METHODS for arm in evidence.arms if arm.method == method and arm.top1]
    who = next(iter(subs), None)
    if who is not None:
        said += [_compared(who, evidence, key) for key in ("plain-equal", "plain") if key in who.versus]
        said += _others(evidence, who)
        said += _reach(who, evidence)
    said += _other_changes(evidence)
    said += _disagreeing(evidence) + _too_few(evidence) + _of_sweep(evidence)
    for arm in evidence.arms:
        said += [f"{name_of(arm.key)}, seed {run.seed} failed: {run.reason}" for run in arm.failed]
        if arm.failed and arm.complete:
            said.append(f"{name_of(arm.key)}: its figures are those of the seeds that did not fail.")
        if waiting := [str(run.seed) for run in arm.runs if run.status == "incomplete"]:
            said.append(f"{name_of(arm.key)}, not complete: seed {', '.join(waiting)}.")
    # Failed and incomplete runs are told above, by arm and seed.
    told = {run.path for arm in evidence.arms for run in arm.runs if run.status != "complete"}
    left = [problem for problem in evidence.problems if problem.path not in told]
    said += [f"{problem.path}: {problem.message}" for problem in left[:SHOWN_PROBLEMS]]
    return said + ([f"... and {len(left) - SHOWN_PROBLEMS} more problems"] if len(left) > SHOWN_PROBLEMS else [])


def _compared(who: Arm, evidence: Evidence, key: str) -> str:
    paired, other = who.versus[key], evidence.arm(key)
    assert other is not None
    at, pairs = paired.interval, len(paired.seeds)
    subject = f"{_condition(who, other, key)}, {name_of(who.key)}"
    figures = f"{at.mean:+.2f} points"
    if at.low is not None and at.high is not None:
        figures += f", {100 * at.level:g} % interval {at.low:+.2f} to {at.high:+.2f}"
    if paired.verdict == "unknown":
        return f"{subject} ended {at.mean:+.2f} points from plain training, over {pairs} seed{'s' * (pairs > 1)}."
    figures += f", p {p_value(paired.p)}, {paired.method}, {pairs} seeds"
    if paired.verdict == "none":
        return f"{subject}: no difference from plain training seen ({figures})."
    return f"{subject} is {paired.verdict} than plain training ({figures})."


def _condition(who: Arm, other: Arm, key: str) -> str:
    """What is held equal; only what is."""
    if key == "plain-equal" and _near(who.flops, other.flops, SAME_COMPUTE):
        return "At equal compute"
    if key == "plain" and _near(who.epochs, other.epochs, SAME):
        if who.flops and other.flops and not _near(who.flops, other.flops, SAME_COMPUTE):
            return f"At equal epochs and {who.flops / other.flops:.2f} times the compute"
        return "At equal epochs"
    return f"At {_or(who.epochs, '{:.4g}')} epochs against {_or(other.epochs, '{:.4g}')}"


def _near(one: float | None, two: float | None, share: float) -> bool:
    return bool(one and two and abs(one / two - 1) <= share)


def _others(evidence: Evidence, who: Arm) -> list[str]:
    """The other arms against plain training, by what was seen."""
    sets: dict[str, list[str]] = {"better": [], "none": [], "worse": []}
    for arm in evidence.arms:
        found = arm.versus.get("plain")
        if arm is not who and found is not None and found.verdict in sets:
            sets[found.verdict].append(name_of(arm.key))
    words = {"better": "Better than", "none": "No difference seen from", "worse": "Worse than"}
    return [
        f"{words[verdict]} plain training, of the other arms: {'; '.join(names)}."
        for verdict, names in sets.items()
        if names
    ]


def _reach(who: Arm, evidence: Evidence) -> list[str]:
    plain = evidence.arm("plain")
    if plain is None or plain.top1 is None or not plain.flops:
        return []
    goal = f"plain training's final accuracy ({plain.top1.mean:.2f} %)"
    if who.flops_to_plain is None:
        return [f"{name_of(who.key)} does not reach {goal}."]
    share = who.flops_to_plain / plain.flops
    first = "" if plain.flops_to_plain is None else f"; plain's own curve first does at {_own(plain):.2f} times"
    return [f"{name_of(who.key)} reaches {goal} with {share:.2f} times plain's compute{first}."]


def _own(plain: Arm) -> float:
    assert plain.flops_to_plain and plain.flops
    return plain.flops_to_plain / plain.flops


def _other_changes(evidence: Evidence) -> list[str]:
    """Keys in which arms differ beyond what makes them what they are."""
    said = []
    for arm in evidence.arms:
        expected = {"method", "train.eval_every"} | ({"train.epochs"} if arm.key == "plain-equal" else set())
        keys = [
            f"{key} ({there} -> {here})"
            for key, (there, here) in arm.changes.items()
            if key not in expected and not key.startswith("sub.")
        ]
        if keys:
            said.append(f"{name_of(arm.key)} also differs in {', '.join(keys)}: what is seen of it may come from that.")
    return said


def _disagreeing(evidence: Evidence) -> list[str]:
    """Bootstrap intervals of few seeds are narrow; the reader must not have to find that out."""
    names = [
        f"{name_of(arm.key)} to {name_of(key)}"
        for arm in evidence.arms
        for key, paired in arm.versus.items()
        if paired.claims and paired.disputed
    ]
    if not names:
        return []
    return [
        f"The interval excludes 0, but p does not bear it out, so no difference is claimed: {'; '.join(names)}. "
        "Few seeds make bootstrap intervals too narrow."
    ]


def _of_sweep(evidence: Evidence) -> list[str]:
    sweep = evidence.sweep
    if sweep is None:
        return []
    said = (
        f"{len(sweep.points)} settings of {', '.join(sweep.keys)} were found; only the one among the arms is told here."
    )
    return [said]


def _too_few(evidence: Evidence) -> list[str]:
    pairs = [paired for arm in evidence.arms for paired in arm.versus.values()]
    if pairs and all(paired.claims for paired in pairs):
        return []
    if pairs and any(paired.claims for paired in pairs):
        few = {name_of(arm.key): None for arm in evidence.arms if any(not p.claims for p in arm.versus.values())}
        return [f"{', '.join(few)}: fewer than three paired seeds, so no claim about noise can be made."]
    most = max((len(arm.complete) for arm in evidence.arms), default=0)
    if pairs or most < 3:
        return ["Fewer than three paired seeds: no claim about noise can be made; three are the least."]
    return []
