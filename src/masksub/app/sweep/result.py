"""What a sweep found: from the run folders, or from the study where the run folders are on other machines."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from optuna.trial import FrozenTrial, TrialState

from masksub.app.errors import InputError
from masksub.app.evidence.model import Evidence, Run, SweepPoint
from masksub.app.runs import write_text_atomically

from .plan import Plan
from .storage import place_of

__all__ = ["line_of", "study_evidence", "sweep_result"]

FIRST = ("sub.ratio", "sub.weight")


def sweep_result(plan: Plan, trials: Sequence[FrozenTrial], *, statistics: str) -> tuple[dict[str, Any], str]:
    """Write sweep.json, and say which setting to use.

    Args:
        plan: the sweep.
        trials: of its study, all finished.
        statistics: of the intervals, "t" or "bootstrap".

    Returns:
        The result for JSON, and text for a terminal.
    """
    from masksub.app.evidence.table import sweep_table  # needs SciPy, at the end only

    result: dict[str, Any] = {"study": _study(plan, trials)}
    file = plan.folder / "sweep.json"
    _write(file, result)  # ``gather`` reads there what was varied on purpose
    evidence, notes = _evidence(plan, trials, statistics)
    lines = [line_of(trial) for trial in trials if trial.state is not TrialState.COMPLETE]
    if evidence is not None:
        result |= evidence.as_dict()
        lines = [sweep_table(evidence), "", *lines]
        _write(file, result)
    return result, "\n".join([*lines, *notes, f"{file}; the page: masksub report {plan.folder}"])


def line_of(trial: FrozenTrial) -> str:
    """A setting and what came out."""
    attributes = trial.user_attrs
    settings = attributes.get("settings", trial.params)
    told = {key: value if isinstance(value, str) else json.dumps(value) for key, value in settings.items()}
    name = ", ".join(f"{key}={value}" for key, value in told.items())
    if trial.state is TrialState.COMPLETE:
        return f"{name}: top-1 {trial.value:.2f} %, mean of {len(attributes.get('runs', ()))} seed(s)"
    what = "pruned" if trial.state is TrialState.PRUNED else "failed"
    return f"{name}: {what}, {attributes.get('reason') or attributes.get('error') or 'no reason is known'}"


def study_evidence(plan: Plan, trials: Sequence[FrozenTrial], *, statistics: str) -> Evidence:
    """The evidence from what the workers told the study: no arms and no curves, but every setting."""
    from masksub.app.evidence.choice import sweep_of
    from masksub.app.evidence.statistics import mean_interval

    points = []
    for trial in trials:
        runs = trial.user_attrs.get("runs", ())
        complete = [run for run in runs if run["status"] == "complete"]
        points.append(
            SweepPoint(
                settings=trial.user_attrs["settings"],
                runs=tuple(_run(run) for run in runs),
                top1=mean_interval([run["top1"] for run in complete]),
                versus_plain=None,
                flops=sum(run["flops"] for run in complete) / len(complete) if complete else None,
            )
        )
    keys = sorted(plan.space.described(), key=lambda key: FIRST.index(key) if key in FIRST else len(FIRST))
    recipe = plan.base.model_dump(mode="json")
    del recipe["seed"]
    return Evidence(
        paths=(str(plan.folder),),
        arms=(),
        sweep=sweep_of(keys, points, statistics=statistics),
        problems=(),
        environments=(),
        recipe=recipe,
        classes=(),
    )


def _evidence(plan: Plan, trials: Sequence[FrozenTrial], statistics: str) -> tuple[Evidence | None, list[str]]:
    """The evidence, and what must be said of where it comes from."""
    from masksub.app.evidence.gather import gather

    runs = [run for trial in trials for run in trial.user_attrs.get("runs", ())]
    if not any(run["status"] == "complete" for run in runs):
        return None, []
    elsewhere = [run for run in runs if not (plan.folder / Path(run["folder"]).name).is_dir()]
    if not elsewhere:
        try:
            return gather([plan.folder], statistics=statistics, swept=list(plan.space.described())), []
        except InputError as error:
            why = str(error)
    else:
        hosts = ", ".join(sorted({run["host"] for run in elsewhere}))
        why = f"{len(elsewhere)} of {len(runs)} run folders are not in {plan.folder} (trained on {hosts})"
    note = f"These figures are the study's and not the run folders': {why}. A page needs the folders in one place."
    return study_evidence(plan, trials, statistics=statistics), [note]


def _study(plan: Plan, trials: Sequence[FrozenTrial]) -> dict[str, Any]:
    facts = {key: value for key, value in plan.facts().items() if key != "recipe"}
    return {"name": plan.study, "storage": place_of(plan.url), **facts, "trials": [_as_dict(each) for each in trials]}


def _as_dict(trial: FrozenTrial) -> dict[str, Any]:
    """A setting for JSON, without the worker's marks."""
    kept = {key: value for key, value in trial.user_attrs.items() if key in ("settings", "runs", "reason", "error")}
    value = trial.value if trial.state is TrialState.COMPLETE else None
    return {"number": trial.number, "state": trial.state.name.lower(), "top1": value, **kept}


def _run(told: dict[str, Any]) -> Run:
    return Run(
        path=f"{told['host']}:{told['folder']}",
        seed=told["seed"],
        status=told["status"],
        top1=told.get("top1"),
        reason=told.get("reason"),
    )


def _write(file: Path, result: dict[str, Any]) -> None:
    write_text_atomically(file, json.dumps(result, indent=2) + "\n")
