"""Numbers that are not finite, and updates made of parts. If these fail, one bad batch destroys the weights in silence,
or a recipe means something else on another number of devices.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import accelerate
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

import masksub.core.dropping
import masksub.core.loss
from masksub.app.errors import StoppedError
from masksub.app.runs import RunFolder
from masksub.app.train import train
from masksub.core.step import TwoBranchStep
from tests.app.faults_made_up import (
    UPDATES,
    assert_bit_equal,
    checkpoint_content,
    comparable,
    newest,
    quiet,
    small,
)

# Trying which attention is faster would run steps before the first update.
FUSED = "model.attention=fused"

Spoil = Callable[[pytest.MonkeyPatch, set[int]], None]


def spoilt_steps(monkeypatch: pytest.MonkeyPatch, calls: set[int], change: Callable[..., Any]) -> None:
    """Change the given calls of the two-branch step, counted from 0: ``change(real, step, x, y, **more)``.

    Calls on shapes alone, by which compute is counted, are none.
    """
    real, count = TwoBranchStep.__call__, iter(range(10**6))

    def call(step: TwoBranchStep, x: Tensor, y: Tensor, **more: Any) -> Any:
        spoilt = x.device.type != "meta" and next(count) in calls
        return change(real, step, x, y, **more) if spoilt else real(step, x, y, **more)

    monkeypatch.setattr(TwoBranchStep, "__call__", call)


def bad_images(monkeypatch: pytest.MonkeyPatch, calls: set[int]) -> None:
    """One pixel of the batch is no number: it is in both losses, and in batch norm's statistics."""

    def change(real: Callable[..., Any], step: TwoBranchStep, x: Tensor, y: Tensor, **more: Any) -> Any:
        x = x.clone()
        x[0, 0, 0, 0] = math.nan
        return real(step, x, y, **more)

    spoilt_steps(monkeypatch, calls, change)


def bad_sub_loss(monkeypatch: pytest.MonkeyPatch, calls: set[int]) -> None:
    """The sub branch's loss alone is infinite."""
    real, count = masksub.core.loss.soft_loss, iter(range(10**6))

    def broken(*args: Any, **kwargs: Any) -> Tensor:
        loss = real(*args, **kwargs)
        return loss * math.inf if loss.device.type != "meta" and next(count) in calls else loss

    monkeypatch.setattr(masksub.core.loss, "soft_loss", broken)


def bad_gradient(monkeypatch: pytest.MonkeyPatch, calls: set[int]) -> None:
    """Losses are fine and one number of one gradient is infinite, as where a derivative has a pole."""

    def change(real: Callable[..., Any], step: TwoBranchStep, x: Tensor, y: Tensor, **more: Any) -> Any:
        out = real(step, x, y, **more)
        gradient = next(p.grad for p in step.model.parameters() if p.grad is not None)
        gradient.view(-1)[0] = math.inf
        return out

    spoilt_steps(monkeypatch, calls, change)


CAUSES: dict[str, tuple[Spoil, str]] = {
    "main loss": (bad_images, "loss of the main branch"),
    "sub loss": (bad_sub_loss, "loss of the sub branch"),
    "gradient": (bad_gradient, "norm of the gradient"),
}


