"""Sweeps on made-up training, in this process. If these fail, a setting is lost, tried twice, or misreported."""

from __future__ import annotations

import contextlib
import json
import platform
import signal
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from optuna.trial import FrozenTrial, TrialState

from masksub.app.errors import InputError, StoppedError
from masksub.app.evidence.gather import gather
from masksub.app.interrupt import InterruptedRun
from masksub.app.progress import Reporter
from masksub.app.recipe import load_recipe
from masksub.app.runs import RunFolder
from masksub.app.settings import Recipe
from masksub.app.sweep import run as sweep
from masksub.app.sweep import worker as sweep_worker
from masksub.app.sweep.plan import Plan
from masksub.app.sweep.result import sweep_result
from masksub.app.sweep.run import plan_sweep, run_sweep
from masksub.app.sweep.storage import hide_password, is_here_and_dead, place_of, storage_url, this_worker
from masksub.app.sweep.study import Claim, SharedStudy
from masksub.app.sweep.worker import work
from tests.app import sweep_made_up
from tests.app.sweep_made_up import logged, made_up_run, made_up_top1
from tests.app.test_train import SMALL

GRID = ["sub.ratio=0.25,0.5", "sub.weight=0.25,0.5"]


@pytest.fixture(autouse=True)
def _made_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sweep_worker, "run_cell", made_up_run)


@pytest.fixture
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(function: Callable[..., Any], arguments: list[tuple[Any, ...]], **_: Any) -> list[Any]:
        return [function(*each) for each in arguments]

    monkeypatch.setattr(sweep, "run_in_processes", run)


def recipe(*overrides: str) -> Recipe:
    return load_recipe("digits/vit_micro", overrides)


def swept(folder: Path, **changes: Any) -> tuple[dict[str, Any], str]:
    arguments: dict[str, Any] = {"space": GRID, "seeds": 3, "jobs": 1, "reporter": Reporter(quiet=True), **changes}
    return run_sweep(arguments.pop("base", recipe()), folder, **arguments)


def planned(folder: Path, **changes: Any) -> Plan:
    folder.mkdir(parents=True, exist_ok=True)
    return plan_sweep(recipe(), folder, **{"space": GRID, "seeds": 1, **changes})


def trials_of(plan: Plan) -> list[FrozenTrial]:
    with contextlib.closing(SharedStudy.create(plan)) as shared:
        return shared.progress().trials


@pytest.mark.usefixtures("in_this_process")
def test_a_grid_is_tried_once_and_the_best_is_recommended(tmp_path: Path) -> None:
    result, text = swept(tmp_path)
    assert len(logged(tmp_path, "ended")) == 4 * 3 == len({*logged(tmp_path, "ended")})
    assert {path.name for path in tmp_path.glob("*-s1")} >= {"ratio-0.25-weight-0.5-s1", "ratio-0.5-weight-0.5-s1"}
    chosen = result["sweep"]["points"][result["sweep"]["recommended"]]
    assert chosen["settings"] == {"sub.ratio": 0.5, "sub.weight": 0.5}
    assert chosen["top1"]["mean"] == pytest.approx(90.1), "0.1 points a seed"
    assert "Recommended: sub.ratio=0.5, sub.weight=0.5: top-1 90.10 %" in text
    assert json.loads((tmp_path / "sweep.json").read_text()) == json.loads(json.dumps(result))
    for trial in result["study"]["trials"]:
        for run in trial["runs"]:
            summary = RunFolder(run["folder"]).summary()
            assert summary is not None and run["top1"] == summary["final"]["top1"], "each figure has its folder"

    again, _ = swept(tmp_path)
    assert again == result and len(logged(tmp_path, "begun")) == 12, "what is done is not done again"
    other, _ = swept(tmp_path, study="other", space=["sub.ratio=0.5,0.75", "sub.weight=0.25,0.5"])
    assert len(logged(tmp_path, "begun")) == 18 and len(other["study"]["trials"]) == 4, "runs serve other studies too"


@pytest.mark.usefixtures("in_this_process")
def test_keys_of_the_model_can_be_swept(tmp_path: Path) -> None:
    result, _ = swept(tmp_path, space=["model.kwargs.depth=2,3", "optim.name=adamw,sgd"], seeds=1)
    assert [sorted(point["settings"]) for point in result["sweep"]["points"]] == [
        ["model.kwargs.depth", "optim.name"]
    ] * 4
    assert gather([tmp_path]).sweep is not None, "also for the report, which knows the folder alone"


