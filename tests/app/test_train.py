"""The training app on the embedded digits. If these fail, runs are wrong, lost, or not what the recipe says."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

import masksub.core.loss
from masksub.app import checkpoint
from masksub.app.data import TrainBatches, open_source
from masksub.app.errors import InputError, StoppedError
from masksub.app.interrupt import InterruptedRun
from masksub.app.models import create_model, create_optimizer, create_schedule
from masksub.app.predict import evaluate_run
from masksub.app.progress import Reporter
from masksub.app.recipe import load_recipe
from masksub.app.run_check import check_new_run
from masksub.app.runs import RunFolder
from masksub.app.settings import Recipe
from masksub.app.train import train
from masksub.core.methods import METHODS
from masksub.core.seeds import mix
from tests.conftest import shared

SMALL = (
    "data.train_images=128", "data.val_images=60", "train.epochs=3", "train.batch_size=16", "train.log_every=3",
    "model.kwargs.embed_dim=24", "model.kwargs.depth=2", "model.kwargs.num_heads=2", "optim.warmup_epochs=0.5",
    "train.tensorboard=false", "train.device=cpu",
)  # fmt: skip
UPDATES = 24


def small(*overrides: str) -> Recipe:
    return load_recipe("digits/vit_micro", (*SMALL, *overrides))


def quiet() -> Reporter:
    return Reporter(quiet=True)


class StopAt(Reporter):
    """Asks the process to stop, as a scheduler would, when an update is reached."""

    def __init__(self, update: int, task: str = "") -> None:
        super().__init__(quiet=True)
        self.at, self.task = update, task

    def step(self, task: str, done: int, total: int, note: str = "") -> None:
        if done == self.at and (task == self.task if self.task else task not in ("reading images", "evaluating")):
            os.kill(os.getpid(), signal.SIGTERM)
            self.at = -1


def comparable(run: Path) -> list[dict[str, Any]]:
    """The metrics without the clock."""
    return [{k: v for k, v in r.items() if k != "seconds"} for r in RunFolder(run).metrics()]


def final_files(run: Path) -> dict[str, Any]:
    found = checkpoint.latest(run / "checkpoints", pytest.fail)
    assert found is not None and found.update == UPDATES
    return {
        "model": load_file(found.path / "model.safetensors"),
        "ema": load_file(found.path / "ema.safetensors") if (found.path / "ema.safetensors").exists() else {},
        "optimizer": found.training_state()["optimizer"]["state"],
    }


def assert_bit_equal(one: Any, two: Any) -> None:
    if isinstance(one, dict):
        assert one.keys() == two.keys()
        for key in one:
            assert_bit_equal(one[key], two[key])
    elif isinstance(one, torch.Tensor):
        assert torch.equal(one, two)
    else:
        assert one == two


def test_a_run_is_a_folder(tmp_path: Path) -> None:
    run = tmp_path / "run"
    summary = train(small("train.tensorboard=true"), run, reporter=quiet())
    assert {path.name for path in run.iterdir()} >= {
        "recipe.yaml", "environment.json", "metrics.jsonl", "summary.json", "checkpoints", "classes.json",
    }  # fmt: skip
    assert list(run.glob("events.*"))
    recorded = load_recipe(run / "recipe.yaml")
    assert (recorded.data.cache, recorded.model.attention) == ("memory", "fused"), "choices are recorded"
    assert recorded == small("train.tensorboard=true", "data.cache=memory", "model.attention=fused")
    environment = json.loads((run / "environment.json").read_text())
    assert environment["seed"] == 0 and torch.__version__.startswith(environment["versions"]["torch"])
    records = comparable(run)
    trained = [r for r in records if r["kind"] == "train"]
    assert [r["update"] for r in trained] == list(range(3, UPDATES + 1, 3))
    assert all(r["mask_ratio"] == 0.5 and r["loss_sub"] > 0 and r["gradient_norm"] > 0 for r in trained)
    assert [r["update"] for r in records if r["kind"] == "eval"] == [8, 16, 24]
    assert trained[-1]["images"] == summary["images"] == UPDATES * 16
    assert summary["final"]["top1"] == records[-1]["top1"] and summary["final"]["images"] == 60
    assert json.loads((run / "summary.json").read_text()) == summary


RESUMED = {
    "masksub": (),
    "plain": ("method=plain",),
    "dropsub": ("method=dropsub", "sub.p=0.3"),
    "pathsub": ("method=pathsub", "sub.p=0.3"),
    "cosub": ("method=cosub", "sub.p=0.3", "sub.efficient=false"),
    "everything random": (
        "augment.mixup=0.8", "augment.cutmix=1.0", "train.ema_decay=0.9", "optim.clip_norm=1.0",
        "model.kwargs.drop_path_rate=0.2", "model.kwargs.proj_drop_rate=0.1", "sub.mode=joint",
        "sub.ratio={kind: linear, start: 0.25, end: 0.75}", "loss.name=bce",
    ),
    "accumulation, images not held": ("train.batch_size=8", "train.accumulate=2", "data.cache=none", "data.workers=0"),
}  # fmt: skip


@pytest.mark.parametrize("name", RESUMED)
def test_a_run_that_is_stopped_twice_ends_bit_equal(name: str, tmp_path: Path) -> None:
    """In the middle of an epoch and of a window of metrics."""
    recipe = small(*RESUMED[name])
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    train(recipe, whole, reporter=quiet())
    for update in (5, 13):
        with pytest.raises(InterruptedRun, match=rf"after update {update} of 24; checkpoint written") as caught:
            train(recipe, broken, resume=update > 5, reporter=StopAt(update))
        assert caught.value.signum == signal.SIGTERM
        assert not (broken / "summary.json").exists()
    train(recipe, broken, resume=True, reporter=quiet())
    assert_bit_equal(final_files(broken), final_files(whole))
    assert comparable(broken) == comparable(whole)


def test_a_stop_during_evaluation_loses_nothing(tmp_path: Path) -> None:
    recipe = small("train.eval_batch_size=10")
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    train(recipe, whole, reporter=quiet())
    with pytest.raises(InterruptedRun, match="after update 8 of 24"):
        train(recipe, broken, reporter=StopAt(3, "evaluating"))
    assert [r["kind"] for r in comparable(broken)] == ["train", "train"]
    train(recipe, broken, resume=True, reporter=quiet())
    assert comparable(broken) == comparable(whole)
    assert_bit_equal(final_files(broken), final_files(whole))


def test_work_after_the_last_checkpoint_is_done_again_without_doubles(tmp_path: Path) -> None:
    """What a kill -9 leaves: metrics beyond the last checkpoint, and a half-written line."""
    recipe = small()
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    train(recipe, whole, reporter=quiet())
    with pytest.raises(InterruptedRun):
        train(recipe, broken, reporter=StopAt(8))
    with (broken / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"kind": "train", "update": 9, "loss": 7.0}) + '\n{"kind": "tr')
    train(recipe, broken, resume=True, reporter=quiet())
    assert comparable(broken) == comparable(whole)


def test_a_damaged_last_checkpoint_is_told_and_the_one_before_used(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = small()
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    train(recipe, whole, reporter=quiet())
    with pytest.raises(InterruptedRun):
        train(recipe, broken, reporter=StopAt(13))
    last = checkpoint.latest(broken / "checkpoints", pytest.fail)
    assert last is not None
    (last.path / "model.safetensors").write_bytes(b"cut")
    train(recipe, broken, resume=True, reporter=quiet())
    assert "update-00000013 is refused: model.safetensors is cut short" in capsys.readouterr().err.replace("\n", "")
    assert_bit_equal(final_files(broken), final_files(whole))
    assert comparable(broken) == comparable(whole)


def test_damage_is_told_by_eval_too_and_a_run_with_no_whole_checkpoint_is_not_begun_anew(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, recipe = tmp_path / "run", small("train.epochs=2")
    train(recipe, run, reporter=quiet())
    (run / "summary.json").unlink()
    one, two = sorted((run / "checkpoints").glob("update-*"))
    (two / "model.safetensors").write_bytes(b"cut")
    evaluate_run(run)
    said = capsys.readouterr().err.replace("\n", "")
    assert "update-00000016 is refused" in said and "update-00000008 is used" in said
    (one / "model.safetensors").write_bytes(b"cut")
    with pytest.raises(StoppedError, match=r"no checkpoint of .* is whole"):
        train(recipe, run, resume=True, reporter=quiet())
    assert comparable(run), "the records are still there"


def test_a_folder_that_was_never_finished_is_made_anew(tmp_path: Path) -> None:
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    assert train(small("train.epochs=1"), tmp_path / "run", resume=True, reporter=quiet())["updates"] == 8


def test_a_place_that_can_t_hold_a_run_is_named_first(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"can't make a run folder, .*file is no folder"):
        train(small(), tmp_path / "file" / "run", reporter=quiet())


def test_a_stop_while_images_are_read_writes_nothing(tmp_path: Path) -> None:
    with pytest.raises(InterruptedRun, match="while reading images"):
        train(small(), tmp_path / "run", reporter=StopAt(128, "reading images"))
    assert not (tmp_path / "run").exists()


def test_plain_training_is_that_of_a_bare_loop(tmp_path: Path) -> None:
    """Same batches, same seeds, torch alone: the same weights, bit for bit."""
    recipe = small("method=plain", "model.kwargs.drop_path_rate=0.2", "model.attention=fused")
    train(recipe, tmp_path / "run", reporter=quiet())
    torch.manual_seed(mix(0, "weights"))
    model = create_model(recipe, 10)
    optimizer = create_optimizer(recipe, model)
    schedule = create_schedule(recipe, optimizer, UPDATES, 8)
    source = open_source(recipe.data, "train", 0)
    batches = TrainBatches(source, recipe.data, recipe.augment, seed=0, batch_size=16, num_classes=10)
    update = 0
    for epoch in range(3):
        for x, y in batches.epoch(epoch):
            schedule.step_update(update)
            torch.manual_seed(mix("step", 0, update, 0, 0))
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            optimizer.step()
            update += 1
    assert_bit_equal(final_files(tmp_path / "run")["model"], dict(model.state_dict()))


def test_timm_loads_a_run_s_weights(tmp_path: Path) -> None:
    run = tmp_path / "run"
    recipe = small("train.epochs=1")
    summary = train(recipe, run, reporter=quiet())
    path = next((run / "checkpoints").glob("*/model.safetensors"))
    arguments = {"img_size": 8, "in_chans": 1, "num_classes": 10, **recipe.model.kwargs}
    model = timm.create_model(recipe.model.name, checkpoint_path=str(path), **arguments)
    assert sum(p.numel() for p in model.parameters()) == summary["parameters"]


def test_arms_share_initial_weights_and_order_of_data(tmp_path: Path) -> None:
    """One update at learning rate 0 (all but): the weights are still those of the start."""
    weights = []
    for method in METHODS:
        train(small(f"method={method}", "train.epochs=0.125", "optim.lr=1e-30", "optim.warmup_epochs=0",
                    "optim.min_lr=0", "optim.weight_decay=0"), tmp_path / method, reporter=quiet())  # fmt: skip
        weights.append(load_file(next((tmp_path / method / "checkpoints").glob("*/model.safetensors"))))
    for other in weights[1:]:
        torch.testing.assert_close(other, weights[0], atol=1e-20, rtol=0)
    losses = {m: comparable(tmp_path / m)[0] for m in ("plain", "masksub", "direct-mask", "self-distill")}
    assert losses["plain"]["loss_main"] == losses["masksub"]["loss_main"] == losses["self-distill"]["loss_main"]
    assert "loss_sub" not in losses["plain"] and "loss_main" not in losses["direct-mask"]


def test_compute_is_counted_by_method(tmp_path: Path) -> None:
    """17 tokens whole, 9 masked: a two-branch step is between 1.5 and 1.6 plain ones; masking alone is cheaper."""
    flops = {}
    for method in ("plain", "masksub", "direct-mask", "self-distill", "dropsub", "pathsub"):
        recipe = small(f"method={method}", "train.epochs=0.125", "optim.warmup_epochs=0", "sub.p=0.5")
        summary = train(recipe, tmp_path / method, reporter=quiet())
        flops[method] = summary["flops"]
    assert 1.5 < flops["masksub"] / flops["plain"] < 1.6
    assert flops["masksub"] == pytest.approx(flops["plain"] + flops["direct-mask"])
    assert flops["self-distill"] == flops["dropsub"] == pytest.approx(2 * flops["plain"])
    assert 1.49 < flops["pathsub"] / flops["plain"] < 1.6


def nan_main(monkeypatch: pytest.MonkeyPatch) -> tuple[str, ...]:
    return ("optim.lr=1e30", "optim.warmup_epochs=0")


def nan_sub(monkeypatch: pytest.MonkeyPatch) -> tuple[str, ...]:
    calls = iter(range(1000))
    real = masksub.core.loss.soft_loss

    def broken(*args: Any, **kwargs: Any) -> torch.Tensor:
        return real(*args, **kwargs) * (float("inf") if next(calls) >= 10 else 1.0)

    monkeypatch.setattr(masksub.core.loss, "soft_loss", broken)
    return ()


@pytest.mark.parametrize(("cause", "branch"), [(nan_main, "main"), (nan_sub, "sub")])
def test_a_loss_that_is_not_finite_stops_before_the_weights(
    cause: Callable[[pytest.MonkeyPatch], tuple[str, ...]],
    branch: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    overrides = cause(monkeypatch)
    with pytest.raises(
        StoppedError, match=rf"loss of the {branch} branch is not finite at update \d+ of 24 .learning rate"
    ):
        train(small("train.checkpoint_every=1", *overrides), tmp_path / "run", reporter=quiet())
    found = checkpoint.latest(tmp_path / "run" / "checkpoints", pytest.fail)
    assert found is not None and found.update >= 1
    if branch == "sub":
        assert all(bool(t.isfinite().all()) for t in load_file(found.weights).values())


def test_an_existing_run_is_refused_resumed_or_set_aside(tmp_path: Path) -> None:
    run = tmp_path / "run"
    recipe = small("train.epochs=1")
    first = train(recipe, run, reporter=quiet())
    with pytest.raises(InputError, match=r"run exists: go on with --resume, or start anew with --overwrite"):
        train(recipe, run, reporter=quiet())
    assert train(recipe, run, resume=True, reporter=quiet()) == first
    with pytest.raises(InputError, match=r"optim\.lr: 0\.003 -> 0\.002"):
        train(small("train.epochs=1", "optim.lr=2e-3"), run, resume=True, reporter=quiet())
    train(recipe, run, overwrite=True, reporter=quiet())
    assert RunFolder(tmp_path / "run.replaced-1").summary() == first
    assert RunFolder(run).summary()["final"] == first["final"]  # type: ignore[index]


@pytest.mark.parametrize("how", [{}, {"overwrite": True}, {"resume": True}])
def test_what_is_no_run_is_neither_moved_nor_written_into(how: dict[str, bool], tmp_path: Path) -> None:
    """Else ``--out`` on the wrong folder, or the --overwrite that is then advised, renames a user's own files."""
    thesis = tmp_path / "precious" / "thesis.txt"
    weights = tmp_path / "kept" / "checkpoints" / "last.pt"
    for file in (thesis, weights):
        file.parent.mkdir(parents=True)
        file.write_text("years of work")
    for path, said in (
        (tmp_path / "precious", "is no run folder: .* holds thesis.txt; choose another --out"),
        (tmp_path / "kept", "is no run folder: .* holds checkpoints; choose another --out"),
        (thesis, "thesis.txt is a file: --out needs a folder"),
    ):
        with pytest.raises(InputError, match=said) as caught:
            train(small(), path, reporter=quiet(), **how)
        assert "--overwrite" not in str(caught.value)
    assert sorted(tmp_path.rglob("*")) == sorted([thesis.parent, thesis, weights.parents[1], weights.parent, weights])


