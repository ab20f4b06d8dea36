"""Lightning against the core's bare loop. If these fail, a Lightning user trains on something else than MaskSub."""

from __future__ import annotations

import copy
import functools
import importlib.util
import io
import os
import socket
import sys
import warnings
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader

with warnings.catch_warnings():
    # Lightning's own imports: torchmetrics looks for pkg_resources, others use names that are on their way out.
    warnings.simplefilter("ignore", DeprecationWarning)
    warnings.simplefilter("ignore", FutureWarning)
    import lightning.pytorch as L
    from lightning.pytorch.callbacks import ModelCheckpoint
    from lightning.pytorch.plugins import MixedPrecision
    from lightning.pytorch.strategies import DDPStrategy

import masksub
from masksub.core.seeds import MasksOfUpdates
from masksub.integrations import lightning as integration
from masksub.integrations.lightning import MaskSubCallback, MaskSubMixin
from tests.integrations.reference import LEARNING_RATE, SEED, batches, build, same_weights, share, trained
from tests.models import resnet, vit

pytestmark = [
    # What Lightning says of any small CPU run; each is about the speed or the set-up of the test, not about ours.
    pytest.mark.filterwarnings("ignore:The '.*_dataloader' does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*GPU available but not used"),
    pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty"),
    pytest.mark.filterwarnings("ignore:`isinstance\\(treespec, LeafSpec\\)` is deprecated"),
]
UPDATES = 20
AUTOCAST = MixedPrecision("bf16-mixed", "cpu")


class Plain(L.LightningModule):
    """A user's classifier, written for Lightning alone."""

    def __init__(self, model: nn.Module | None = None) -> None:
        super().__init__()
        self.model = build() if model is None else model

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        x, y = batch
        return F.cross_entropy(self.model(x), y)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=LEARNING_RATE)


class Mixed(MaskSubMixin, Plain):
    """The one changed line."""

    def __init__(self, model: nn.Module | None = None, weight: float = 0.5, sub: Any = None, **settings: Any) -> None:
        super().__init__(model)
        sub = masksub.MaskSub(0.5) if sub is None else sub
        self.use_masksub("model", F.cross_entropy, sub=sub, weight=weight, seed=SEED, **settings)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return self.two_branch_loss(*batch)


class Manual(Mixed):
    """Manual optimization with accumulation, as Lightning's page on it shows it."""

    def __init__(self, *args: Any, accumulation: int = 1, mixed: bool = True, **settings: Any) -> None:
        super().__init__(*args, **settings)
        self.automatic_optimization = False
        self.accumulation, self.mixed = accumulation, mixed

    def training_step(self, batch: Any, batch_idx: int) -> None:
        x, y = batch
        if not self.mixed:
            self.manual_backward(F.cross_entropy(self.model(x), y))
        elif self.accumulation == 1:
            self.two_branch_step(x, y)
        else:
            self.two_branch_step(x, y, backward=lambda loss: self.manual_backward(loss / self.accumulation))
        if (batch_idx + 1) % self.accumulation == 0:
            self.optimizers().step()
            self.optimizers().zero_grad()


class FirstGradient(L.Callback):
    """Keeps the gradients of the first update."""

    def __init__(self) -> None:
        self.gradients: dict[str, Tensor] = {}

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        if not self.gradients:
            self.gradients = {name: p.grad.clone() for name, p in pl_module.model.named_parameters()}


def callback(weight: float = 0.5, **settings: Any) -> MaskSubCallback:
    arguments = {"sub": masksub.MaskSub(0.5), "seed": SEED, "criterion": F.cross_entropy, "model": "model", **settings}
    return MaskSubCallback(weight=weight, **arguments)


