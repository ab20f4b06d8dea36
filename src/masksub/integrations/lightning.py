"""Lightning: MaskSub in a ``LightningModule``, with its ``training_step`` as it is or with one changed line.

``MaskSubCallback`` leaves the module alone. It watches the classifier while ``training_step`` runs, calls it once more
on the same input as the sub branch, and gives Lightning the joint loss (1 - weight) * L_main + weight * L_sub (paper,
section 3) for its one backward. That is right only where ``training_step`` calls the classifier once and leaves the
backward to Lightning; anything else is refused. ``MaskSubMixin`` is for those: ``self.two_branch_loss(x, y)``, or in
manual optimization ``self.two_branch_step(x, y)``, which holds the activations of one branch at a time.

Works with lightning 2.5.0 and newer, as ``lightning.pytorch`` or as ``pytorch_lightning`` (the one that is loaded
already; else the first that is installed). lightning 2.6.2 and 2.6.3 were malicious releases and are refused.
"""

from __future__ import annotations

import copy
import functools
import importlib
import importlib.metadata
import inspect
import os
import re
import sys
import types
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from masksub.core.branches import Branch
from masksub.core.checkpointing import recomputes
from masksub.core.intercept import swapped
from masksub.core.loss import TargetKind, relaxed_target, soft_loss, soft_loss_like
from masksub.core.seeds import MasksOfUpdates
from masksub.core.step import Criterion, StepOutput, TwoBranchStep, logits_of
from masksub.core.watching import calls_seen, graph
from masksub.core.wrappers import without_gradient_sync

__all__ = ["MaskSubCallback", "MaskSubMixin"]

_LOWEST = (2, 5)
_MALICIOUS = ("2.6.2", "2.6.3")
_INSTALL = "pip install 'masksub[lightning]'"


def _library() -> str:
    """Name of the package that trains: ``lightning.pytorch`` or ``pytorch_lightning``; looked at before it is loaded.

    Raises:
        ImportError: there is none, or it is too old, or a malicious release.
    """
    versions = {}
    for package, distribution in (("lightning.pytorch", "lightning"), ("pytorch_lightning", "pytorch-lightning")):
        try:
            versions[package] = importlib.metadata.version(distribution)
        except importlib.metadata.PackageNotFoundError:
            continue
    if not versions:
        raise ImportError(f"masksub.integrations.lightning needs lightning: {_INSTALL}")
    if (version := versions.get("lightning.pytorch")) in _MALICIOUS:
        raise ImportError(
            f"lightning {version} is installed, a malicious release (GHSA-w37p-236h-pfx3: importing it runs code that "
            f"steals credentials); it is not loaded. Replace it: pip install 'lightning>=2.5,!=2.6.2,!=2.6.3'"
        )
    package = next((name for name in versions if name in sys.modules), next(iter(versions)))
    if tuple(int(part) for part in re.findall(r"\d+", versions[package])[:2]) < _LOWEST:
        raise ImportError(f"{package} {versions[package]} is too old, masksub needs 2.5 or newer: {_INSTALL}")
    return package


if TYPE_CHECKING:
    from lightning.pytorch import Callback, LightningModule, Trainer

    _Mixed = LightningModule
else:
    Callback = importlib.import_module(_library()).Callback
    _Mixed = object

Target = TargetKind | Literal["auto", "labels"]

_ONE_LINE = (
    "Let training_step run both branches, with one changed line: class Net(MaskSubMixin, LightningModule) with "
    "self.use_masksub(...) at the end of __init__, and in training_step loss = self.two_branch_loss(x, y), or in "
    "manual optimization self.two_branch_step(x, y); without MaskSubCallback"
)