@pytest.mark.usefixtures("in_this_process")
def test_a_seed_that_diverged_is_shown_and_not_tried_again(tmp_path: Path) -> None:
    space = ["optim.lr=1e-3,1.0", "sub.ratio=0.5"]
    for _ in range(2):
        result, text = swept(tmp_path, space=space)
        assert [trial["state"] for trial in result["study"]["trials"]] == ["complete", "fail"]
        assert "optim.lr=1.0, sub.ratio=0.5: failed, diverged: seed 0: the loss is not finite" in text
    assert len(logged(tmp_path, "begun")) == 6
    counted = [len([run for run in point["runs"] if run["status"] == "failed"]) for point in result["sweep"]["points"]]
    assert sorted(counted) == [0, 3]


@pytest.mark.usefixtures("in_this_process")
@pytest.mark.parametrize("more", [{}, {"sampler": "random", "trials": 2}])
def test_what_diverged_is_tried_again_if_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, more: dict[str, Any]
) -> None:
    """After an update that mends it: else only a new study, in a new folder, would train it."""
    asked: dict[str, Any] = {"space": ["optim.lr=1e-3,1.0"], "seeds": 2, **more}
    states = lambda result: sorted(trial["state"] for trial in result["study"]["trials"])  # noqa: E731
    assert states(swept(tmp_path, **asked)[0]) == ["complete", "fail"]
    assert states(swept(tmp_path, **asked, retry_failed=True)[0]) == ["complete", "fail"], "it still diverges"
    begun = logged(tmp_path, "begun")
    assert [begun.count(f"lr-{lr}-s{seed}") for lr in ("0.001", "1.0") for seed in (0, 1)] == [1, 1, 2, 2]
    assert states(swept(tmp_path, **asked)[0]) == ["complete", "fail"] and logged(tmp_path, "begun") == begun
    monkeypatch.setattr(sweep_made_up, "DIVERGES", 10.0)  # mended
    result, text = swept(tmp_path, **asked, retry_failed=True)
    assert states(result) == ["complete", "complete"] and ": failed, diverged" not in text
    assert len(logged(tmp_path, "begun")) == len(begun) + 2, "what was complete is not trained again"
    assert states(swept(tmp_path, **asked, retry_failed=True)[0]) == ["complete", "complete"]
    assert len(logged(tmp_path, "begun")) == len(begun) + 2


@pytest.mark.usefixtures("in_this_process")
@pytest.mark.parametrize("sampler", ["tpe", "random"])
def test_samplers_draw_as_many_as_asked_for(tmp_path: Path, sampler: str) -> None:
    space = ["sub.ratio=0.1:0.9", "optim.lr=log:1e-4:1e-2"]
    result, _ = swept(tmp_path, space=space, seeds=1, sampler=sampler, trials=6)
    trials = result["study"]["trials"]
    assert len(trials) == 6 == len({json.dumps(trial["settings"]) for trial in trials})
    for trial in trials:
        assert 0.1 <= trial["settings"]["sub.ratio"] <= 0.9 and 1e-4 <= trial["settings"]["optim.lr"] <= 1e-2
    more, _ = swept(tmp_path, space=space, seeds=1, sampler=sampler, trials=8)
    assert more["study"]["trials"][:6] == trials and len(more["study"]["trials"]) == 8, "more can be asked for later"


@pytest.mark.usefixtures("in_this_process")
def test_a_sampler_on_few_settings_tries_each_once(tmp_path: Path) -> None:
    result, _ = swept(tmp_path, seeds=1, sampler="random", trials=50)
    assert len(result["study"]["trials"]) == 4 and len(logged(tmp_path, "begun")) == 4


@pytest.mark.parametrize("pruner", ["median", "hyperband"])
@pytest.mark.usefixtures("in_this_process")
def test_pruned_runs_are_named_and_incomplete(tmp_path: Path, pruner: str) -> None:
    space = ["sub.ratio=0.5,0.4,0.6,0.3,0.05,0.95", "train.epochs=4", "train.eval_every=1"]
    result, text = swept(tmp_path, space=space, seeds=2, pruner=pruner, base=recipe("train.epochs=4"))
    pruned = [trial for trial in result["study"]["trials"] if trial["state"] == "pruned"]
    assert pruned and all(trial["settings"]["sub.ratio"] != 0.5 for trial in pruned)
    for trial in pruned:
        folders = [*tmp_path.glob(f"ratio-{trial['settings']['sub.ratio']}-*/pruned.json")]
        assert len(folders) == 1 and {*json.loads(folders[0].read_text())} == {"update", "reason"}
        assert RunFolder(folders[0].parent).summary() is None
    assert text.count("cut off by the") == len(pruned)

    free, _ = swept(tmp_path, space=space, seeds=2, study="all", base=recipe("train.epochs=4"))
    assert [trial["state"] for trial in free["study"]["trials"]] == 6 * ["complete"]
    assert not [*tmp_path.glob("*/pruned.json")], "a run that goes on is not pruned any more"
    assert len(logged(tmp_path, "ended")) == 12