def fit(
    module: Any, data: Any, *callbacks: L.Callback, ckpt_path: Any = None, val: Any = None, **settings: Any
) -> L.Trainer:
    """Train one epoch, or what the settings say, on micro-batches in their order."""
    make = settings.pop("trainer", L.Trainer)
    arguments = {"max_epochs": 1, "logger": False, "enable_checkpointing": False, "log_every_n_steps": 1, **settings}
    trainer = make(
        accelerator="cpu",
        **{"devices": 1, **arguments},
        callbacks=list(callbacks),
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, DataLoader(data, batch_size=None), val, ckpt_path=ckpt_path)
    return trainer


def train(way: str, data: Any, *callbacks: L.Callback, accumulation: int = 1, **settings: Any) -> L.LightningModule:
    """The same training in one of the three ways."""
    weight, model = settings.pop("weight", 0.5), settings.pop("model", None)
    if way == "manual":
        module: L.LightningModule = Manual(model, weight=weight, accumulation=accumulation)
        fit(module, data, *callbacks, **settings)
    elif way == "mixin":
        module = Mixed(model, weight=weight)
        fit(module, data, *callbacks, accumulate_grad_batches=accumulation, **settings)
    else:
        module = Plain(model)
        fit(module, data, callback(weight), *callbacks, accumulate_grad_batches=accumulation, **settings)
    return module


WAYS = ("callback", "mixin", "manual")


@functools.cache
def core(updates: int = UPDATES, accumulation: int = 1, processes: int = 1) -> nn.Module:
    """What the bare loop makes of the same data."""
    return trained(batches(updates * accumulation), updates=updates, accumulation=accumulation, processes=processes)