class _Settings:
    """What both ways in are told, and what they share: the classifier, the place of the masks, the log."""

    def __init__(
        self,
        model: str,
        criterion: Criterion,
        sub: Branch,
        weight: float,
        target: Target,
        sub_criterion: Criterion | None,
        seed: int | None,
        log: bool,
    ) -> None:
        if not isinstance(model, str):
            raise TypeError(
                f"model is a {type(model).__name__}; give the classifier's name in the LightningModule, for example "
                f"'model' for self.model, or '' for the LightningModule itself"
            )
        self.model, self.seed, self.log = model, seed, log
        # Of no model yet; it names wrong values now, not in the first batch.
        self._step = TwoBranchStep(
            nn.Identity(), criterion, sub=sub, weight=weight, target=target, sub_criterion=sub_criterion
        )
        self._masks: MasksOfUpdates | None = None
        self._trainer: weakref.ref[Any] | None = None

    def __getstate__(self) -> dict[str, Any]:
        # Copies and other processes start their masks by their own trainer.
        return {**vars(self), "_masks": None, "_trainer": None}

    @property
    def sub(self) -> Branch:
        """What the sub branch changes."""
        return self._step.sub

    @property
    def weight(self) -> float:
        """Share of the sub branch in the loss, 0 <= weight <= 1. May be changed between steps."""
        return self._step.weight

    @weight.setter
    def weight(self, value: float) -> None:
        self._step.weight = value

    def step(self, classifier: nn.Module) -> TwoBranchStep:
        """The core's step with the settings as they are now."""
        step = copy.copy(self._step)
        step.model = classifier
        return step

    def classifier(self, module: LightningModule) -> nn.Module:
        """The module that both branches call."""
        if getattr(module, "_compiler_ctx", None) is not None:
            raise ValueError(
                "the whole LightningModule is compiled, and masks would be compiled into its training_step; compile "
                "the classifier alone, for example self.model = torch.compile(self.model)"
            )
        try:
            return module.get_submodule(self.model)
        except AttributeError:
            names = [name for name, _ in module.named_children()]
            raise ValueError(
                f"model = {self.model!r}: {type(module).__name__} has no submodule of this name, but {names}; or '' "
                f"for the LightningModule itself"
            ) from None

    def generator(self, module: LightningModule) -> torch.Generator:
        """Where the next masks are drawn from: by seed, updates done so far and rank alone."""
        trainer = getattr(module, "_trainer", None)
        seed = int(os.environ.get("PL_GLOBAL_SEED", "0")) if self.seed is None else self.seed
        known = None if self._trainer is None else self._trainer()
        # A training by another trainer begins at update 0 again, and must not go on where the one before ended.
        if self._masks is None or self._masks.seed != seed or known is not trainer:
            self._masks = MasksOfUpdates(seed)
            self._trainer = None if trainer is None else weakref.ref(trainer)
        return self._masks(module.global_step, module.global_rank, module.device)

    def write(self, module: LightningModule, loss_main: Tensor | None, loss_sub: Tensor | None) -> None:
        """Log the losses of the branches that were run."""
        trainer = getattr(module, "_trainer", None)
        if not self.log or trainer is None or trainer.barebones:
            return
        for name, loss in (("loss_main", loss_main), ("loss_sub", loss_sub)):
            if loss is not None:
                module.log(name, loss.detach(), logger=bool(trainer.loggers))


