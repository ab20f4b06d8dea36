"""Statements of a verdict, and what they are about."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from masksub.app.evidence.model import Arm, Evidence

__all__ = ["PARTS", "SUB_METHODS", "Statement", "Tone", "chosen_arm", "settings_of"]

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