@pytest.mark.parametrize("accumulation", [1, 4])
@pytest.mark.parametrize("way", WAYS)
def test_same_gradients_and_weights_as_the_core(way: str, accumulation: int) -> None:
    data, first = batches(UPDATES * accumulation), FirstGradient()
    module = train(way, data, first, accumulation=accumulation)
    same_weights(module.model, core(accumulation=accumulation))
    after_one = core(updates=1, accumulation=accumulation)
    for (name, before), after in zip(build().named_parameters(), after_one.parameters()):
        torch.testing.assert_close(first.gradients[name], (before - after) / LEARNING_RATE, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("way", WAYS)
def test_weight_zero_is_lightnings_own_result_bit_for_bit(way: str) -> None:
    """With dropout: neither the arithmetic nor the global random numbers may be touched."""
    data = batches(6)

    def dropping() -> nn.Module:
        torch.manual_seed(0)
        return vit(proj_drop_rate=0.1)

    torch.manual_seed(5)
    plain = Manual(dropping(), mixed=False) if way == "manual" else Plain(dropping())
    torch.manual_seed(5)
    fit(plain, data)
    module = dropping()
    torch.manual_seed(5)
    module = train(way, data, weight=0.0, model=module)
    for name, value in module.model.state_dict().items():
        assert torch.equal(value, plain.model.state_dict()[name]), name


@pytest.mark.parametrize("way", WAYS)
def test_checkpoints_are_those_of_the_plain_module(way: str, tmp_path: Path) -> None:
    """Else what was trained can't be loaded without masksub."""
    trained_module = train(way, batches(3), ModelCheckpoint(tmp_path), enable_checkpointing=True)
    (path,) = tmp_path.rglob("*.ckpt")
    loaded = Plain.load_from_checkpoint(path, strict=True)
    assert loaded.state_dict().keys() == Plain().state_dict().keys()
    same_weights(loaded.model, trained_module.model, tolerance=0)


@pytest.mark.parametrize("way", WAYS)
def test_resuming_goes_on_as_if_unbroken(way: str, tmp_path: Path) -> None:
    """Masks are those of the unbroken training, or a resumed run is another run."""
    data = batches(4)
    unbroken = train(way, data, max_epochs=4)
    train(way, data, ModelCheckpoint(tmp_path), max_epochs=2, enable_checkpointing=True)
    (path,) = tmp_path.rglob("*.ckpt")
    resumed = train(way, data, ModelCheckpoint(tmp_path), max_epochs=4, enable_checkpointing=True, ckpt_path=path)
    same_weights(resumed.model, unbroken.model, tolerance=0)


def test_a_second_training_of_one_callback_draws_the_same_masks_again() -> None:
    """Its first update is update 0 too; it must not go on where the one before ended."""
    reused = callback()
    modules = Plain(), Plain()
    for module in modules:
        fit(module, batches(1), reused)
    same_weights(modules[0].model, modules[1].model, tolerance=0)


class Evaluated(Mixed):
    """Counts the tokens that its blocks see; 17 is the whole input."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens: list[int] = []
        self.model.blocks[0].register_forward_pre_hook(lambda block, args: self.tokens.append(args[0].shape[1]))

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        self.tokens.clear()
        return F.cross_entropy(self.model(batch[0]), batch[1])

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.tokens.clear()
        self.log("both", self.two_branch_loss(*batch), batch_size=8)
        self.log("own", F.cross_entropy(self.model(batch[0]), batch[1]), batch_size=8)
        assert self.tokens == [17, 17]

    test_step = validation_step

    def predict_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self.model(batch[0])


class Trained(L.Callback):
    """Keeps what the blocks saw in training."""

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *rest: Any) -> None:
        self.tokens = list(pl_module.tokens)


def test_validation_test_and_prediction_are_never_masked() -> None:
    """Also where validation shares the line with training."""
    module, data, seen = Evaluated(), batches(2), Trained()
    loader = DataLoader(data, batch_size=None)
    trainer = fit(module, data, callback(), seen, val=loader)
    assert seen.tokens == [17, 9]  # masked in training, in the sub branch
    assert torch.equal(trainer.callback_metrics["both"], trainer.callback_metrics["own"])
    trainer.test(module, loader, verbose=False)
    predicted = trainer.predict(module, loader)
    module.eval()
    with torch.no_grad():
        for logits, (x, _) in zip(predicted, data):
            assert torch.equal(logits, module.model(x))


@pytest.mark.parametrize("way", WAYS)
def test_both_losses_are_logged(way: str) -> None:
    """Else nobody sees that the sub branch diverges."""
    module, data, model = (Manual if way == "manual" else Mixed)(), batches(1), build()
    trainer = fit(Plain() if way == "callback" else module, data, *([callback()] if way == "callback" else []))
    step = masksub.TwoBranchStep(model.train(), F.cross_entropy, sub=masksub.MaskSub(0.5))
    out = step(*data[0], generator=MasksOfUpdates(SEED)(0))
    torch.testing.assert_close(trainer.callback_metrics["loss_main"], out.loss_main)
    torch.testing.assert_close(trainer.callback_metrics["loss_sub"], out.loss_sub)


def by_hand(
    data: Any, *, mode: Any = "split", clip: float | None = None, autocast: bool = False, **settings: Any
) -> nn.Module:
    model = build().train()
    optimizer = torch.optim.SGD(model.parameters(), lr=LEARNING_RATE)
    step = masksub.TwoBranchStep(model, F.cross_entropy, sub=masksub.MaskSub(0.5), mode=mode, **settings)
    masks = MasksOfUpdates(SEED)
    for update, (x, y) in enumerate(data):
        optimizer.zero_grad()
        with AUTOCAST.autocast_context_manager() if autocast else nullcontext():
            step(x, y, generator=masks(update))
        if clip is not None:
            assert nn.utils.clip_grad_norm_(model.parameters(), clip) > clip
        optimizer.step()
    return model


@pytest.mark.parametrize("way", WAYS)
def test_mixed_precision(way: str) -> None:
    data = batches(5)
    module = train(way, data, precision="bf16-mixed")
    # Lightning 2.5.0 caches casts, and one graph then adds up the branches' gradients in bfloat16.
    same_weights(module.model, by_hand(data, mode="split" if way == "manual" else "joint", autocast=True))


@pytest.mark.parametrize("way", ["callback", "mixin"])
def test_gradients_of_both_branches_are_clipped_together(way: str) -> None:
    data = batches(5)
    same_weights(train(way, data, gradient_clip_val=0.1).model, by_hand(data, clip=0.1))


@pytest.mark.parametrize("in_place", [False, True])
def test_a_compiled_classifier(in_place: bool) -> None:
    """Masks are drawn and calls are seen outside the compiled region, else steps would use those of the first."""
    model = build()
    if in_place:
        model.compile(backend="eager")
    train("callback", batches(3), model=model if in_place else torch.compile(model, backend="eager"))
    same_weights(model, core(3))


def squared(sub_logits: Tensor, target: Tensor) -> Tensor:
    return (sub_logits.softmax(-1) - target).pow(2).sum(-1).mean()


@pytest.mark.parametrize("settings", [{"weight": 1.0}, {"sub_criterion": squared}], ids=lambda given: next(iter(given)))
def test_settings_of_the_callback_mean_what_they_mean_in_the_core(settings: Any) -> None:
    module = Plain()
    fit(module, batches(3), callback(**settings))
    same_weights(module.model, by_hand(batches(3), **settings))


def test_masks_follow_seed_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else two runs with two seeds draw the same masks."""
    for name in ("PL_GLOBAL_SEED", "PL_SEED_WORKERS"):
        monkeypatch.setenv(name, "0")  # so that what is there now comes back after the test
    L.seed_everything(SEED, verbose=False)
    module = Plain()
    fit(module, batches(3), callback(seed=None))
    same_weights(module.model, core(3))


class Logging(Plain):
    """Logs a loss under the callback's name, in a way of its own."""

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        loss = super().training_step(batch, batch_idx)
        self.log("loss_main", 2 * loss.detach(), on_epoch=True, batch_size=8)
        return loss


def test_with_log_false_the_names_are_the_users_own() -> None:
    logged = fit(Logging(), batches(1), callback(log=False)).callback_metrics
    assert "loss_sub" not in logged
    torch.testing.assert_close(logged["loss_main"], 2 * F.cross_entropy(build()(batches(1)[0][0]), batches(1)[0][1]))
    with pytest.raises(Exception, match=r"self.log\(loss_main, ...\)` twice"):
        fit(Logging(), batches(1), callback())


def test_a_barebones_trainer_logs_nothing() -> None:
    """There Lightning warns at each call of ``self.log``."""
    module = Plain()
    fit(module, batches(1), callback(), barebones=True, log_every_n_steps=None)
    same_weights(module.model, core(1))


class Accurate(Mixed):
    """Uses the logits of the main branch."""

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        out = self.two_branch(*batch)
        self.log("correct", (out.logits.argmax(1) == batch[1]).float().sum(), batch_size=8)
        return out.loss


def test_training_accuracy_with_the_mixin() -> None:
    module, ((x, y),) = Accurate(), batches(1)
    correct = (build()(x).argmax(1) == y).float().sum()
    assert correct > 0
    assert fit(module, [(x, y)]).callback_metrics["correct"] == correct
    same_weights(module.model, core(1))


def test_without_a_trainer_the_mode_of_the_module_decides() -> None:
    """Else a validation of one's own is masked."""
    module, ((x, y),) = Mixed(), batches(1)
    plain = F.cross_entropy(module.model(x), y)
    assert not torch.equal(module.two_branch_loss(x, y), plain)
    module.eval()
    assert torch.equal(module.two_branch_loss(x, y), plain)


class Copying(L.Callback):
    """Copies the module in the middle of training, as those do who keep the best one."""

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *rest: Any) -> None:
        torch.save(pl_module, saved := io.BytesIO())
        saved.seek(0)
        self.copies = copy.deepcopy(pl_module), torch.load(saved, weights_only=False)