class MaskSubCallback(Callback):
    """A Lightning callback that adds the sub branch to a classifier's ``training_step``, which stays as it is.

    The main branch and its loss are what ``training_step`` computes, with whatever is in it (mixup, label smoothing,
    further terms); the sub branch learns from the logits that the classifier gave it. Automatic optimization only: both
    branches are in one graph, and Lightning runs its one backward, under DDP with one reduction. Validation, test and
    prediction are not touched.

    Side effects: logs ``loss_main`` and ``loss_sub``; while ``Trainer.fit`` runs, ``training_step`` of the module is
    replaced. Masks depend on seed, ``global_step`` and rank alone: a training resumed between two updates draws what
    the unbroken one would have drawn.

    Args:
        model: name of the classifier in the LightningModule, as ``get_submodule`` takes it: "model" for ``self.model``,
            "" for the LightningModule itself where ``training_step`` calls ``self(x)``. Its output is logits (B, C) or
            an object with ``.logits``. May be compiled.
        criterion: the loss of ``training_step``, a function of (logits, y). It says only what the relaxed target is and
            how the sub branch's loss is averaged.
        sub: what the sub branch changes, for example ``MaskSub(0.5)``. Not ``CoSub``.
        weight: share of the sub branch in the loss, 0 <= weight <= 1; 0.5 in the paper. At 0 training is Lightning's
            own, bit for bit.
        target: "auto": the relaxed target that goes with ``criterion``; "softmax" or "sigmoid".
        sub_criterion: ``(sub_logits, target) -> scalar`` in place of the plain soft loss.
        seed: of the masks, the same on all processes. None: that of ``seed_everything``, or 0.
        log: whether the losses are logged.

    ``settings.weight`` and the rates of ``settings.sub`` may be changed between steps.

    Raises:
        ValueError: a value out of range or a criterion that is not known. When training starts: manual optimization, a
            compiled LightningModule, no such submodule, a second MaskSubCallback. At the first step: gradient
            checkpointing with a branch that reaches into blocks.
        RuntimeError: ``training_step`` calls the classifier not once, or its loss does not come from these logits.
    """

    def __init__(
        self,
        model: str,
        criterion: Criterion,
        *,
        sub: Branch,
        weight: float = 0.5,
        target: TargetKind | Literal["auto"] = "auto",
        sub_criterion: Criterion | None = None,
        seed: int | None = None,
        log: bool = True,
    ) -> None:
        if sub.mutual:
            raise ValueError(f"sub = {sub!r}: it changes the main branch too, which is training_step's. {_ONE_LINE}")
        if target not in ("auto", "softmax", "sigmoid"):
            raise ValueError(f"target = {target!r}: with MaskSubCallback one of 'auto', 'softmax', 'sigmoid'")
        self.settings = _Settings(model, criterion, sub, weight, target, sub_criterion, seed, log)
        if target == "auto":
            self._kind, soft = soft_loss_like(criterion)
        else:
            self._kind, soft = target, functools.partial(soft_loss, kind=target)
        self._sub_loss = sub_criterion or soft
        self._called = f"self.{model}" if model else "self"
        self._in_force = ExitStack()
        self._checked = False

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Check the module, and let the sub branch follow its ``training_step``."""
        if not pl_module.automatic_optimization:
            raise ValueError(f"{type(pl_module).__name__} runs its backward itself. {_ONE_LINE}")
        self.settings.classifier(pl_module)
        self._checked = False
        self._in_force.enter_context(_followed(self, pl_module))

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Put the module's own ``training_step`` back."""
        self._in_force.close()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Put the module's own ``training_step`` back."""
        self._in_force.close()

    def _both(self, module: LightningModule, plain: Callable[[], Any]) -> Any:
        """What ``training_step`` returns, with the joint loss in the place of its loss."""
        settings, classifier = self.settings, self.settings.classifier(module)
        weight = settings.weight
        with calls_seen(classifier) as calls:
            output = plain()
        loss_main = output.get("loss") if isinstance(output, Mapping) else output
        if not isinstance(loss_main, Tensor):  # None skips the batch; anything else Lightning refuses itself
            return output
        if weight == 0:
            settings.write(module, loss_main, None)
            return output
        if len(calls) != 1:
            raise RuntimeError(
                f"training_step of {type(module).__name__} called {self._called} {len(calls)} times with gradient; "
                f"MaskSubCallback can take its logits for the main branch only where it is called once. {_ONE_LINE}"
            )
        args, kwargs, main_output = calls[0]
        logits = logits_of(main_output, self._called)
        if not self._checked:
            self._check(module, classifier, loss_main, logits)
            self._checked = True
        with settings.sub.applied(classifier, generator=settings.generator(module)):
            sub_logits = logits_of(classifier(*args, **kwargs), self._called)
        loss_sub = self._sub_loss(sub_logits, relaxed_target(logits, self._kind))
        loss = loss_sub if weight == 1 else (1 - weight) * loss_main + weight * loss_sub
        settings.write(module, loss_main, loss_sub)
        return {**output, "loss": loss} if isinstance(output, Mapping) else loss

    def _check(self, module: LightningModule, classifier: nn.Module, loss: Tensor, logits: Tensor) -> None:
        """That what was seen is the main branch, as far as its graph tells."""
        if recomputes(classifier) and self.settings.sub.inside_blocks(classifier):
            raise ValueError(
                f"{self.settings.sub!r} with gradient checkpointing: backward runs blocks again, and in one backward "
                f"for both branches it can't know which branch a block belongs to. Turn it off, or use "
                f"MaskSubMixin.two_branch_step in manual optimization"
            )
        _, before = graph(logits.grad_fn)
        nodes, reached = graph(loss.grad_fn, stop=logits.grad_fn)
        if logits.grad_fn not in nodes:
            raise RuntimeError(
                f"the loss of training_step does not depend on what {self._called} returned. {_ONE_LINE}"
            )
        names = {id(parameter): name for name, parameter in module.named_parameters()}
        if after := sorted(names.get(key, "one of another module") for key in reached - before):
            raise RuntimeError(
                f"the loss of training_step has parameters ({', '.join(after[:3])}) between what {self._called} "
                f"returned and itself, or beside it. If these are a head, name the module that returns the logits as "
                f"model=, or '' for the LightningModule itself. Otherwise: {_ONE_LINE}"
            )


