"""Optuna's samplers and pruners as a sweep uses them."""

from __future__ import annotations

import optuna

from .plan import Plan

__all__ = ["pruner_of", "sampler_of"]


def sampler_of(plan: Plan, seed: int) -> optuna.samplers.BaseSampler:
    """What draws settings; of a grid all are enqueued, and nothing is drawn."""
    if plan.sampler == "tpe":
        return optuna.samplers.TPESampler(seed=seed)
    return optuna.samplers.RandomSampler(seed=seed)


def pruner_of(plan: Plan) -> optuna.pruners.BasePruner:
    """The steps that it sees are the evaluations of a trial's runs, one seed after the other."""
    if plan.pruner == "none":
        return optuna.pruners.NopPruner()
    evaluations = max(1, round(plan.base.train.epochs / plan.base.train.eval_every))
    if plan.pruner == "median":
        # Strong masking learns slowly at first: nothing is cut off in the first third of the first run.
        return optuna.pruners.MedianPruner(n_startup_trials=3, n_warmup_steps=max(1, evaluations // 3))
    least = max(1, evaluations // 9)
    return optuna.pruners.HyperbandPruner(min_resource=least, max_resource=evaluations * plan.seeds)
