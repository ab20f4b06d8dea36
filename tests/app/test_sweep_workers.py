"""Workers that share a study, and die. If these fail, a sweep on many machines loses settings or tries them twice."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from optuna.trial import FrozenTrial

from masksub.app.errors import InputError
from masksub.app.progress import Reporter
from masksub.app.recipe import load_recipe
from masksub.app.runs import RunFolder
from masksub.app.sweep.plan import Plan
from masksub.app.sweep.run import plan_sweep, run_sweep
from masksub.app.sweep.study import SharedStudy
from tests import forked
from tests.app import postgres
from tests.app.sweep_made_up import logged, worker

SPACE = ["sub.ratio=0.25,0.5,0.75", "sub.weight=0.25,0.5"]


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with postgres.server() as url:
        yield url


@pytest.fixture(params=["embedded", "postgresql"])
def storage(request: pytest.FixtureRequest) -> str | None:
    return request.getfixturevalue("server") if request.param == "postgresql" else None


def plan_in(folder: Path, storage: str | None, **changes: object) -> Plan:
    plan = plan_sweep(load_recipe("digits/vit_micro"), folder, space=SPACE, seeds=2, storage=storage)
    folder.mkdir(parents=True, exist_ok=True)
    return replace(plan, beat=1, grace=3, **changes)  # type: ignore[arg-type]


def start(plan: Plan, **environment: str) -> Any:
    """A process of its own, forked from one that has imported everything once."""
    process = forked.context().Process(target=worker, args=(plan, environment), daemon=True)
    process.start()
    return process


def ended_well(process: Any) -> None:
    process.join(timeout=60)
    process.kill()  # else a worker that does not end would keep the tests from ending
    assert process.exitcode == 0


def wait_for(path: Path) -> None:
    until = time.monotonic() + 40
    while not path.exists():
        assert time.monotonic() < until, f"{path} did not come"
        time.sleep(0.05)


def trials_of(plan: Plan) -> list[FrozenTrial]:
    """Make the study or join it; its trials."""
    with contextlib.closing(SharedStudy.create(plan)) as shared:
        return shared.progress().trials


def names(plan: Plan) -> list[str]:
    return sorted(cell.folder.name for drawn in plan.space.grid() for cell in plan.cells(plan.space.settings(drawn)))


@pytest.mark.parametrize("elsewhere", [False, True])
def test_a_killed_workers_setting_is_taken_over(tmp_path: Path, storage: str | None, elsewhere: bool) -> None:
    folder = tmp_path / f"killed-{elsewhere}"
    plan = plan_in(folder, storage, study=f"killed-{elsewhere}")
    trials_of(plan)
    marks = {"MADE_UP_OTHER_MACHINE": "yes"} if elsewhere else {}
    dies = start(plan, MADE_UP_HANG="yes", **marks)
    wait_for(folder / "hangs")
    lives = start(plan, MADE_UP_SECONDS="0.05", **marks)
    wait_for(folder / "ended.log")
    os.kill(dies.pid, signal.SIGKILL)
    dies.join(timeout=20)
    assert dies.exitcode == -signal.SIGKILL
    ended_well(lives)

    assert logged(folder, "ended") == names(plan), "every run of the grid is complete, and exactly once"
    twice = [name for name, count in Counter(logged(folder, "begun")).items() if count > 1]
    assert twice == [(folder / "hangs").read_text()], "nothing but the killed run was begun twice"
    trials = trials_of(plan)
    assert [trial.state.name for trial in trials] == 6 * ["COMPLETE"]
    settings = [tuple(trial.user_attrs["settings"].values()) for trial in trials]
    assert sorted(settings) == [(r, w) for r in (0.25, 0.5, 0.75) for w in (0.25, 0.5)]


def test_workers_that_start_at_the_same_moment_make_one_grid(tmp_path: Path, storage: str | None) -> None:
    folder = tmp_path / "together"
    plan = plan_in(folder, storage)
    trials_of(plan)
    workers = [start(plan, MADE_UP_SECONDS="0.2") for _ in range(3)]
    for each in workers:
        ended_well(each)
    assert logged(folder, "begun") == logged(folder, "ended") == names(plan)
    done = {trial.user_attrs["worker"]["pid"] for trial in trials_of(plan)}
    assert len(done) > 1, "they shared the work"


def test_machines_without_common_files_share_a_study(tmp_path: Path, server: str) -> None:
    """The runs lie on two machines; the study tells all of them."""
    plans = [plan_in(tmp_path / machine, server, study="apart") for machine in ("one", "two")]
    for plan in plans:
        trials_of(plan)
    for each in [start(plan, MADE_UP_SECONDS="0.2") for plan in plans]:
        ended_well(each)
    runs = [logged(plan.folder, "ended") for plan in plans]
    assert sorted(runs[0] + runs[1]) == names(plans[0]), "nothing was made on both"
    told = [run for trial in trials_of(plans[0]) for run in trial.user_attrs["runs"]]
    assert len(told) == 12
    for run in told:
        summary = RunFolder(run["folder"]).summary()
        assert summary is not None
        assert (run["top1"], run["flops"], run["seconds"]) == (summary["final"]["top1"], summary["flops"], 1.0)
        assert run["host"]


def test_the_password_is_nowhere(tmp_path: Path, server: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(InputError, match="begun with other settings") as caught:
        for seeds in (2, 3):
            plan = plan_sweep(load_recipe("digits/vit_micro"), tmp_path, space=SPACE, seeds=seeds, storage=server)
            trials_of(plan)
    assert "seeds: 2 -> 3" in str(caught.value)
    wrong = server.replace(postgres.QUOTED, "nonsense")
    with pytest.raises(InputError, match="password authentication failed") as refused:
        run_sweep(
            load_recipe("digits/vit_micro"),
            tmp_path / "new",
            space=SPACE,
            seeds=1,
            storage=wrong,
            reporter=Reporter(quiet=True),
        )
    for text in (str(caught.value), str(refused.value), *capsys.readouterr()):
        assert postgres.PASSWORD not in text and postgres.QUOTED not in text and "nonsense" not in text
    assert not (tmp_path / "new").exists()


def test_an_unreachable_database_is_told_before_anything_is_written(tmp_path: Path) -> None:
    port = postgres.free_port()
    with pytest.raises(InputError, match=f"can't reach the database sweeps at 127.0.0.1, port {port}: .*refused"):
        run_sweep(
            load_recipe("digits/vit_micro"),
            tmp_path / "runs",
            space=SPACE,
            seeds=1,
            storage=f"postgresql://someone:secret@127.0.0.1:{port}/sweeps",
            reporter=Reporter(quiet=True),
        )
    assert list(tmp_path.iterdir()) == []