_FOLLOWED: weakref.WeakSet[nn.Module] = weakref.WeakSet()
"""Modules whose ``training_step`` a callback follows at present."""


@contextmanager
def _followed(callback: MaskSubCallback, module: LightningModule) -> Iterator[None]:
    """While active, ``training_step`` of the module is followed by the callback's sub branch.

    What stands in is a bound method, as Lightning and whatever wraps it once more expect one. A copy of the module,
    made meanwhile, has it too, bound to the copy, and runs the ``training_step`` of its class.

    Raises:
        ValueError: another callback follows it.
    """
    if module in _FOLLOWED:
        raise ValueError(
            f"{type(module).__name__} already has a MaskSubCallback in this training, and both would add a sub branch "
            f"to the same training_step; leave one of them"
        )
    plain = module.training_step
    steps = {module: lambda *args, **kwargs: callback._both(module, functools.partial(plain, *args, **kwargs))}
    own = inspect.unwrap(plain)
    own = getattr(own, "__func__", own)

    @functools.wraps(own)
    def training_step(self: Any, *args: Any, **kwargs: Any) -> Any:
        step = steps.get(self)
        return type(self).training_step(self, *args, **kwargs) if step is None else step(*args, **kwargs)

    # Lightning asks for the arguments before it calls, pickle for the name.
    vars(training_step).update(__signature__=inspect.signature(own))
    training_step.__name__ = "training_step"
    _FOLLOWED.add(module)
    try:
        with swapped(module, "training_step", types.MethodType(training_step, module)):
            yield
    finally:
        _FOLLOWED.discard(module)
        steps.clear()  # copies that live on don't hold what they were made of