def test_what_was_killed_while_it_was_made_is_no_foreign_folder(tmp_path: Path) -> None:
    """Else the same command can't go on."""
    (tmp_path / "checkpoints").mkdir()
    for name in (".lock", "classes.json", ".recipe.yaml.1f.writing"):
        (tmp_path / name).touch()
    with pytest.raises(InputError, match="exists: go on with --resume"):
        check_new_run(tmp_path, resume=False, overwrite=False)
    check_new_run(tmp_path, resume=True, overwrite=False)
    check_new_run(tmp_path, resume=False, overwrite=True)


WRONG: dict[str, tuple[tuple[str, ...], str]] = {
    "image size": (("model.kwargs.patch_size=3",), r"data\.image_size = 8: .* patches of 3 x 3 px"),
    "model name": (("model.name=vit_tiny_patch16_225",), r"has no such model; did you mean vit_tiny_patch16_224"),
    "model argument": (("model.kwargs.embed_dims=3",), r"model\.kwargs: .*embed_dims"),
    "optimizer": (("optim.name=adamv",), r"optim\.name = 'adamv'.*near names: .*adam"),
    "optimizer argument": (("optim.kwargs.beta=1",), r"optim\.name = 'adamw', optim\.kwargs = \{'beta': 1\}"),
    "warm-up": (("optim.warmup_epochs=3",), r"optim\.warmup_epochs = 3\.0: .* shorter than train\.epochs"),
    "unit": (("sub.unit=3",), r"sub: unit = 3 px: this model's patches are 2 x 2 px"),
    "nothing to mask": (("model.name=resnet18", "model.kwargs={}"), r"sub: .* masks nothing: .* 1 x 1 units"),
    "no such weights": (("model.weights=absent.pth",), r"model\.weights = 'absent\.pth': there is no such file"),
    "too few images": (("data.train_images=10",), r"10.*16|16.*10"),
    "fp16 without a GPU": (("train.precision=fp16",), r"train\.precision = 'fp16': half precision needs a CUDA"),
    "label out of range": (("model.kwargs.num_classes=5",), r"model\.kwargs\.num_classes = 5: it is taken from"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_input_is_named_before_anything_is_written(name: str, tmp_path: Path) -> None:
    overrides, message = WRONG[name]
    with pytest.raises(InputError, match=message):
        train(small(*overrides), tmp_path / "run", reporter=quiet())
    assert not (tmp_path / "run").exists()


def test_pickled_weights_to_start_from_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "w.pth"
    torch.save({"weight": Path("x")}, path)
    with pytest.raises(InputError, match=r"w\.pth is refused: it is a pickle that holds more"):
        train(small(f"model.weights={path}"), tmp_path / "run", reporter=quiet())


def test_weights_to_start_from_are_used_and_a_head_of_other_classes_is_replaced(tmp_path: Path) -> None:
    run = tmp_path / "run"
    train(small("train.epochs=1"), run, reporter=quiet())
    weights = next((run / "checkpoints").glob("*/model.safetensors"))
    model = create_model(small(f"model.weights={weights}"), 10)
    assert_bit_equal(dict(model.state_dict()), load_file(weights))
    other = create_model(small(f"model.weights={weights}"), 7).state_dict()
    assert other["head.weight"].shape == (7, 24)
    assert torch.equal(other["blocks.0.attn.qkv.weight"], load_file(weights)["blocks.0.attn.qkv.weight"])


@pytest.mark.parametrize("precision", ["bf16"])
def test_lower_precision_and_compile(precision: str, tmp_path: Path) -> None:
    """Weights stay in float32; the compiled step learns."""
    summary = train(small(f"train.precision={precision}", "train.epochs=1"), tmp_path / "run", reporter=quiet())
    weights = load_file(next((tmp_path / "run" / "checkpoints").glob("*/model.safetensors")))
    assert {t.dtype for t in weights.values()} == {torch.float32}
    assert summary["final"]["loss"] < 3


def test_moving_average_is_what_is_evaluated(tmp_path: Path) -> None:
    run = tmp_path / "run"
    train(small("train.ema_decay=0.99", "train.epochs=1"), run, reporter=quiet())
    found = checkpoint.latest(run / "checkpoints", pytest.fail)
    assert found is not None and found.weights.name == "ema.safetensors"
    plain, average = load_file(found.path / "model.safetensors"), load_file(found.weights)
    assert not torch.equal(plain["head.weight"], average["head.weight"])


def test_real_images_from_an_archive(tmp_path: Path) -> None:
    """CIFAR-10 JPEGs in a zip: decoded, held, augmented, learnt."""
    archive = shared("data/cifar10/val.zip")
    recipe = load_recipe(
        "cifar10/vit_tiny_patch8",
        (f"data.train={archive}", f"data.val={archive}", "data.train_images=1500", "data.val_images=300",
         "train.epochs=2", "optim.warmup_epochs=0.5", "train.tensorboard=false", "train.device=cpu",
         "model.kwargs.depth=2", "train.batch_size=64"),
    )  # fmt: skip
    summary = train(recipe, tmp_path / "run", reporter=quiet())
    assert summary["final"]["top1"] > 15, "better than the 10 % of guessing"
    assert RunFolder(tmp_path / "run").recipe().data.cache == "memory"
    assert "airplane" in RunFolder(tmp_path / "run").classes()