def test_the_pruner_sees_the_mean_of_the_seeds_also_after_an_interruption(tmp_path: Path) -> None:
    plan = planned(tmp_path, seeds=2, pruner="median", space=["sub.ratio=0.5"])
    (trial,) = trials_of(plan)
    cells = plan.cells({"sub.ratio": 0.5})
    made_up_run(cells[0].recipe, cells[0].folder)  # was complete before
    work(plan)
    (trial,) = trials_of(plan)
    top1 = made_up_top1(cells[0].recipe)
    expected = [top1 - 15, top1 - 10, top1 - 5, top1]
    assert [*trial.intermediate_values] == [*range(1, 9)]
    assert [*trial.intermediate_values.values()] == pytest.approx(expected + [each + 0.05 for each in expected])


@pytest.mark.parametrize("also_lost", ["nothing", "the retry"])
def test_a_setting_that_was_dropped_is_taken_over(tmp_path: Path, also_lost: str) -> None:
    """Also where the worker that should have passed it on died in the middle of that."""
    plan = planned(tmp_path)
    with contextlib.closing(SharedStudy.create(plan)) as shared:
        lost = shared.claim()
        assert isinstance(lost, Claim)
        shared.storage.set_trial_state_values(lost.trial_id, TrialState.FAIL)
        if also_lost == "the retry":
            retry = [shared.claim() for _ in range(4)][-1]  # three others, and what was dropped
            assert isinstance(retry, Claim) and retry.settings == lost.settings
            assert shared.claim() == "wait", "others have them, and are alive"
            shared.storage.set_trial_state_values(retry.trial_id, TrialState.FAIL)
            again = shared.claim()
            assert isinstance(again, Claim) and again.settings == lost.settings and again.trial_id != retry.trial_id
            assert not shared.finish(retry, TrialState.COMPLETE, 50.0), "it is another's now"
            assert shared.finish(again, TrialState.COMPLETE, 60.0)
            return
    work(plan)
    assert [trial.state for trial in trials_of(plan)] == 4 * [TrialState.COMPLETE]
    assert len(logged(tmp_path, "ended")) == 4


def test_an_interrupted_setting_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*arguments: Any, **options: Any) -> Any:
        raise InterruptedRun(signal.SIGTERM, "stopped")

    plan = planned(tmp_path)
    trials_of(plan)
    with monkeypatch.context() as patch, pytest.raises(InterruptedRun):
        patch.setattr(sweep_worker, "run_cell", interrupted)
        work(plan)
    work(plan)
    assert [trial.state for trial in trials_of(plan)] == 4 * [TrialState.COMPLETE]


@pytest.mark.usefixtures("in_this_process")
def test_what_could_not_be_trained_is_told_and_tried_again_by_the_next_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def full_disk(cell_recipe: Recipe, folder: Path, **options: Any) -> Any:
        calls.append(folder.name)
        if cell_recipe.sub.ratio == 0.5:
            raise OSError(28, "No space left on device")
        return made_up_run(cell_recipe, folder, **options)

    with (
        monkeypatch.context() as patch,
        pytest.raises(StoppedError, match="2 of 4 settings could not be tried") as told,
    ):
        patch.setattr(sweep_worker, "run_cell", full_disk)
        swept(tmp_path, seeds=1)
    assert "No space left on device" in str(told.value)
    assert len(calls) == 4, "not again and again"
    result, _ = swept(tmp_path, seeds=1)
    assert [trial["state"] for trial in result["study"]["trials"]] == 4 * ["complete"]