@pytest.fixture(scope="module")
def stopped_before(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The checkpoint after ten updates of a run in which nothing is wrong."""
    run = tmp_path_factory.mktemp("good") / "run"
    train(small(FUSED, "train.checkpoint_every=10", "train.keep_checkpoints=9"), run, reporter=quiet())
    found = next(each for each in sorted((run / "checkpoints").glob("update-*10")))
    return load_file(found / "model.safetensors")


@pytest.mark.parametrize("cause", CAUSES)
def test_stop_is_before_the_optimizer_step(
    cause: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stopped_before: dict[str, Any]
) -> None:
    spoil, what = CAUSES[cause]
    spoil(monkeypatch, {10})
    run = tmp_path / "run"
    with pytest.raises(StoppedError, match=rf"{what} is not finite at update 11 of 24.*before the optimizer step"):
        train(small(FUSED, "train.checkpoint_every=10"), run, reporter=quiet())
    failure = RunFolder(run).failure()
    assert failure is not None and failure["update"] == 11 and what in failure["reason"]
    assert newest(run).update == 10
    assert_bit_equal(load_file(newest(run).path / "model.safetensors"), stopped_before)
    assert not (run / "summary.json").exists()


@pytest.mark.parametrize("cause", CAUSES)
def test_skip_leaves_the_update_out_counts_and_goes_on(
    cause: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    spoil, what = CAUSES[cause]
    spoil(monkeypatch, {4, 10})
    run = tmp_path / "run"
    overrides = ("train.on_nan=skip", "train.ema_decay=0.9", "train.checkpoint_every=1", "train.keep_checkpoints=99")
    summary = train(small(FUSED, *overrides), run, reporter=quiet())
    assert summary["skipped_updates"] == 2 and summary["updates"] == UPDATES
    said = capsys.readouterr().err.replace("\n", " ")
    assert f"update 5 is left out: the {what} is not finite" in said and "update 11 is left out" in said
    trained = {record["update"]: record for record in comparable(run) if record["kind"] == "train"}
    assert [trained[update]["skipped_updates"] for update in (3, 6, 12, 24)] == [0, 1, 2, 2]
    for record in trained.values():
        assert all(math.isfinite(value) for value in record.values() if isinstance(value, float)), record
    content = {path.name: checkpoint_content_of(path) for path in (run / "checkpoints").iterdir()}
    before, left_out, after = (content[f"update-{update:08d}"] for update in (10, 11, 12))
    assert_bit_equal(left_out["weights"], before["weights"])  # the moving average stays too
    assert_bit_equal(left_out["training"]["optimizer"]["state"], before["training"]["optimizer"]["state"])
    changed = {
        name: not torch.equal(value, before["weights"]["model.safetensors"][name])
        for name, value in after["weights"]["model.safetensors"].items()
    }
    assert any(changed.values()), "training goes on"
    for file in newest(run).path.glob("*.safetensors"):
        assert all(bool(value.isfinite().all()) for value in load_file(file).values())


def checkpoint_content_of(path: Path) -> dict[str, Any]:
    from masksub.app.checkpoint import Checkpoint

    return checkpoint_content(Checkpoint(path, int(path.name.removeprefix("update-"))))


def test_skip_ends_beyond_its_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bad_images(monkeypatch, {1, 3, 5, 7})
    with pytest.raises(StoppedError, match=r"train\.max_nan = 2") as caught:
        train(small(FUSED, "train.on_nan=skip", "train.max_nan=2"), tmp_path / "run", reporter=quiet())
    assert "update 6 of 24" in str(caught.value), "the third one is one too many"
    assert RunFolder(tmp_path / "run").failure() is not None


def test_skips_are_counted_over_a_resume(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The limit is one of the run: a run that is restarted each day does not get a new one each day."""
    with monkeypatch.context() as first:
        bad_images(first, {3, 5, 10})
        with pytest.raises(StoppedError, match=r"update 11 of 24"):
            train(small(FUSED, "train.on_nan=skip", "train.max_nan=2"), tmp_path / "run", reporter=quiet())
    bad_images(monkeypatch, {5})  # the sixth after update 8
    with pytest.raises(StoppedError, match=r"train\.max_nan = 2"):
        train(small(FUSED, "train.on_nan=skip", "train.max_nan=2"), tmp_path / "run", resume=True, reporter=quiet())


@pytest.mark.parametrize("method", ["plain", "masksub"])
def test_batch_norm_s_statistics_stay_finite(method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A skipped batch went through the network before anyone saw its loss."""
    bad_images(monkeypatch, {4})
    network = ("model.name=test_resnet", "model.kwargs={}", f"method={method}", "sub.unit=4")
    summary = train(small(FUSED, "train.on_nan=skip", *network), tmp_path / "run", reporter=quiet())
    assert summary["skipped_updates"] == 1
    weights = load_file(newest(tmp_path / "run").path / "model.safetensors")
    statistics = [name for name in weights if "running_" in name]
    assert statistics and all(bool(weights[name].isfinite().all()) for name in statistics)
    assert math.isfinite(summary["final"]["loss"])


def with_scaler(monkeypatch: pytest.MonkeyPatch, scale: float) -> None:
    """fp16's loss scale where there is no GPU: the arithmetic is in fp32, which overflows with a scale large enough."""
    real = accelerate.Accelerator.__init__

    def init(self: accelerate.Accelerator, *args: Any, **kwargs: Any) -> None:
        real(self, *args, **kwargs)
        self.scaler = torch.amp.GradScaler("cpu", init_scale=scale)

    def unscale(self: accelerate.Accelerator, optimizer: Any = None) -> None:
        for each in self._optimizers:  # the library's own does nothing where the precision is not fp16
            self.scaler.unscale_(each.optimizer)

    monkeypatch.setattr(accelerate.Accelerator, "__init__", init)
    monkeypatch.setattr(accelerate.Accelerator, "unscale_gradients", unscale)


def test_overflows_are_left_out_counted_and_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first loss times 2^127 is infinite; the scale is halved until nothing overflows."""
    with_scaler(monkeypatch, 2.0**127)
    summary = train(small(FUSED, "train.ema_decay=0.9"), tmp_path / "run", reporter=quiet())
    assert 1 <= summary["overflowed_updates"] <= 6 and summary["updates"] == UPDATES
    assert summary["skipped_updates"] == 0, "an overflow is what the scaler looks for, no fault"
    trained = [record for record in comparable(tmp_path / "run") if record["kind"] == "train"]
    assert trained[-1]["overflowed_updates"] == summary["overflowed_updates"]
    for record in trained:
        assert all(math.isfinite(value) for value in record.values() if isinstance(value, float)), record
    weights = load_file(newest(tmp_path / "run").path / "model.safetensors")
    assert all(bool(value.isfinite().all()) for value in weights.values())


def test_a_scale_changes_no_weight(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A power of two, taken out again before clipping and the step."""
    train(small(FUSED, "optim.clip_norm=0.5"), tmp_path / "without", reporter=quiet())
    with_scaler(monkeypatch, 2.0**10)
    train(small(FUSED, "optim.clip_norm=0.5"), tmp_path / "with", reporter=quiet())
    one, two = (load_file(newest(tmp_path / name).path / "model.safetensors") for name in ("without", "with"))
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, atol=1e-6, rtol=1e-5, msg=name)


def test_too_many_overflows_in_a_row_stop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with_scaler(monkeypatch, 2.0)
    bad_gradient(monkeypatch, set(range(2, UPDATES)))
    with pytest.raises(StoppedError, match=r"train\.max_overflows = 4"):
        train(small(FUSED, "train.max_overflows=4", "train.checkpoint_every=1"), tmp_path / "run", reporter=quiet())
    assert RunFolder(tmp_path / "run").failure() is not None
    assert newest(tmp_path / "run").update >= 2


def test_overflows_now_and_then_do_not_stop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with_scaler(monkeypatch, 2.0**20)
    bad_gradient(monkeypatch, set(range(0, UPDATES, 2)))
    summary = train(small(FUSED, "train.max_overflows=1"), tmp_path / "run", reporter=quiet())
    assert summary["overflowed_updates"] == UPDATES / 2


ACCUMULATED = (FUSED, "optim.name=sgd", "optim.lr=0.1", "optim.kwargs={momentum: 0.9}")


@pytest.mark.parametrize("method", ["plain", "masksub"])
def test_one_batch_is_four_parts(method: str, tmp_path: Path) -> None:
    """Accumulation 1 x 64 equals 4 x 16: the same images, the same masks, the mean of the gradients."""
    content = []
    for size, parts in ((64, 1), (16, 4)):
        overrides = (f"train.batch_size={size}", f"train.accumulate={parts}", f"method={method}", *ACCUMULATED)
        summary = train(small(*overrides, "train.eval_batch_size=60"), tmp_path / f"{parts}", reporter=quiet())
        assert summary["updates"] == 6 and summary["images"] == 6 * 64
        content.append(load_file(newest(tmp_path / f"{parts}").path / "model.safetensors"))
    one, four = content
    for name, value in one.items():
        torch.testing.assert_close(
            four[name], value, atol=1e-5, rtol=1e-4, msg=lambda text, name=name: f"{name}: {text}"
        )
    for a, b in zip(comparable(tmp_path / "1"), comparable(tmp_path / "4"), strict=True):
        for key in a.keys() & {"loss", "gradient_norm", "images", "flops"}:
            assert a[key] == pytest.approx(b[key], rel=1e-3), key


def test_a_mask_of_one_part_is_not_that_of_the_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Equal masks in all parts of an update would mask less at random than the recipe says."""
    drawn: list[Tensor] = []
    real = masksub.core.dropping.kept_indices

    def kept(keep: Tensor, count: int) -> Tensor:
        drawn.append(keep)
        return real(keep, count)

    monkeypatch.setattr(masksub.core.dropping, "kept_indices", kept)
    train(
        small(FUSED, "train.accumulate=2", "train.epochs=1", "optim.warmup_epochs=0"),
        tmp_path / "run",
        reporter=quiet(),
    )
    masks = [keep for keep in drawn if keep.device.type != "meta" and keep.shape[0] == 16]
    assert len(masks) >= 8
    assert all(not torch.equal(a, b) for a, b in itertools.pairwise(masks))
