"""One optimizer update: forward and backward of all its parts, and the step unless something is not finite."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator

import torch
from accelerate import Accelerator
from torch import Tensor

from masksub.core.branches import MaskSub
from masksub.core.seeds import MasksOfUpdates, mix
from masksub.core.wrappers import without_gradient_sync

from .gradients import clip, total_norm
from .guard import Guard, not_finite
from .processes import Processes
from .setup import Setup
from .sharding import share_statistics
from .state import Standing
from .window import BRANCHES, read_losses

__all__ = ["Updater"]


class Updater:
    """Makes updates, one after the other.

    Args:
        setup: model, optimizer and step.
        standing: goes forward by one with each update.
        accelerator: backward, precision and loss scale.
        processes: agree on what is not finite before any of them steps.
        guard: decides what then becomes of the update.
        why_stopped: makes the message of a training that ends, of what is not finite.

    Attributes:
        between: whether no part of an update is done, so that the weights and statistics are those of the last one.
    """

    def __init__(
        self,
        setup: Setup,
        standing: Standing,
        accelerator: Accelerator,
        processes: Processes,
        guard: Guard,
        why_stopped: Callable[[str], str],
    ) -> None:
        self._setup, self._standing, self._accelerator = setup, standing, accelerator
        self._processes, self._guard, self._why_stopped = processes, guard, why_stopped
        self._masks = MasksOfUpdates(setup.recipe.seed)
        self.between = True

    def __call__(self, stream: Iterator[tuple[Tensor, Tensor]], *flags: bool) -> list[bool]:
        """Make an update.

        Args:
            stream: batches of this process.
            flags: of this process, told to the others on the way.

        Returns:
            Each flag: whether it is set on any process.

        Raises:
            DivergedError: see ``Guard``.
        """
        setup, standing, seed = self._setup, self._standing, self._setup.recipe.seed
        began, waited, losses = time.perf_counter(), 0.0, []
        update, rank = standing.update, self._accelerator.process_index
        ratio, setup.step.weight = _, weight = setup.settings_at(update / setup.updates)
        if isinstance(setup.sub, MaskSub):
            setup.sub.ratio = ratio
        setup.schedule.step_update(update)
        setup.optimizer.zero_grad()
        masks = self._masks(update, rank, self._accelerator.device)
        self._guard.begin()
        for part in range(setup.parts):
            asked = time.perf_counter()
            x, y = next(stream)
            waited += time.perf_counter() - asked
            self.between = False
            torch.manual_seed(mix("step", seed, update, part, rank))  # dropout and drop path of both branches
            last = part == setup.parts - 1
            with contextlib.nullcontext() if last else without_gradient_sync(setup.model):
                out = setup.step(x, y, generator=masks, backward=self._backward)
            losses.append(read_losses(out))
            standing.images += len(x) * self._processes.count
            standing.spent["flops"] += setup.flops.per_image(ratio, weight) * len(x) * self._processes.count
        told = self._finish(losses, flags)
        standing.update += 1
        self.between = True
        took = standing.took = time.perf_counter() - began
        for key, value in (("seconds", took), ("train_seconds", took), ("data_seconds", waited)):
            standing.spent[key] += value
        return told

    def _backward(self, loss: Tensor) -> None:
        self._accelerator.backward(loss / self._setup.parts)

    def _finish(self, losses: list[dict[str, float]], flags: tuple[bool, ...]) -> list[bool]:
        """Step, if losses and gradients are finite on every process."""
        setup, standing, scaler = self._setup, self._standing, self._accelerator.scaler
        bad = not_finite(losses, BRANCHES)
        lost, *told = self._processes.any(bad is not None, *flags)
        if lost:
            whose = f"{bad} branch" if bad else "batch of another process"
            self._guard.refuse(f"the loss of the {whose}", self._why_stopped)
            return told
        self._accelerator.unscale_gradients()
        norm = total_norm(setup.model)
        finite = math.isfinite(norm)
        if not finite and scaler is None:
            self._guard.refuse("the norm of the gradient", self._why_stopped)
            return told
        if finite and setup.recipe.optim.clip_norm is not None:
            clip(setup.model, setup.recipe.optim.clip_norm, norm)
        setup.optimizer.step()  # in fp16 the scaler leaves it out where a gradient overflowed, and lowers its scale
        if not finite and scaler is not None:
            self._guard.overflowed(scaler.get_scale())
            return told
        self._guard.passed()
        share_statistics(setup.plain_model)
        for each in losses:
            standing.window.add(each)
        standing.window.gradient_norm = norm
        if setup.ema is not None:
            setup.ema.update(setup.plain_model, step=standing.update + 1)
        return told
