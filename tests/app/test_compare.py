"""Comparisons on the embedded digits. If these fail, arms are not comparable, or runs are lost, doubled or wrong."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from masksub.app.cores import available_cores, threads_for
from masksub.app.devices import create_accelerator
from masksub.app.errors import InputError, RunBusy, StoppedError
from masksub.app.experiment import cells, estimate
from masksub.app.experiment.arms import ARMS, Costs, arm_recipe, chosen_arms
from masksub.app.experiment.cells import Cell, run_cell, work_on
from masksub.app.experiment.compare import plan_comparison, run_comparison
from masksub.app.experiment.workers import run_in_processes
from masksub.app.interrupt import InterruptedRun, StopRequest
from masksub.app.progress import Reporter
from masksub.app.recipe import load_recipe
from masksub.app.runs import RunFolder, write_text_atomically
from masksub.app.settings import Recipe
from masksub.app.train import Trainer, train
from tests import forked
from tests.app.faults_made_up import wait_for
from tests.app.test_data_sources import write_images

SMALL = (
    "data.train_images=128", "data.val_images=60", "train.epochs=2", "train.batch_size=16", "train.log_every=3",
    "model.kwargs.embed_dim=24", "model.kwargs.depth=2", "model.kwargs.num_heads=2", "optim.warmup_epochs=0.5",
    "train.tensorboard=false", "train.device=cpu",
)  # fmt: skip


def small(*overrides: str) -> Recipe:
    return load_recipe("digits/vit_micro", (*SMALL, *overrides))


def quiet() -> Reporter:
    return Reporter(quiet=True)


def comparison(folder: Path, *overrides: str, **options: Any) -> tuple[dict[str, Any], str]:
    settings = {
        "arms": "plain,masksub",
        "seeds": 1,
        "jobs": 1,
        "statistics": "t",
        "dry_run": False,
        "mixed_versions": False,
    }
    settings |= {"retry_failed": False, "reporter": quiet(), **options}
    return run_comparison(small(*overrides), folder, **settings)


def plan(folder: Path, *arms: str, seeds: int = 1, overrides: tuple[str, ...] = ()) -> list[Cell]:
    return plan_comparison(small(*overrides), folder, arms=chosen_arms([*arms]), seeds=seeds, jobs=1)


def files(folder: Path) -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


def test_arms_share_weights_images_and_order(tmp_path: Path) -> None:
    """The first update of every arm starts from the same weights and sees the same batch."""
    seen: dict[str, Any] = {}
    for cell in plan(tmp_path, *ARMS):
        trainer = Trainer(cell.recipe, cell.run, create_accelerator(cell.recipe), quiet(), StopRequest())
        weights = torch.cat([p.detach().flatten() for p in trainer.setup.plain_model.parameters()])
        x, y = next(trainer.setup.stream(0))
        if not seen:
            seen = {"weights": weights, "x": x, "y": y}
        assert torch.equal(weights, seen["weights"]) and torch.equal(x, seen["x"]) and torch.equal(y, seen["y"])


def test_the_stretched_arm_costs_what_masksub_costs(tmp_path: Path) -> None:
    base = small("train.epochs=40")
    costs = Costs(base)
    flops = {
        key: costs.per_image(ARMS[key].method) * arm_recipe(base, ARMS[key], 0, costs).train.epochs
        for key in ("plain", "plain-equal", "masksub")
    }
    assert flops["plain-equal"] == pytest.approx(flops["masksub"], rel=1e-6)
    assert 1.3 < flops["masksub"] / flops["plain"] < 1.6
    ramp = small("sub.ratio={kind: linear, start: 0.0, end: 0.9}")
    assert Costs(ramp).ratio("masksub") == pytest.approx(1.55, abs=0.08), "the mean over the schedule, not its start"


def test_a_comparison_is_made_once(tmp_path: Path) -> None:
    result, text = comparison(tmp_path / "c", arms="plain,plain-equal,masksub,direct-mask")
    assert [arm["key"] for arm in result["arms"]] == ["plain", "plain-equal", "masksub", "direct-mask"]
    assert "MaskSub" in text and "no claim" in text.lower()
    for arm in result["arms"]:
        for run in arm["runs"]:
            summary = RunFolder(run["path"]).summary()
            assert summary is not None and summary["final"]["top1"] == run["top1"]
    assert json.loads((tmp_path / "c" / "comparison.json").read_text())["arms"]
    before = {
        path: when for path, when in files(tmp_path / "c").items() if not path.endswith(("comparison.json", ".lock"))
    }
    comparison(tmp_path / "c", arms="plain,plain-equal,masksub,direct-mask")
    after = files(tmp_path / "c")
    assert all(after[path] == when for path, when in before.items()), "a finished run was touched"


def test_an_interrupted_run_is_gone_on_with(tmp_path: Path) -> None:
    """Stopped by a real signal in the middle, then started again: the weights are those of the unbroken run."""
    cell = plan(tmp_path / "c", "masksub", overrides=("train.checkpoint_every=2",))[0]
    train(cell.recipe, tmp_path / "unbroken", reporter=quiet())

    def interrupt(record: dict[str, Any]) -> None:
        os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(InterruptedRun):
        run_cell(cell.recipe, cell.folder, reporter=quiet(), on_eval=interrupt)
    assert cell.state == "begun"
    # Here and not in a worker, which may have another number of threads, and so another order of sums.
    assert run_cell(cell.recipe, cell.folder, reporter=quiet()) == "complete"
    name = "checkpoints/update-*/model.safetensors"
    one, two = (load_file(sorted(path.glob(name))[-1]) for path in (cell.folder, tmp_path / "unbroken"))
    assert all(torch.equal(one[key], two[key]) for key in two)


SHARED_PLAN = ("plain", "masksub", "direct-mask")


def work_and_tell(folder: Path, log: Path, name: str) -> None:
    """What one of several commands does, noting in a log each run that it begins."""
    real = cells.train

    def told(recipe: Recipe, path: Path, **rest: Any) -> dict[str, Any]:
        with log.open("a") as file:
            file.write(f"{name} {Path(path).name}\n")
        return real(recipe, path, **rest)

    torch.set_num_threads(1)
    setattr(cells, "train", told)  # noqa: B010
    setattr(cells, "WAIT", 0.2)  # noqa: B010
    work_on(plan(folder, *SHARED_PLAN, seeds=2, overrides=("train.epochs=6",)))


def hold(run: Path, held: Path) -> None:
    with RunFolder(run).lock():
        held.touch()
        time.sleep(600)


@contextmanager
def process(function: Callable[..., None], *arguments: Any) -> Iterator[Any]:
    """A process of its own, which does not outlive the test."""
    started = forked.context().Process(target=function, args=arguments)
    started.start()
    try:
        yield started
    finally:
        started.kill()
        started.join()


def test_two_commands_share_the_work_and_one_that_is_killed_is_replaced(tmp_path: Path) -> None:
    """Two processes on one folder, one really killed: every run is made, and none by both but the one left behind."""
    folder, log = tmp_path / "c", tmp_path / "log"
    with process(work_and_tell, folder, log, "one") as one, process(work_and_tell, folder, log, "two") as two:
        deadline = time.monotonic() + 120
        while not (log.exists() and {"one", "two"} <= {line.split()[0] for line in log.read_text().splitlines()}):
            assert time.monotonic() < deadline and one.is_alive() and two.is_alive()
            time.sleep(0.05)
        taken = [line.split()[1] for line in log.read_text().splitlines() if line.startswith("one")][-1]
        one.kill()
        one.join()
        was_complete = RunFolder(folder / taken).summary() is not None
        two.join(240)
        assert two.exitcode == 0
    begun = [line.split() for line in log.read_text().splitlines()]
    for cell in plan(folder, *SHARED_PLAN, seeds=2, overrides=("train.epochs=6",)):
        times = sum(name == cell.folder.name for _, name in begun)
        assert cell.state == "complete"
        assert times == (2 if cell.folder.name == taken and not was_complete else 1)
        updates = [record["update"] for record in cell.run.metrics() if record["kind"] == "train"]
        assert updates == sorted(set(updates)), "a run that was taken over has gaps or doubles"


def test_a_run_is_trained_by_one_process_at_a_time(tmp_path: Path) -> None:
    with process(hold, tmp_path / "run", tmp_path / "held"):
        wait_for(tmp_path / "held")
        with pytest.raises(RunBusy, match="another process"):
            train(small(), tmp_path / "run", reporter=quiet())
        assert run_cell(small(), tmp_path / "run", reporter=quiet()) == "busy"
    assert run_cell(small(), tmp_path / "run", reporter=quiet()) == "complete", "the lock outlived its holder"


def test_a_seed_that_diverges_is_counted_and_not_tried_again(tmp_path: Path) -> None:
    wild = ("optim.lr=1e30", "optim.warmup_epochs=0", "optim.name=sgd")
    result, text = comparison(tmp_path / "c", *wild, arms="plain")
    assert [run["status"] for run in result["arms"][0]["runs"]] == ["failed"]
    assert "failed" in text
    failure = RunFolder(tmp_path / "c" / "plain-s0").failure()
    assert failure is not None and "not finite" in failure["reason"]
    before = files(tmp_path / "c" / "plain-s0")
    comparison(tmp_path / "c", *wild, arms="plain")
    assert files(tmp_path / "c" / "plain-s0") == before
    comparison(tmp_path / "c", *wild, arms="plain", retry_failed=True)
    assert files(tmp_path / "c" / "plain-s0") != before


def test_wrong_input_is_told_before_anything_is_written(tmp_path: Path) -> None:
    for options, said in (
        ({"arms": "plain,maskub"}, "'maskub'"),
        ({"arms": ""}, "''"),
        ({"statistics": "wald"}, "t or bootstrap"),
    ):
        with pytest.raises(InputError, match=said):
            comparison(tmp_path / "c", **options)
    assert not (tmp_path / "c").exists()
    comparison(tmp_path / "c", arms="plain")
    with pytest.raises(
        InputError, match=r"optim.lr: 0.003 -> 0.1\nGive .* with --out FOLDER, or take the changes back"
    ):
        comparison(tmp_path / "c", "optim.lr=0.1")
    with pytest.raises(InputError, match=r"train.eval_batch_size.*\n.*with --out FOLDER") as told:
        comparison(tmp_path / "c", "train.eval_batch_size=7")
    assert "--approximate" not in str(told.value), "this command has no such option"
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="is a file"):
        comparison(tmp_path / "file")
    (tmp_path / "c" / "masksub-s0").mkdir()
    (tmp_path / "c" / "masksub-s0" / "thesis.tex").write_text("years of work")
    with pytest.raises(InputError, match="is in the way"):
        comparison(tmp_path / "c")


def test_a_plan_measures_and_writes_nothing(tmp_path: Path) -> None:
    result, text = comparison(tmp_path / "c", arms="plain,plain-equal,masksub", seeds=3, dry_run=True)
    assert not (tmp_path / "c").exists() and not Path("nowhere").exists()
    plain, equal, sub = result["arms"]
    assert (plain["name"], plain["runs"], plain["left"], plain["updates"]) == ("plain", 3, 3, 16)
    assert equal["flops"] == pytest.approx(sub["flops"], rel=0.05) and sub["flops"] > 1.3 * plain["flops"]
    assert all(arm["seconds"] > 0 for arm in result["arms"])
    assert "9 runs left" in text
    comparison(tmp_path / "c", arms="plain")
    assert comparison(tmp_path / "c", arms="plain", dry_run=True)[0]["arms"][0]["left"] == 0


def test_a_plan_needs_no_more_validation_images_than_there_are(tmp_path: Path) -> None:
    """Few are held out of a small folder, fewer than a batch. If it fails, a plan refuses a recipe that trains."""
    images = write_images(tmp_path / "images", {"a": 20, "b": 20})
    changes = ("data.name=folder", f"data.train={images}", "data.val_share=0.2", "data.train_images=null")
    result, _ = comparison(tmp_path / "c", *changes, "data.val_images=null", arms="plain", dry_run=True)
    assert result["arms"][0]["updates"] == 4  # 2 epochs of 32 images in batches of 16


def test_what_can_not_be_made_is_told_and_the_rest_is(tmp_path: Path) -> None:
    """A run whose checkpoints are all damaged stops that run alone, with its reason."""
    cells = plan(tmp_path / "c", "plain", "masksub")
    bad = next(cell for cell in cells if cell.recipe.method == "masksub")
    train(bad.recipe, bad.folder, reporter=quiet())
    (bad.folder / "summary.json").unlink()
    for weights in bad.folder.glob("checkpoints/*/model.safetensors"):
        weights.write_bytes(b"damaged")
    errors = work_on(cells)
    assert list(errors) == [str(bad.folder)] and "no checkpoint" in errors[str(bad.folder)]
    assert {cell.recipe.method: cell.state for cell in cells} == {"plain": "complete", "masksub": "begun"}
    with pytest.raises(StoppedError, match=r"1 of 2 runs could not be made"):
        comparison(tmp_path / "c")


def test_arms_of_another_recipe_in_the_same_folder_are_refused(tmp_path: Path) -> None:
    """Trained one arm at a time, with the recipe changed in between, they would be told as one comparison."""
    comparison(tmp_path / "c", arms="plain")
    with pytest.raises(InputError, match=r"optim.lr: 0.003 -> 0.01"):
        comparison(tmp_path / "c", "optim.lr=0.01", arms="masksub")
    with pytest.raises(InputError, match=r"optim.lr"):
        comparison(tmp_path / "c", "optim.lr=0.01", "seed=5", arms="plain")


def test_what_can_not_be_trained_is_told_before_anything_is(tmp_path: Path) -> None:
    """Not after the arms that can be trained, hours later."""
    for wrong, said in (
        ("optim.warmup_epochs=2", "warm-up"),
        ("model.kwargs.num_heads=5", "num_heads"),
        ("sub.ratio=0.0", "nothing would be masked"),
        ("seed=2147483646", "seeds must stay below"),
    ):
        with pytest.raises(InputError, match=said):
            comparison(tmp_path / "c", wrong, seeds=3)
    assert not (tmp_path / "c").exists()
    with pytest.raises(InputError, match="can't make a folder"):
        comparison(Path("/proc/nowhere/c"))


def test_whether_images_are_held_is_decided_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Held images and streamed ones are augmented by other random numbers: arms would not be paired."""
    assert {cell.recipe.data.cache for cell in plan(tmp_path / "c", *ARMS)} == {"memory"}
    run_cell(small("data.cache=none", "method=plain"), tmp_path / "d" / "plain-s0", reporter=quiet())
    assert {cell.recipe.data.cache for cell in plan(tmp_path / "d", "plain", "masksub")} == {"none"}


