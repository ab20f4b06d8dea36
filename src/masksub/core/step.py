"""The two-branch training step (paper, section 3, equations 2 to 4).

    z  = model(x)             L_main = criterion(z, y)
    z' = model(x; sub)        L_sub  = soft loss(z', target(z.detach()))
    L  = (1 - weight) * L_main + weight * L_sub

The target carries no gradient, so the main branch's backward can run, and free its activations, before the sub
branch's forward starts ("split"). "joint" builds L first and runs one backward. Both give the same gradient.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from .branches import Branch
from .checkpointing import recomputes
from .loss import TargetKind, relaxed_target, soft_loss, soft_loss_like
from .wrappers import sharded_modules, unwrap_parallel, without_gradient_sync

__all__ = ["StepOutput", "TwoBranchStep", "logits_of"]

Criterion = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class StepOutput:
    """What one step computed; all tensors are detached, but those of ``TwoBranchStep.joint``.

    A branch that the weight leaves out is not run: its loss and logits are None.
    """

    loss: Tensor
    loss_main: Tensor | None
    loss_sub: Tensor | None
    logits: Tensor | None
    sub_logits: Tensor | None


class TwoBranchStep:
    """Forward and backward of both branches; gradients are accumulated on the parameters.

    The optimizer step, zeroing gradients, clipping and schedules stay with the caller, so that the step fits any loop.

    Args:
        model: a classifier whose output is a tensor (B, C), or has it as ``logits``. May be wrapped in
            DistributedDataParallel or ``torch.compile``, or sharded by ``fully_shard`` (FSDP2).
        criterion: the recipe's loss, ``criterion(logits, y) -> scalar``; y is whatever it takes (labels, soft labels).
        sub: what the sub branch changes, for example ``MaskSub(0.5)`` or ``MaskSub(0.5) + PathSub(0.1)``. With
            ``CoSub`` both branches are drawn, and each learns from the other.
        weight: share of the sub branch in the loss, 0 <= weight <= 1; 0.5 in the paper. At 0 the step is the plain
            step, bit for bit, and the sub branch is not run. May be changed between steps.
        mode: "split" runs main forward, main backward, sub forward, sub backward: memory of one branch. "joint" runs
            both forwards and one backward.
        target: what the sub branch learns. "auto": the relaxed target that goes with ``criterion``; "softmax" or
            "sigmoid": that relaxed target; "labels": y itself through ``criterion`` (a comparator: with weight 1 this
            is masking in plain training, and the main branch is not run).
        sub_criterion: ``(sub_logits, target) -> scalar`` in place of the plain soft loss.

    Raises:
        ValueError: a value out of range, or ``target="auto"`` with a criterion that is not known, or
            split mode with a DistributedDataParallel of a static graph.
        TypeError: ``sub`` is no branch.
    """

    def __init__(
        self,
        model: nn.Module,
        criterion: Criterion,
        *,
        sub: Branch,
        weight: float = 0.5,
        mode: Literal["split", "joint"] = "split",
        target: TargetKind | Literal["auto", "labels"] = "auto",
        sub_criterion: Criterion | None = None,
    ) -> None:
        if mode not in ("split", "joint"):
            raise ValueError(f"mode = {mode!r}: the step runs 'split' or 'joint'")
        if target not in ("auto", "softmax", "sigmoid", "labels"):
            raise ValueError(f"target = {target!r}: one of 'auto', 'softmax', 'sigmoid', 'labels'")
        if not isinstance(sub, Branch):
            raise TypeError(f"sub = {sub!r}: what the sub branch changes is a branch, for example MaskSub(0.5)")
        parallel = getattr(model, "_orig_mod", model)
        if mode == "split" and isinstance(parallel, DistributedDataParallel) and parallel.static_graph:
            raise ValueError("DistributedDataParallel(static_graph=True) can't skip a reduction; use mode='joint'")
        if sub.mutual and target == "labels":
            raise ValueError(f"target = 'labels': the branches of {sub!r} learn from each other; use 'auto'")
        self.model = model
        self.criterion = criterion
        self.sub = sub
        self.weight = weight
        self.mode = mode
        self._kind: TargetKind | None
        self._sub_criterion: Criterion
        if target == "labels":
            self._kind, self._sub_criterion = None, criterion
        elif target == "auto":
            self._kind, self._sub_criterion = soft_loss_like(criterion)
        else:
            kind: TargetKind = target
            self._kind, self._sub_criterion = kind, functools.partial(soft_loss, kind=kind)
        if sub_criterion is not None:
            self._sub_criterion = sub_criterion

    @property
    def weight(self) -> float:
        """Share of the sub branch in the loss, 0 <= weight <= 1."""
        return self._weight

    @weight.setter
    def weight(self, value: float) -> None:
        if not 0.0 <= value <= 1.0:
            raise ValueError(f"weight = {value!r}: the share of the sub branch must satisfy 0 <= weight <= 1")
        self._weight = value

    @property
    def runs_main(self) -> bool:
        """Whether the main branch is run: it has a share of the loss, or the sub branch learns from it."""
        return self.weight < 1 or self._kind is not None

    @property
    def runs_sub(self) -> bool:
        """Whether the sub branch is run: it has a share of the loss."""
        return self.weight > 0

    def __call__(
        self,
        x: Any,
        y: Tensor,
        *,
        keep: Tensor | None = None,
        generator: torch.Generator | None = None,
        backward: Callable[[Tensor], Any] | None = None,
    ) -> StepOutput:
        """Run both branches and their backward.

        Side effects: gradients are added to the parameters'; batch-norm statistics see both branches; dropout and
        masks draw random numbers, main branch first. Under DistributedDataParallel and ``fully_shard`` gradients are
        reduced once, in the last backward.

        Args:
            x: the model's input, batch first: one tensor, or a mapping of keyword arguments.
            y: targets for ``criterion``.
            keep: fixes the visible units of the sub branch, boolean (B, L).
            generator: source of randomness of the masks.
            backward: called in place of ``loss.backward()``, for example ``accelerator.backward`` or
                ``lambda loss: scaler.scale(loss).backward()``. In split mode once for each branch. Always outside of
                autocast, as it is in a plain loop.

        Returns:
            StepOutput, detached.
        """
        backward = functools.partial(_backward, torch.Tensor.backward if backward is None else backward)
        if not self.runs_sub or self.sub.mutual or (self.mode == "joint" and self.runs_main):
            cuts = _Cuts() if self.runs_sub and sharded_modules(self.model) else None
            out = self._joint(x, y, keep, generator, cuts)
            backward(out.loss)
            if cuts is not None:
                cuts.backward(self.model)
            return _detached(out)

        loss_main = logits = None
        if self.runs_main:
            with without_gradient_sync(self.model):
                loss_main, logits = self._main(self.model, x, y)
                if self.weight < 1:
                    backward((1 - self.weight) * loss_main)
                # The graph of the main branch ends here; holding no reference frees what backward has not.
                loss_main, logits = loss_main.detach(), logits.detach()
        # Backward inside the branch: with gradient checkpointing it runs blocks again.
        with self.sub.applied(self.model, keep=keep, generator=generator):
            sub_logits = _logits(self.model, x)
            loss_sub = self._sub_criterion(sub_logits, y if logits is None else self._target(logits, y))
            backward(self.weight * loss_sub)
            loss_sub = loss_sub.detach()
        loss = loss_sub if loss_main is None else (1 - self.weight) * loss_main + self.weight * loss_sub
        return StepOutput(loss, loss_main, loss_sub, logits, sub_logits.detach())

    def loss(
        self, x: Any, y: Tensor, *, keep: Tensor | None = None, generator: torch.Generator | None = None
    ) -> Tensor:
        """The joint loss L of both branches with its graph, without backward: ``joint(...).loss``."""
        return self.joint(x, y, keep=keep, generator=generator).loss

    def joint(
        self, x: Any, y: Tensor, *, keep: Tensor | None = None, generator: torch.Generator | None = None
    ) -> StepOutput:
        """Both forwards without backward, for a trainer that runs one backward itself; whatever ``mode`` says.

        The activations of both branches are held until then. Under ``fully_shard`` that backward reduces gradients
        twice, once for each branch; the step itself doesn't.

        Args:
            x, y, keep, generator: as for the step itself.

        Returns:
            StepOutput whose tensors carry their graph; backward is that of ``loss``.
        """
        return self._joint(x, y, keep, generator)

    def _joint(
        self, x: Any, y: Tensor, keep: Tensor | None, generator: torch.Generator | None, cuts: _Cuts | None = None
    ) -> StepOutput:
        """Both forwards; the tensors of the result carry their graph, up to the logits where these are cut."""
        if self.sub.mutual and self.runs_sub:
            return self._mutual(x, y, generator, cuts)
        if self.runs_sub and recomputes(self.model) and self.sub.inside_blocks(self.model):
            self._refuse_recomputing()
        loss_main = logits = loss_sub = sub_logits = None
        if self.runs_main:
            loss_main, logits = self._main(self.model, x, y, cuts)
            if not self.runs_sub:
                return StepOutput(loss_main, loss_main, None, logits, None)
        # With both branches in one backward, DistributedDataParallel may see one forward only: a second one would
        # broadcast batch-norm buffers over those that the first still needs, and expect a second backward. The one it
        # sees must carry gradient: it prepares the reduction.
        model = unwrap_parallel(self.model) if self.runs_main and self.weight < 1 else self.model
        target = y if logits is None else self._target(logits, y)
        with self.sub.applied(model, keep=keep, generator=generator):
            sub_logits = _logits(model, x, cuts)
        loss_sub = self._sub_criterion(sub_logits, target)
        if self.weight == 1 or loss_main is None:
            return StepOutput(loss_sub, loss_main, loss_sub, logits, sub_logits)
        loss = (1 - self.weight) * loss_main + self.weight * loss_sub
        return StepOutput(loss, loss_main, loss_sub, logits, sub_logits)

    def _mutual(self, x: Any, y: Tensor, generator: torch.Generator | None, cuts: _Cuts | None) -> StepOutput:
        """Both branches drawn from ``sub``, each learning from the labels and from the other (see ``CoSub``)."""
        self._refuse_recomputing()
        both = []
        for model in (self.model, unwrap_parallel(self.model)):  # DistributedDataParallel sees one, as in _joint
            with self.sub.applied(model, generator=generator):
                both.append(_logits(model, x, cuts))
        (one, two), criterion = both, self._sub_criterion
        loss_main = (self.criterion(one, y) + self.criterion(two, y)) / 2
        loss_sub = (criterion(one, self._target(two, y)) + criterion(two, self._target(one, y))) / 2
        loss = (1 - self.weight) * loss_main + self.weight * loss_sub
        return StepOutput(loss, loss_main, loss_sub, one, two)

    def _refuse_recomputing(self) -> None:
        if recomputes(self.model):
            raise ValueError(
                f"{self.sub!r} with gradient checkpointing: backward runs blocks again, and in one backward for both "
                f"branches it can't know which branch a block belongs to. Use mode='split' (not for CoSub and "
                f"step.loss), or turn gradient checkpointing off"
            )

    def _main(self, model: nn.Module, x: Any, y: Tensor, cuts: _Cuts | None = None) -> tuple[Tensor, Tensor]:
        # With weight 1 the main branch is a teacher only.
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.weight < 1):
            logits = _logits(model, x, cuts)
            loss = self.criterion(logits, y)
        if self.weight == 1:
            # Up to torch 2.6 at least, autocast keeps casts of weights made without a graph, and the sub branch would
            # leave these weights without a gradient.
            torch.clear_autocast_cache()
        return loss, logits

    def _target(self, logits: Tensor, y: Tensor) -> Tensor:
        return y if self._kind is None else relaxed_target(logits, self._kind)


class _Cuts:
    """Logits cut off from their graphs, so that one loss of both branches can go back through them one by one.

    In one backward through two forwards, a module sharded by ``fully_shard`` would reduce its gradient after each.
    """

    def __init__(self) -> None:
        self._pairs: list[tuple[Tensor, Tensor]] = []

    def cut(self, logits: Tensor) -> Tensor:
        """The same values as a leaf, which takes the gradient of the loss."""
        if not logits.requires_grad:
            return logits
        leaf = logits.detach().requires_grad_()
        self._pairs.append((logits, leaf))
        return leaf

    def backward(self, model: nn.Module) -> None:
        """From the logits on, after the backward of the loss; gradients are reduced in the last one."""
        *before, (last, gradient) = ((logits, leaf.grad) for logits, leaf in reversed(self._pairs))
        with without_gradient_sync(model):
            for logits, each in before:
                _backward(functools.partial(torch.autograd.backward, grad_tensors=each), logits)
        _backward(functools.partial(torch.autograd.backward, grad_tensors=gradient), last)


def _backward(run: Callable[[Tensor], Any], tensor: Tensor) -> None:
    """Backward outside of autocast, which the step may be called in.

    Operations in backward would be cast by it, also those of parts that the model computes in float32 on purpose.
    """
    kind = tensor.device.type
    inside = torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)
    with torch.autocast(kind, enabled=False) if inside else nullcontext():
        run(tensor)


def logits_of(output: Any, whose: str) -> Tensor:
    """The logits in what a classifier returned.

    Args:
        output: a tensor, or an object or a mapping that has it as ``logits``.
        whose: the classifier's name, for the error.

    Raises:
        TypeError: there are none.
    """
    logits = output.get("logits") if isinstance(output, Mapping) else getattr(output, "logits", output)
    if not isinstance(logits, Tensor):
        raise TypeError(
            f"{whose} returned {type(output).__name__}; a two-branch step needs a tensor of logits or an object with "
            f".logits"
        )
    return logits


def _logits(model: nn.Module, x: Any, cuts: _Cuts | None = None) -> Tensor:
    logits = logits_of(model(**x) if isinstance(x, Mapping) else model(x), type(model).__name__)
    return logits if cuts is None else cuts.cut(logits)


def _detached(out: StepOutput) -> StepOutput:
    return StepOutput(
        out.loss.detach(),
        *(None if t is None else t.detach() for t in (out.loss_main, out.loss_sub, out.logits, out.sub_logits)),
    )
