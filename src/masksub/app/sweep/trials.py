"""Trials of a study as a worker has them, and their marks."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from optuna.trial import FrozenTrial, Trial, TrialState

from .settings import slug

__all__ = ["AGAIN", "RETRIED", "Claim", "Progress", "diverged"]

RETRIED, AGAIN = "retried", "again"
"""Marks: of a study, numbers of the trials that no longer count; of a trial, that it takes such a one's place."""


@dataclass
class Claim:
    """A setting that this worker has.

    Attributes:
        trial: Optuna's.
        trial_id: the storage's number of it.
        settings: dotted recipe key -> value.
        again: whether runs of it that diverged are to be trained again.
    """

    trial: Trial
    trial_id: int
    settings: dict[str, Any]
    again: bool = False

    @property
    def name(self) -> str:
        """What its run folders are called, without the seed."""
        return slug(self.settings)


@dataclass
class Progress:
    """How far a study is.

    Attributes:
        total: settings to be tried.
        finished: complete, failed and pruned ones.
        complete, failed, pruned, running: of them.
        trials: the trials that count, by number.
    """

    total: int
    finished: int = 0
    complete: int = 0
    failed: int = 0
    pruned: int = 0
    running: int = 0
    trials: list[FrozenTrial] = field(default_factory=list)


def diverged(trial: FrozenTrial) -> bool:
    """Whether a setting failed because runs of it diverged."""
    return trial.state is TrialState.FAIL and any(run["status"] == "failed" for run in trial.user_attrs.get("runs", ()))