@pytest.mark.parametrize("way", WAYS)
def test_copies_made_while_training_are_modules_of_their_own(way: str) -> None:
    """Else the module can't be saved, or what is done with the copy trains the original."""
    train(way, batches(1), copying := Copying())
    for each in copying.copies:
        assert each.training_step.__self__ is each
        same_weights(each.model, core(1))


def test_a_hook_of_the_users_acts_once_in_each_branch() -> None:
    """The sub branch repeats the call as it was made, not as the hook left it."""
    module, keyword = Plain(), ByKeywords(Keywords())
    module.model.register_forward_pre_hook(lambda _, args: (2 * args[0] + 1,))
    fit(module, batches(3), callback())
    same_weights(module.model, trained([(2 * x + 1, y) for x, y in batches(3)], updates=3))

    def in_place(_: nn.Module, args: Any, kwargs: Any) -> None:
        kwargs["pixel_values"] = 2 * kwargs["pixel_values"] + 1

    seen: list[Tensor] = []
    keyword.model.register_forward_pre_hook(in_place, with_kwargs=True)
    keyword.model.net[0].register_forward_pre_hook(lambda _, args: seen.append(args[0].detach()))
    fit(keyword, batches(1), callback(sub=masksub.MaskSub(0.0, unit=4)))
    assert torch.equal(*seen)