@pytest.mark.usefixtures("in_this_process")
def test_another_recipe_or_space_is_refused_with_the_keys(tmp_path: Path) -> None:
    swept(tmp_path, seeds=1)
    before = sorted(path.name for path in tmp_path.iterdir())
    with pytest.raises(InputError, match=r"space\.sub\.ratio: \[0\.25, 0\.5\] -> \[0\.25, 0\.75\]"):
        swept(tmp_path, seeds=1, space=["sub.ratio=0.25,0.75", "sub.weight=0.25,0.5"])
    with pytest.raises(InputError, match=r"optim\.lr: 0\.003 -> 0\.001"):
        swept(tmp_path, seeds=1, base=recipe("optim.lr=1e-3"))
    with pytest.raises(InputError, match=r"sampler: 'grid' -> 'tpe'"):
        swept(tmp_path, seeds=1, sampler="tpe")
    assert sorted(path.name for path in tmp_path.iterdir()) == before
    elsewhere = plan_sweep(recipe("train.device=cpu", "data.workers=0"), tmp_path / "new", space=GRID, seeds=1)
    assert elsewhere.facts() == planned(tmp_path).facts(), "on what it runs does not matter"


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"space": ["sub.ratio=0.5,1.5"]}, "sub.ratio=1.5"),
        ({"sampler": "best"}, "--sampler best: must be grid, tpe or random"),
        ({"pruner": "all"}, "--pruner all"),
        ({"trials": 5}, "a grid tries all its settings"),
        ({"storage": "mysql://me:secret@host/db"}, "begins with mysql"),
        ({"storage": "postgresql://me:secret@host"}, "names no database"),
        ({"storage": "me:secret"}, "no such URL"),
        ({"statistics": "guess"}, "must be t or bootstrap"),
    ],
)
def test_bad_input_writes_nothing(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said) as caught:
        swept(tmp_path / "runs", **changes)
    assert "secret" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_runs_of_another_recipe_in_the_folder_are_named(tmp_path: Path) -> None:
    made_up_run(recipe("optim.lr=1e-4"), tmp_path / "ratio-0.25-weight-0.25-s0")
    with pytest.raises(InputError, match=r"optim\.lr: 0\.0001 -> 0\.003"):
        planned(tmp_path)


def test_results_of_other_machines_are_told_from_the_study(tmp_path: Path) -> None:
    plan = planned(tmp_path / "there", seeds=3)
    trials_of(plan)
    work(plan)
    here = tmp_path / "here"
    here.mkdir()
    # as a machine sees it that trained nothing
    found = sweep_result(replace(plan, folder=here), trials_of(plan), statistics="t")
    points = found[0]["sweep"]["points"]
    assert points[found[0]["sweep"]["recommended"]]["settings"] == {"sub.ratio": 0.5, "sub.weight": 0.5}
    assert all(run["path"].startswith(f"{platform.node()}:{tmp_path}") for point in points for run in point["runs"])
    assert "These figures are the study's" in found[1] and "12 of 12 run folders are not in" in found[1]


def test_a_password_is_in_no_message_and_no_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url = storage_url("postgresql://me:s%40cret@host:5433/db?sslmode=require", tmp_path)
    assert url.startswith("postgresql+psycopg://me:s%40cret@host:5433/db")
    assert place_of(url) == "the database db at host, port 5433"
    assert hide_password("--storage=postgresql://me:s@cret@host/db") == "--storage=postgresql://me:***@host/db"
    assert hide_password("postgresql:///db?user=me&password=secret&x=1") == "postgresql:///db?user=me&password=***&x=1"
    assert hide_password("https://example.org/a:b@c") == "https://example.org/a:b@c"
    plan = planned(tmp_path, space=["sub.ratio=0.5"])
    trials_of(plan)
    monkeypatch.setattr(sys, "argv", ["masksub", "sweep", "--storage", "postgresql://me:secret@host/db"])
    work(plan)
    assert sys.argv[-1] == "postgresql://me:***@host/db", "what each run notes as its command"


def test_a_dead_worker_of_this_machine_is_known_at_once() -> None:
    me = this_worker()
    assert not is_here_and_dead(me)
    assert is_here_and_dead({**me, "began": me["began"] - 100}), "the number is another process's now"
    assert not is_here_and_dead({**me, "where": "another machine", "pid": 2**22 + 1})
    assert is_here_and_dead({**me, "pid": 2**22 + 1})


def test_with_real_training_and_processes(tmp_path: Path, spawned: None) -> None:
    """Two settings, in a process of their own that nothing here can reach."""
    small = load_recipe("digits/vit_micro", [*SMALL, "train.epochs=1"])
    result, text = swept(tmp_path, base=small, space=["sub.ratio=0.25,0.75"], seeds=1)
    assert [trial["state"] for trial in result["study"]["trials"]] == ["complete", "complete"]
    assert RunFolder(tmp_path / "ratio-0.75-s0").summary() and "Fewer than three seeds" in text
    assert not (tmp_path / "begun.log").exists(), "nothing was made up"
