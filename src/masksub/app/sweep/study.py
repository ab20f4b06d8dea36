"""The study that the workers of a sweep share: which settings are to be tried, who tries which, and what came out.

There is no queue that could disagree with the trials: each time a worker asks for a setting, what is missing is worked
out from them, under the lock of the study. So a worker may die at any point, also in here.
"""

from __future__ import annotations

import contextlib
import itertools
import warnings
from collections.abc import Sequence
from typing import Any, Literal

import optuna
from optuna.storages import RDBStorage, fail_stale_trials
from optuna.trial import FrozenTrial, Trial, TrialState

from masksub.app.errors import InputError
from masksub.app.runs import differing_keys
from masksub.core.seeds import mix

from .plan import Plan
from .samplers import pruner_of, sampler_of
from .settings import slug, with_settings
from .storage import exclusive, is_here_and_dead, open_storage, patiently, place_of, this_worker
from .trials import AGAIN, RETRIED, Claim, Progress, diverged

__all__ = ["Claim", "Progress", "SharedStudy"]

optuna.logging.set_verbosity(optuna.logging.ERROR)

DRAWS = 5
"""Draws of a sampler before a setting that was tried already is replaced or taken again."""


class SharedStudy:
    """A study, as one worker has it.

    Args:
        plan: the sweep.
        storage: where it is; ``close`` closes it.
    """

    def __init__(self, plan: Plan, storage: RDBStorage) -> None:
        self.plan, self.storage = plan, storage
        self._study = optuna.load_study(study_name=plan.study, storage=storage, pruner=pruner_of(plan))
        self._id = storage.get_study_id_from_name(plan.study)
        self._retried: frozenset[int] = frozenset()

    @classmethod
    def create(cls, plan: Plan) -> SharedStudy:
        """Make the study, or join the one that is there.

        Raises:
            InputError: it was begun with another recipe or other settings, with the differing keys.
            StoppedError: the database does not answer.
        """
        return patiently(plan.url, cls._create, plan)  # type: ignore[no-any-return]

    @classmethod
    def _create(cls, plan: Plan) -> SharedStudy:
        with exclusive(plan.url, plan.study), contextlib.ExitStack() as left_over:
            storage = open_storage(plan.url, beat=plan.beat, grace=plan.grace)
            left_over.callback(_close, storage)
            study = optuna.create_study(
                study_name=plan.study, storage=storage, direction="maximize", load_if_exists=True
            )
            recorded = study.user_attrs.get("masksub")
            if recorded is None and study.get_trials(deepcopy=False):
                raise InputError(
                    f"the study {plan.study!r} in {place_of(plan.url)} is none of masksub; take --study NAME"
                )
            if recorded is None:
                study.set_user_attr("masksub", plan.facts())
            elif differing := differing_keys(recorded, plan.facts()):
                raise InputError(
                    f"the study {plan.study!r} in {place_of(plan.url)} was begun with other settings. Differing (study "
                    f"-> now):\n  "
                    + "\n  ".join(differing)
                    + "\nTake the changes back, or begin another sweep: --study NAME, and --out FOLDER where the "
                    "recipe differs. Runs of the folder that have the same recipe are not made again."
                )
            shared = cls(plan, storage)
            shared._enqueue_missing()
            left_over.pop_all()
        return shared

    def close(self) -> None:
        """Close the connections."""
        _close(self.storage)

    def claim(self) -> Claim | Literal["wait", "done"]:
        """Take a setting that nobody has.

        Returns:
            "wait" when the others have all that are left, "done" when nothing is.

        Raises:
            StoppedError: the database does not answer.
        """
        return patiently(self.plan.url, self._claim)  # type: ignore[no-any-return]

    def _claim(self) -> Claim | Literal["wait", "done"]:
        with exclusive(self.plan.url, self.plan.study), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of heartbeats outside of Study.optimize: they beat in Heartbeat
            self._give_up_dead()
            for draw in itertools.count(1):
                self._enqueue_missing()
                trials = self._trials()
                waiting = [trial for trial in trials if trial.state is TrialState.WAITING]
                if not waiting:
                    return "wait" if any(trial.state is TrialState.RUNNING for trial in trials) else "done"
                trial_id = self._trial_id(waiting[0])
                # Before the claim: a trial that runs and has no beat would never be missed.
                self.storage.set_trial_user_attr(trial_id, "worker", this_worker())
                self.storage.record_heartbeat(trial_id)
                seed = mix(self.plan.base.seed, len(trials)) % 2**32  # not the same draws in every worker
                self._study.sampler = sampler_of(self.plan, seed)
                trial = self._study.ask(self.plan.space.distributions())
                settings = self.plan.space.settings(trial.params)
                if self.plan.sampler != "grid" and self._is_double(trial, slug(settings), trials, draw):
                    continue
                trial.set_user_attr("settings", settings)
                try:
                    with_settings(self.plan.base, settings)
                except InputError as error:  # values between the ends of ranges, together
                    self._end(trial, "reason", str(error))
                    continue
                return Claim(trial, trial_id, settings, again=AGAIN in trial.user_attrs)
        raise AssertionError

    def finish(self, claim: Claim, state: TrialState, value: float | None = None, **attributes: Any) -> bool:
        """Say what came out.

        Args:
            claim: the setting.
            state: COMPLETE with a value, PRUNED, or FAIL.
            value: mean top-1 over the seeds.
            attributes: kept with the trial. Of a failed one, ``reason`` means that it stays so, ``error`` that the next
                command tries it again, and neither that another worker takes it over.

        Returns:
            False if the trial was given to another worker meanwhile, who will say it.

        Raises:
            StoppedError: the database does not answer; the trial will be missed and taken over.
        """
        return patiently(self.plan.url, self._finish, claim, state, value, attributes)  # type: ignore[no-any-return]

    def _finish(self, claim: Claim, state: TrialState, value: float | None, attributes: dict[str, Any]) -> bool:
        with exclusive(self.plan.url, self.plan.study):
            if self.storage.get_trial(claim.trial_id).state is not TrialState.RUNNING:
                return False
            for key, each in attributes.items():
                claim.trial.set_user_attr(key, each)
            self._study.tell(claim.trial, value, state)
            return True

    def progress(self) -> Progress:
        """How far the study is, from the storage alone."""
        trials = [trial for trial in self._trials() if self._counts(trial)]
        states = [trial.state for trial in trials]
        grid = self.plan.space.grid() if self.plan.sampler == "grid" else []
        found = Progress(total=max(len(grid) or self._wanted(), len(trials)), trials=trials)
        found.complete, found.failed = states.count(TrialState.COMPLETE), states.count(TrialState.FAIL)
        found.pruned, found.running = states.count(TrialState.PRUNED), states.count(TrialState.RUNNING)
        found.finished = found.complete + found.failed + found.pruned
        return found

    def retry_failed(self) -> None:
        """Have the settings of which a run diverged tried again: their trials no longer count, new ones are enqueued.

        Raises:
            StoppedError: the database does not answer.
        """
        patiently(self.plan.url, self._retry_failed)

    def _retry_failed(self) -> None:
        with exclusive(self.plan.url, self.plan.study):
            failed = [trial for trial in self._trials() if self._counts(trial) and diverged(trial)]
            retried = sorted({*self._retried, *(trial.number for trial in failed)})
            self._study.set_user_attr(RETRIED, retried)  # a finished trial takes no more marks
            self._enqueue_missing()

    def _trials(self) -> Sequence[FrozenTrial]:
        self._retried = frozenset(self._study.user_attrs.get(RETRIED, ()))
        return self._study.get_trials(deepcopy=False)

    def _trial_id(self, trial: FrozenTrial) -> int:
        return self.storage.get_trial_id_from_study_id_trial_number(self._id, trial.number)

    def _name(self, trial: FrozenTrial) -> str | None:
        """What the setting of a trial is called, None before it is drawn."""
        drawn = trial.params or trial.system_attrs.get("fixed_params")
        return (
            slug(self.plan.space.settings(drawn)) if drawn and len(drawn) == len(self.plan.space.dimensions) else None
        )

    def _counts(self, trial: FrozenTrial) -> bool:
        """Whether a trial stands for its setting: it is not one that a dead worker left, or that is tried again.

        ``_trials`` must have been called, which reads what is tried again.
        """
        if trial.state is not TrialState.FAIL:
            return True
        if trial.number in self._retried:
            return False
        attributes = trial.user_attrs
        return "reason" in attributes or ("error" in attributes and attributes.get("session") == self.plan.session)

    def _wanted(self) -> int:
        return int(min(self.plan.trials or 0, self.plan.space.size))

    def _give_up_dead(self) -> None:
        """End the trials whose workers are dead; what they had is then missing."""
        fail_stale_trials(self._study)
        for trial in self._trials():
            if trial.state is TrialState.RUNNING and is_here_and_dead(trial.user_attrs.get("worker")):
                self.storage.set_trial_state_values(self._trial_id(trial), TrialState.FAIL)

    def _enqueue_missing(self) -> None:
        trials = self._trials()
        counting = [trial for trial in trials if self._counts(trial)]
        have = {self._name(trial) for trial in counting}
        if self.plan.sampler == "grid":
            wanted = self.plan.space.grid()
        else:  # what a dead worker had is tried in its place; all else is drawn when it is asked for
            given_up = [t for t in trials if not self._counts(t) and "double" not in t.user_attrs and self._name(t)]
            wanted = [trial.params or trial.system_attrs["fixed_params"] for trial in given_up]
        for drawn in wanted:
            if (name := slug(self.plan.space.settings(drawn))) not in have:
                have.add(name)
                again = any(trial.number in self._retried and self._name(trial) == name for trial in trials)
                self._study.enqueue_trial(drawn, user_attrs={AGAIN: True} if again else None)
        trials = self._trials()
        if self.plan.sampler == "grid" or any(trial.state is TrialState.WAITING for trial in trials):
            return
        if sum(self._counts(trial) for trial in trials) < self._wanted():
            self._study.enqueue_trial({})  # what it is, is drawn when it is asked for

    def _is_double(self, trial: Trial, name: str, trials: Sequence[FrozenTrial], draw: int) -> bool:
        """Whether a setting was drawn before, and another is to be taken in its place."""
        others = [other for other in trials if other.number != trial.number and self._counts(other)]
        have = {self._name(other) for other in others}
        if name not in have:
            return False
        space = self.plan.space
        untried = [each for each in space.grid() if slug(space.settings(each)) not in have] if draw >= DRAWS else []
        if draw >= DRAWS and not untried:
            return False  # a range without a step: once more the same costs nothing, its runs are there
        self._end(trial, "double", "was drawn before")
        if untried:
            self._study.enqueue_trial(untried[0])
        return True

    def _end(self, trial: Trial, key: str, why: str) -> None:
        trial.set_user_attr(key, why)
        self._study.tell(trial, state=TrialState.FAIL)


def _close(storage: RDBStorage) -> None:
    storage.remove_session()
    storage.engine.dispose()