class Keywords(nn.Module):
    """Called and answering as the classifiers of transformers."""

    def __init__(self, answer: Any = SimpleNamespace) -> None:
        super().__init__()
        self.answer = answer
        self.net = nn.Sequential(nn.Conv2d(3, 4, 4, stride=4), nn.Flatten(), nn.Linear(64, 5))

    def forward(self, pixel_values: Tensor, labels: Tensor) -> Any:
        logits = self.net(pixel_values)
        return self.answer(logits=logits, loss=F.cross_entropy(logits, labels))


class ByKeywords(Plain):
    def training_step(self, batch: Any, batch_idx: int) -> Any:
        answer = self.model(pixel_values=batch[0], labels=batch[1])
        return {"loss": answer["loss"] if isinstance(answer, dict) else answer.loss, "more": 1}


@pytest.mark.parametrize("answer", [SimpleNamespace, dict])
def test_models_called_by_keywords_and_steps_that_return_a_dict(answer: Any) -> None:
    torch.manual_seed(0)
    model, ((x, y),) = Keywords(answer), batches(1)
    expected = copy.deepcopy(model)
    sub = masksub.MaskSub(0.5, unit=4)
    fit(ByKeywords(model), [(x, y)], callback(sub=sub))
    masksub.TwoBranchStep(expected, F.cross_entropy, sub=sub)(
        {"pixel_values": x, "labels": y}, y, generator=MasksOfUpdates(SEED)(0)
    )
    for parameter in expected.parameters():
        parameter.data -= LEARNING_RATE * parameter.grad
    same_weights(model, expected)


class Itself(L.LightningModule):
    """The classifier is the LightningModule; a teacher is asked without gradient, the loss has a further term."""

    def __init__(self) -> None:
        super().__init__()
        self.body = build()

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x)

    def training_step(self, batch: Any) -> Tensor:
        with torch.no_grad():
            self(batch[0])
        return F.cross_entropy(self(batch[0]), batch[1]) + 0.0 * sum(p.pow(2).sum() for p in self.parameters())

    configure_optimizers = Plain.configure_optimizers


def test_the_module_itself_as_the_classifier() -> None:
    module = Itself()
    module.body.patch_drop = nn.Identity()  # a place that the adapter of timm's own models would find by itself
    masksub.register(Itself, tokens="body.patch_drop", prefix=1)
    try:
        fit(module, batches(2), callback(model=""))
    finally:
        masksub.unregister(Itself)
    same_weights(module.body, core(2))


def spoilt(body: Any, **attributes: Any) -> Plain:
    """A module with another training step."""
    return type("Spoilt", (Plain,), {"training_step": body, **attributes})()


def twice(self: Any, batch: Any, batch_idx: int) -> Any:
    return F.cross_entropy(self.model(batch[0]), batch[1]) + self.model(batch[0]).pow(2).mean()


def never(self: Any, batch: Any, batch_idx: int) -> Any:
    return sum(p.sum() for p in self.model.parameters())


