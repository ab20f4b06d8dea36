"""Statements of a verdict, and what they are about."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import PurePath
from typing import Any, Literal

from masksub.app.evidence.model import Arm, Evidence, Paired

__all__ = [
    "PARTS", "SUB_METHODS", "Statement", "Tone", "apart", "chosen_arm", "data_name", "equal_differences", "other_keys",
    "settings_of", "variant",
]  # fmt: skip

PARTS = ("headline", "epochs", "compute", "cost", "certainty", "recommended", "next", "limits")
"""Parts of the verdict, in the order in which they are told."""

SUB_METHODS = ("masksub", "dropsub", "pathsub", "cosub")
"""Methods that a verdict may be about; the others are comparators."""

Tone = Literal["better", "worse", "none", "unknown", "note"]


@dataclass(frozen=True)
class Statement:
    """One thing that is said.

    Attributes:
        part: of PARTS.
        key: of a message in ``texts_en`` and ``texts_ja``.
        tone: what kind of news it is.
        values: for the message, plain values that JSON can hold.
    """

    part: str
    key: str
    tone: Tone = "note"
    values: dict[str, Any] = field(default_factory=dict)


def chosen_arm(evidence: Evidence) -> Arm | None:
    """The arm that the verdict is about: MaskSub's, else the sub-branch method with the highest mean."""
    first = evidence.arm("masksub")
    arms = [first] if first else [arm for arm in evidence.arms if arm.method == "masksub"]
    arms = arms or [arm for arm in evidence.arms if arm.method in SUB_METHODS]
    return max(arms, key=lambda arm: arm.top1.mean if arm.top1 else float("-inf"), default=None)


def variant(paired: Paired) -> str:
    """Which sentence a paired difference needs: its verdict, and why it is not more.

    Returns:
        "better", "worse", "none" (0 is in the interval), "unknown" (too few seeds); "same" where nothing differs,
        "disputed" where the p-value does not bear the interval out, "no-interval" where all differences are equal.
    """
    if paired.verdict == "unknown":
        return "no-interval" if paired.claims else "unknown"
    if paired.verdict == "none" and equal_differences(paired):
        return "same"
    return "disputed" if paired.disputed else paired.verdict


def equal_differences(paired: Paired) -> bool:
    """Whether no interval can be given although there are seeds enough: that all differ alike is no certainty."""
    low, high = paired.interval.low, paired.interval.high
    return paired.claims and (low is None or high is None or low == high)


def apart(ours: float | None, theirs: float | None, tolerance: float) -> bool:
    """Whether two known figures differ by more than this share."""
    return bool(theirs) and ours is not None and theirs is not None and abs(ours / theirs - 1) > tolerance


def other_keys(who: Arm, reference: Arm) -> list[str]:
    """Recipe keys, beside the method and its own, in which an arm differs from what it is compared with.

    The epochs of plain training at equal compute are others on purpose.
    """
    found = []
    for key in {**who.changes, **reference.changes}:
        ours = who.changes[key][1] if key in who.changes else reference.changes[key][0]
        theirs = reference.changes[key][1] if key in reference.changes else who.changes[key][0]
        wanted = key == "method" or key.startswith("sub.") or key == "train.eval_every"
        wanted |= key == "train.epochs" and reference.key == "plain-equal"
        if ours != theirs and not wanted:
            found.append(key)
    return found


def data_name(evidence: Evidence) -> str | None:
    """What people call the data: a folder of images by its name, with its parent's where it is only "train"."""
    data = evidence.recipe.get("data", {})
    name = data.get("name")
    if name != "folder" or not data.get("train"):
        return None if name is None else str(name)
    path = PurePath(str(data["train"]))
    parts = path.parts[-2:] if path.name.lower() in ("train", "training", "images") else path.parts[-1:]
    return "/".join(part for part in parts if part != path.anchor) or str(path)


def settings_of(evidence: Evidence, arm: Arm, *keys: str) -> dict[str, Any]:
    """Values of dotted recipe keys as this arm had them; keys that are unknown are left out."""
    found: dict[str, Any] = {}
    for key in keys:
        value: Any = evidence.recipe
        for name in key.split("."):
            value = value.get(name) if isinstance(value, dict) else None
        value = arm.changes[key][1] if key in arm.changes else value
        if value is not None:
            found[key] = value
    return found