def test_commands_that_end_together_do_not_spoil_the_result(tmp_path: Path) -> None:
    """Both write comparison.json at the same moment."""
    target = tmp_path / "comparison.json"
    texts = [json.dumps([number] * 20000) for number in range(2)]
    with ThreadPoolExecutor(2) as pool:
        for done in [pool.submit(write_text_atomically, target, text) for _ in range(40) for text in texts]:
            done.result()
    assert target.read_text() in texts and [path.name for path in tmp_path.iterdir()] == ["comparison.json"]


def killed_until(marker: str) -> str:
    """Ends as the kernel ends a process that takes too much memory, the first time."""
    if not Path(marker).exists():
        Path(marker).touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return "done"


def threads() -> int:
    return torch.get_num_threads()


@pytest.mark.parametrize(("wanted", "expected"), [("3", 3), ("5,1", 5), ("0", 1), ("many", 1), (None, 1)])
def test_threads_are_those_that_the_user_set(
    wanted: str | None, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a machine that is shared is taken whole, and a plan measures with other threads than the runs have."""
    monkeypatch.delenv("OMP_NUM_THREADS") if wanted is None else monkeypatch.setenv("OMP_NUM_THREADS", wanted)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0, 1})
    assert threads_for(2) == expected


def test_workers_and_plans_take_the_threads_that_the_user_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = available_cores() + 1
    monkeypatch.setenv("OMP_NUM_THREADS", str(wanted))
    assert run_in_processes(threads, [()], jobs=1, reporter=quiet(), poll=lambda: (0, 1, "")) == [wanted]
    seen: list[int] = []
    monkeypatch.setattr(estimate, "_estimate", lambda name, runs: seen.append(torch.get_num_threads()))
    estimate.estimate_cells(plan(tmp_path / "c", "plain"), jobs=1)
    assert seen == [wanted]


def killed(marker: str) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_killed_worker_is_replaced_and_not_for_ever(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    def call(function: Any) -> list[Any]:
        arguments = [(str(tmp_path / "marker"),)]
        return run_in_processes(function, arguments, jobs=1, reporter=quiet(), poll=lambda: (0, 1, ""))

    assert call(killed_until) == ["done"]
    assert "another takes its place" in capfd.readouterr().err
    assert call(killed) == [None]
    assert "for the third time" in capfd.readouterr().err