def headed(self: Any, batch: Any, batch_idx: int) -> Any:
    return F.cross_entropy(self.head(self.model(batch[0])), batch[1])


def learned(self: Any, batch: Any, batch_idx: int) -> Any:
    return F.cross_entropy(self.model(batch[0]), batch[1]) * self.head.bias.sum().exp()


def beside(self: Any, batch: Any, batch_idx: int) -> Any:
    self.model(batch[0])
    return sum(p.sum() for p in self.model.parameters())


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (twice, "called self.model 2 times"),
        (never, "called self.model 0 times"),
        (headed, r"parameters \(head.bias, head.weight\) between what self.model returned and itself, or beside it"),
        (learned, r"parameters \(head.bias\) between what self.model returned and itself, or beside it"),
        (beside, "does not depend on what self.model returned"),
    ],
)
def test_a_training_step_that_cannot_be_watched_is_refused_with_the_line_to_change(body: Any, message: str) -> None:
    """Else the sub branch would learn from something that is not the main branch."""
    module = spoilt(body)
    module.head = nn.Linear(5, 5)
    with pytest.raises(RuntimeError, match=message) as caught:
        fit(module, batches(1), callback())
    assert "self.two_branch_loss(x, y)" in str(caught.value)
    assert "training_step" not in vars(module)  # the module is as it was, also after an error


def test_the_training_step_is_put_back() -> None:
    module = Plain()
    fit(module, batches(1), callback())
    assert "training_step" not in vars(module)


class Wrapping(L.Callback):
    """Puts a wrapper of its own around ``training_step``, as profilers do."""

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        inner = pl_module.training_step
        self.calls, self.code = 0, inner.__code__

        @functools.wraps(inner)
        def training_step(*args: Any, **kwargs: Any) -> Any:
            self.calls += 1
            return inner(*args, **kwargs)

        pl_module.training_step = training_step


class BatchAlone(Plain):
    """Lightning then gives the batch without its number."""

    def training_step(self, batch: Any) -> Any:
        return F.cross_entropy(self.model(batch[0]), batch[1])


@pytest.mark.parametrize("kind", [Plain, BatchAlone])
@pytest.mark.parametrize("first", [True, False])
def test_a_wrapper_that_another_callback_puts_around_the_step(kind: type[Plain], first: bool) -> None:
    """Else ``fit`` ends in an AttributeError that names neither of the two."""
    module, wrapping = kind(), Wrapping()
    fit(module, batches(3), *((wrapping, callback()) if first else (callback(), wrapping)))
    assert wrapping.calls == 3
    same_weights(module.model, core(3))


def test_a_copy_made_while_training_can_be_trained_itself() -> None:
    copying = Copying()
    train("callback", batches(1), copying)
    for each in copying.copies:
        expected = Plain(copy.deepcopy(each.model))
        fit(expected, batches(1), callback())
        fit(each, batches(1), callback())
        same_weights(each.model, expected.model, tolerance=0)
        assert not torch.equal(each.model.head.weight, core(1).head.weight)


def test_a_second_callback_is_refused_by_the_name_of_the_module() -> None:
    """Each would take the other's loss for that of the main branch."""
    module = Plain()
    with pytest.raises(ValueError, match="Plain already has a MaskSubCallback in this training"):
        fit(module, batches(1), callback(), callback())
    assert "training_step" not in vars(module)
    fit(module, batches(1), callback())  # and nothing of it is left


def test_a_skipped_batch_is_skipped() -> None:
    module = spoilt(lambda self, batch, batch_idx: None)
    with pytest.warns(UserWarning, match="returned `None`"):
        fit(module, batches(1), callback())
    same_weights(module.model, build(), tolerance=0)


class Changing(MaskSubCallback):
    """Sets the weight while training, as a schedule does."""

    def __init__(self, weight: float) -> None:
        super().__init__("model", F.cross_entropy, sub=masksub.MaskSub(0.5), weight=0.0)
        self.then = weight

    def on_train_batch_start(self, *args: Any) -> None:
        self.settings.weight = self.then