class MaskSubMixin(_Mixed):
    """Two branches for a LightningModule that calls them in its ``training_step``: ``class Net(MaskSubMixin, ...)``.

    ``use_masksub`` in ``__init__`` says what to do. Nothing is added to parameters, buffers or hyperparameters.
    """

    masksub: _Settings | None = None
    """What ``use_masksub`` set; ``masksub.weight`` may be changed between steps."""

    def use_masksub(
        self,
        model: str,
        criterion: Criterion,
        *,
        sub: Branch,
        weight: float = 0.5,
        target: Target = "auto",
        sub_criterion: Criterion | None = None,
        seed: int | None = None,
        log: bool = True,
    ) -> None:
        """Say what the two branches are; in ``__init__``.

        Args:
            model: name of the classifier, as for ``MaskSubCallback``.
            criterion, sub, weight, target, sub_criterion: as for ``TwoBranchStep``.
            seed: of the masks, the same on all processes. None: that of ``seed_everything``, or 0.
            log: whether ``loss_main`` and ``loss_sub`` are logged.

        Raises:
            ValueError: a value out of range, or a criterion that is not known.
        """
        self.masksub = _Settings(model, criterion, sub, weight, target, sub_criterion, seed, log)

    def two_branch_loss(self, x: Any, y: Tensor) -> Tensor:
        """The loss of both branches with its graph: ``two_branch(x, y).loss``."""
        return self.two_branch(x, y).loss

    def two_branch(self, x: Any, y: Tensor) -> StepOutput:
        """Both forwards, for one backward by Lightning or by ``manual_backward``.

        In validation and test, and without a Trainer in eval mode, it is the main branch alone on whole inputs.

        Args:
            x: the classifier's input, batch first: one tensor, or a mapping of keyword arguments.
            y: targets for the criterion.

        Returns:
            StepOutput with its graph; backward is that of ``loss``. ``logits`` are the main branch's.
        """
        settings = self._settings()
        step = settings.step(settings.classifier(self))
        trainer = getattr(self, "_trainer", None)
        if not (self.training if trainer is None else trainer.training):
            step.weight = 0.0
            return step.joint(x, y)
        out = step.joint(x, y, generator=settings.generator(self))
        settings.write(self, out.loss_main, out.loss_sub)
        return out

    def two_branch_step(self, x: Any, y: Tensor, *, backward: Callable[[Tensor], Any] | None = None) -> StepOutput:
        """Forward and backward of the main branch, then of the sub branch, in manual optimization.

        Activations of one branch are held at a time. Under DDP the main branch's backward reduces nothing, so that
        there is one reduction.

        Args:
            x, y: as for ``two_branch``.
            backward: called in place of ``self.manual_backward``, once for each branch; with four micro-batches an
                update ``lambda loss: self.manual_backward(loss / 4)``.

        Returns:
            StepOutput, detached; gradients are added to the parameters'.

        Raises:
            ValueError: automatic optimization, or DDP with a static graph.
        """
        settings = self._settings()
        if self.automatic_optimization:
            raise ValueError(
                "two_branch_step runs backward, which Lightning does in automatic optimization: return "
                "self.two_branch_loss(x, y), or set self.automatic_optimization = False"
            )
        wrapper: Any = self.trainer.strategy.model
        step = settings.step(settings.classifier(self))
        # One way through the step runs two backwards; the first of them must not reduce.
        twice = 0 < step.weight < 1 and not step.sub.mutual
        if twice and getattr(wrapper, "static_graph", False):
            raise ValueError("DDP of a static graph can't skip a reduction; use self.manual_backward(two_branch_loss)")
        run, backwards = self.manual_backward if backward is None else backward, 0

        def one_backward(loss: Tensor) -> None:
            nonlocal backwards
            backwards += 1
            with without_gradient_sync(wrapper) if twice and backwards == 1 else nullcontext():
                run(loss)

        out = step(x, y, generator=settings.generator(self), backward=one_backward)
        settings.write(self, out.loss_main, out.loss_sub)
        return out

    def _settings(self) -> _Settings:
        if self.masksub is None:
            raise RuntimeError(
                f"{type(self).__name__} has not been told what to mask: call self.use_masksub('model', criterion, "
                f"sub=MaskSub(0.5)) in __init__"
            )
        return self.masksub
