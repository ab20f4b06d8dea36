"""Losses and gradients that are not finite. If these fail, one bad batch ruins the weights or hides in the figures."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from masksub.app import checkpoint
from masksub.app.devices import create_accelerator
from masksub.app.errors import DivergedError
from masksub.app.guard import Guard, mends, not_finite
from masksub.app.interrupt import StopRequest
from masksub.app.progress import Reporter
from masksub.app.recipe import load_recipe
from masksub.app.runs import RunFolder
from masksub.app.settings import Recipe, Train
from masksub.app.state import Standing
from masksub.app.train import Trainer
from masksub.app.window import BRANCHES

SMALL = (
    "data.train_images=128", "data.val_images=60", "train.epochs=1", "train.batch_size=16", "train.log_every=2",
    "model.kwargs.embed_dim=24", "model.kwargs.depth=2", "model.kwargs.num_heads=2", "optim.warmup_epochs=0",
    "train.tensorboard=false", "train.device=cpu", "train.checkpoint_every=1",
)  # fmt: skip


SCALE = 2.0**20
"""Of the loss at the start: too large for the first gradients of this run."""


class Listening(Reporter):
    """Keeps the warnings."""

    def __init__(self) -> None:
        super().__init__(quiet=True)
        self.heard: list[str] = []

    def warn(self, text: str) -> None:
        self.heard.append(text)


def trainer(folder: Path, *overrides: str, reporter: Reporter | None = None) -> Trainer:
    recipe: Recipe = load_recipe("digits/vit_micro", (*SMALL, *overrides))
    accelerator = create_accelerator(recipe)
    return Trainer(recipe, RunFolder(folder), accelerator, reporter or Reporter(quiet=True), StopRequest())


def bad_gradient(made: Trainer, *updates: int) -> None:
    """Make the gradient of one weight infinite in these updates, the losses staying as they are."""
    weight = next(made.setup.plain_model.parameters())
    weight.register_hook(lambda g: g * (math.inf if made.standing.update in updates else 1.0))


def test_a_gradient_that_is_not_finite_stops_before_the_weights(tmp_path: Path) -> None:
    made = trainer(tmp_path / "run")
    bad_gradient(made, 3)
    with pytest.raises(DivergedError, match="the norm of the gradient is not finite at update 4 of 8"):
        made.run()
    found = checkpoint.latest(tmp_path / "run" / "checkpoints", pytest.fail)
    assert found is not None and found.update == 3
    assert all(bool(t.isfinite().all()) for t in load_file(found.weights).values())
    failure = RunFolder(tmp_path / "run").failure()
    assert failure is not None and failure["update"] == 4


def test_such_updates_are_left_out_and_counted_where_the_recipe_says_so(tmp_path: Path) -> None:
    reporter = Listening()
    made = trainer(tmp_path / "run", "train.on_nan=skip", reporter=reporter)
    bad_gradient(made, 2, 5)
    before: dict[int, list[Tensor]] = {}
    real = made.one_update

    def watched(*arguments: Any) -> Any:
        before[made.standing.update] = [p.detach().clone() for p in made.setup.plain_model.parameters()]
        return real(*arguments)

    made.one_update = watched  # type: ignore[assignment]
    watched.between = True  # type: ignore[attr-defined]
    summary = made.run()
    assert summary["skipped_updates"] == 2 and summary["updates"] == 8
    assert next(a for a in reporter.heard if "left out" in a).startswith(
        "update 3 is left out: the norm of the gradient is not finite (1 of at most 20)"
    )
    for one, two in zip(before[2], before[3], strict=True):
        assert torch.equal(one, two)
    assert any(not torch.equal(one, two) for one, two in zip(before[3], before[4], strict=True))
    lines = [line for line in RunFolder(tmp_path / "run").metrics() if line["kind"] == "train"]
    assert [line.get("skipped_updates", 0) for line in lines] == [0, 1, 2, 2]
    assert all(math.isfinite(line["loss"]) and math.isfinite(line["gradient_norm"]) for line in lines)


def test_there_is_a_limit_to_what_is_left_out(tmp_path: Path) -> None:
    made = trainer(tmp_path / "run", "train.on_nan=skip", "train.max_nan=2")
    bad_gradient(made, *range(1, 9))
    with pytest.raises(DivergedError, match=r"once more than train.max_nan = 2 lets pass at update 4 of 8"):
        made.run()


def test_batch_norm_statistics_are_those_before_the_update_that_is_left_out() -> None:
    """A batch that is not finite would leave NaN in them, and every later evaluation with it."""
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
    settings = Train(epochs=1, on_nan="skip")
    guard = Guard(settings, Standing(None), model, lambda _: None)
    kept = {name: buffer.clone() for name, buffer in model.named_buffers()}
    guard.begin()
    model(torch.full((2, 3, 2, 2), math.nan))
    assert not all(bool(buffer.isfinite().all()) for buffer in model.buffers())
    guard.refuse("the loss", lambda what: what)
    for name, buffer in model.named_buffers():
        assert torch.equal(buffer, kept[name]), name


def test_which_branch_is_not_finite() -> None:
    assert not_finite([{"loss_main": 1.0, "loss_sub": 2.0}], BRANCHES) is None
    assert not_finite([{"loss_main": 1.0}, {"loss_main": 1.0, "loss_sub": math.inf}], BRANCHES) == "sub"
    assert not_finite([{"loss_main": math.nan, "loss_sub": math.nan}], BRANCHES) == "main"


def fp16_on_a_cpu(folder: Path, scale: float, *overrides: str) -> Trainer:
    """A run in half precision with its loss scale; masksub asks for a GPU there, torch does not."""
    recipe = load_recipe("digits/vit_micro", (*SMALL, *overrides))
    accelerator = create_accelerator(recipe)
    accelerator.state._mixed_precision = "fp16"
    accelerator.native_amp = True
    accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=scale, growth_interval=1000)
    return Trainer(recipe, RunFolder(folder), accelerator, Reporter(quiet=True), StopRequest())


def test_fp16_overflows_are_counted_and_training_goes_on(tmp_path: Path) -> None:
    """A scale far too large: the scaler halves it until the gradients fit."""
    summary = fp16_on_a_cpu(tmp_path / "run", SCALE).run()
    assert 0 < summary["overflowed_updates"] < 8 and summary["skipped_updates"] == 0
    last = [line for line in RunFolder(tmp_path / "run").metrics() if line["kind"] == "train"][-1]
    assert last["overflowed_updates"] == summary["overflowed_updates"] and math.isfinite(last["loss"])
    assert "overflows_in_a_row" not in last


def test_fp16_overflows_in_a_row_end_the_run(tmp_path: Path) -> None:
    made = fp16_on_a_cpu(tmp_path / "run", 2.0**40, "train.max_overflows=3")
    with pytest.raises(DivergedError, match=r"overflowed in 4 updates in a row, more than train.max_overflows = 3"):
        made.run()


def test_the_scale_goes_on_after_resuming(tmp_path: Path) -> None:
    whole = fp16_on_a_cpu(tmp_path / "whole", SCALE)
    summary = whole.run()
    broken = fp16_on_a_cpu(tmp_path / "broken", SCALE)
    real = broken._checkpoint_where_due

    def stop() -> None:
        real()
        if broken.standing.update == 4:
            broken.writer.wait()
            raise KeyboardInterrupt

    broken._checkpoint_where_due = stop  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        broken.run()
    again = fp16_on_a_cpu(tmp_path / "broken", SCALE).run(resume=True)
    assert again["overflowed_updates"] == summary["overflowed_updates"]
    ends = [checkpoint.latest(tmp_path / each / "checkpoints", pytest.fail) for each in ("whole", "broken")]
    states = [end.training_state() for end in ends if end is not None]
    assert states[0]["scaler"] == states[1]["scaler"]


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_another_precision_is_advised_against_fp16_alone(precision: str) -> None:
    """Else a user of fp32 tries what can't help, and trains in fewer digits."""
    told = mends(precision)
    assert ("bf16" in told) == (precision == "fp16") and "optim.lr" in told and "or " in told