def checkpointing() -> nn.Module:
    model = vit()
    model.set_grad_checkpointing()
    return model


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: fit(Manual(), batches(1), callback()), "self.two_branch_step"),
        (lambda: fit(Plain(), batches(1), callback(model="net")), r"model = 'net': Plain has no .*\['model'\]"),
        (lambda: fit(Plain(checkpointing()), batches(1), callback(sub=masksub.PathSub(0.5))), "gradient checkpointing"),
        (lambda: fit(torch.compile(Plain(), backend="eager"), batches(1), callback()), "compile the classifier alone"),
        (lambda: fit(torch.compile(Mixed(), backend="eager"), batches(1)), "compile the classifier alone"),
        (lambda: callback(weight=1.5), "weight = 1.5"),
        (lambda: callback(criterion=nn.MSELoss()), "does not know the criterion"),
        (lambda: callback(target="labels"), "target = 'labels'"),
        (lambda: callback(sub=masksub.CoSub(0.1)), "changes the main branch too"),
        (lambda: Mixed(weight=-1.0), "weight = -1.0"),
        (lambda: fit(Plain(), batches(1), Changing(2.0)), "weight = 2.0"),
        (lambda: Mixed().two_branch_step(*batches(1)[0]), "return self.two_branch_loss"),
    ],
)
def test_mistakes_are_named(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_mistakes_of_type_are_named() -> None:
    with pytest.raises(TypeError, match="give the classifier's name"):
        callback(model=build())
    with pytest.raises(RuntimeError, match=r"call self\.use_masksub"):
        type("Forgot", (MaskSubMixin, Plain), {})().two_branch_loss(*batches(1)[0])


class Reductions(L.Callback):
    """Counts the reductions of gradients, and the updates."""

    def __init__(self) -> None:
        self.count = self.updates = 0

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        def counted(state, bucket):  # type: ignore[no-untyped-def]  # DDP checks annotations by identity
            self.count += 1
            gradient = bucket.buffer().div_(2)
            return dist.all_reduce(gradient, async_op=True).get_future().then(lambda f: f.value()[0])

        trainer.strategy.model.register_comm_hook(None, counted)

    def on_before_optimizer_step(self, *args: Any) -> None:
        self.updates += 1


class Unreduced(Manual):
    """Accumulates without reducing but in the last part."""

    def training_step(self, batch: Any, batch_idx: int) -> None:
        last = (batch_idx + 1) % self.accumulation == 0
        with nullcontext() if last else self.trainer.strategy.block_backward_sync():
            super().training_step(batch, batch_idx)


def normed() -> nn.Module:
    torch.manual_seed(0)
    return resnet()


PARALLEL: dict[str, tuple[Any, int, int]] = {  # what is trained with which callbacks; updates, accumulation
    "callback": (lambda: (Plain(), callback()), UPDATES, 1),
    "callback, 4 parts": (lambda: (Plain(), callback()), 3, 4),
    "mixin": (lambda: (Mixed(),), UPDATES, 1),
    "manual": (lambda: (Manual(),), UPDATES, 1),
    "manual, 4 parts": (lambda: (Unreduced(accumulation=4),), 3, 4),
    "callback, batch norm": (lambda: (Plain(normed()), callback(sub=masksub.MaskSub(unit=4))), 2, 1),
    "manual, batch norm": (lambda: (Manual(normed(), sub=masksub.MaskSub(unit=4)),), 2, 1),
}


def worker(rank: int, folder: str, port: int) -> None:
    """One of two processes, started as torchrun starts them."""
    torch.set_num_threads(1)
    os.environ.update(
        RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2", LOCAL_WORLD_SIZE="2", GROUP_RANK="0",
        MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), TORCHELASTIC_RUN_ID="masksub", GLOO_SOCKET_IFNAME="lo",
    )  # fmt: skip
    results = {}
    for name, (make, updates, accumulation) in PARALLEL.items():
        module, *callbacks = make()
        strategy = DDPStrategy(process_group_backend="gloo", bucket_cap_mb=100)
        settings = {"accumulate_grad_batches": accumulation} if module.automatic_optimization else {}
        counted = Reductions()
        data = share(batches(updates * accumulation), rank, 2)
        fit(module, data, *callbacks, counted, strategy=strategy, devices=2, use_distributed_sampler=False, **settings)
        results[name] = (module.model.state_dict(), counted.count, counted.updates)
    try:
        fit(Manual(), share(batches(1), rank, 2), devices=2, strategy=DDPStrategy(
            process_group_backend="gloo", static_graph=True
        ), use_distributed_sampler=False)  # fmt: skip
    except ValueError as error:
        results["static graph"] = str(error)
    torch.save(results, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    """What each of the two processes got, all configurations in one start."""
    folder = tmp_path_factory.mktemp("ddp")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mp.spawn(worker, (str(folder), port), nprocs=2)
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


@pytest.mark.parametrize("name", PARALLEL)
def test_one_reduction_an_update_on_two_processes(results: Any, name: str) -> None:
    """Else each update waits for the network twice, or the processes drift apart."""
    _, updates, _ = PARALLEL[name]
    for rank in range(2):
        assert results[rank][name][1:] == (updates, updates)
    one, two = (results[rank][name][0] for rank in range(2))
    for key, value in one.items():
        if "running_" not in key:  # batch norm's statistics are each process's own between two forwards
            assert torch.equal(value, two[key]), key


def test_a_static_graph_is_refused_where_a_reduction_is_left_out(results: Any) -> None:
    """DDP would reduce in both backwards, or wait for ever."""
    assert "static graph can't skip a reduction" in results[0]["static graph"]


@pytest.mark.parametrize("name", [name for name in PARALLEL if "norm" not in name])
def test_two_processes_train_what_the_core_trains(results: Any, name: str) -> None:
    """Each draws its own masks, and what is learned is the mean."""
    _, updates, accumulation = PARALLEL[name]
    model = build()
    model.load_state_dict(results[0][name][0])
    same_weights(model, core(updates, accumulation, 2))


def test_the_other_package_of_lightning(monkeypatch: pytest.MonkeyPatch) -> None:
    """``pytorch_lightning`` has classes of its own; a script that imports it must get its callback."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        other = pytest.importorskip("pytorch_lightning")
    monkeypatch.delitem(sys.modules, "lightning.pytorch")
    spec = importlib.util.spec_from_file_location("masksub.integrations.lightning", integration.__file__)
    assert spec is not None and spec.loader is not None
    loaded = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, loaded)  # dataclasses look for their module here
    spec.loader.exec_module(loaded)
    monkeypatch.undo()

    class Net(other.LightningModule):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.model = build()

        training_step, configure_optimizers = Plain.training_step, Plain.configure_optimizers

    module = Net()
    masks = loaded.MaskSubCallback("model", F.cross_entropy, sub=masksub.MaskSub(0.5), seed=SEED)
    assert isinstance(masks, other.Callback)
    fit(module, batches(3), masks, trainer=other.Trainer)
    same_weights(module.model, core(3))


@pytest.mark.parametrize(
    ("installed", "message"),
    [
        ({}, r"needs lightning: pip install 'masksub\[lightning\]'"),
        ({"lightning": "2.4.0"}, "lightning.pytorch 2.4.0 is too old"),
        ({"lightning": "2.6.2", "pytorch-lightning": "2.6.1"}, "2.6.2 is installed, a malicious release"),
        ({"lightning": "2.6.3"}, "GHSA-w37p-236h-pfx3"),
    ],
)
def test_versions_that_must_not_be_loaded(installed: Any, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def version(name: str) -> str:
        if name not in installed:
            raise integration.importlib.metadata.PackageNotFoundError(name)
        return installed[name]

    monkeypatch.setattr(integration.importlib.metadata, "version", version)
    with pytest.raises(ImportError, match=message):
        integration._library()
