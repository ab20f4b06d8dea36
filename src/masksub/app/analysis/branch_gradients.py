"""Gradients of the main and the sub branch beside each other, batch by batch.

Everything is measured with the model in eval mode: no dropout or drop path of the recipe, batch norm by its running
statistics. So the two branches differ by what the sub branch drops and by its target alone, a loss is the same each
time it is asked for, and no buffer changes. What the sub branch itself drops (tokens, values, paths) is dropped. Weight
decay is no part of it. The forward is in fp32 whatever the recipe's precision.

Shape letters: B batch, C classes, P weights that are trained.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn

from masksub.core.branches import Branch, MaskSub
from masksub.core.loss import relaxed_target, soft_loss_like
from masksub.core.seeds import generator, mix
from masksub.core.step import TwoBranchStep

__all__ = ["BranchLosses", "Loss", "compare_gradients", "evaluating", "gradient", "spread"]

Loss = Callable[[int], Tensor]
"""Loss of the batch of this number, a scalar with its graph."""
Target = Literal["relaxed", "labels"]


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Eval mode for all modules; each is put back to its own."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


class BranchLosses:
    """The losses of both branches on fixed batches, with fixed masks: the same number each time.

    Args:
        model: classifier with output (B, C), in eval mode.
        criterion: the recipe's loss.
        batches: pairs (x, y).
        seed: of masks and of whatever else the sub branch drops.

    The relaxed target is that of the weights as they are now. It stays when these are moved: it carries no gradient, so
    the surface that the sub branch goes down has it fixed.
    """

    def __init__(
        self, model: nn.Module, criterion: nn.Module, batches: Sequence[tuple[Tensor, Tensor]], seed: int
    ) -> None:
        self.model, self.criterion, self.batches, self.seed = model, criterion, batches, seed
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        self.kind, self._soft_loss = soft_loss_like(criterion)
        with torch.no_grad():
            self._targets = [relaxed_target(model(x), self.kind) for x, _ in batches]

    def main(self, number: int) -> Tensor:
        """Loss of the main branch: whole input, the recipe's criterion and labels."""
        x, y = self.batches[number]
        loss: Tensor = self.criterion(self.model(x), y)
        return loss

    def sub(self, branch: Branch, target: Target) -> Loss:
        """Loss of a sub branch that learns the main branch's output, or the labels."""

        def loss(number: int) -> Tensor:
            x, y = self.batches[number]
            with self._seeded(branch, number) as draws, branch.applied(self.model, generator=draws):
                logits = self.model(x)
            if target == "labels":
                return self.criterion(logits, y)  # type: ignore[no-any-return]
            return self._soft_loss(logits, self._targets[number])

        # The relaxed loss has its minimum where both outputs are equal: what is left there is rounding.
        idle = isinstance(branch, MaskSub) and branch.ratio == 0 and target == "relaxed"
        return (lambda number: 0 * loss(number)) if idle else loss

    def mutual(self, branch: Branch) -> tuple[Loss, Loss]:
        """Both losses of a method whose branches learn from each other: with the labels, and with each other."""
        step = TwoBranchStep(self.model, self.criterion, sub=branch, mode="joint")

        def at(weight: float, number: int) -> Tensor:
            step.weight = weight
            with self._seeded(branch, number) as draws:
                return step.loss(*self.batches[number], generator=draws)

        # The step's loss at 0.5 is half of each.
        return (lambda number: 2 * at(0.5, number) - at(1.0, number)), (lambda number: at(1.0, number))

    @contextmanager
    def _seeded(self, branch: Branch, number: int) -> Iterator[torch.Generator]:
        """A generator for masks and paths, and a seed for dropout, which has the global one only."""
        where = (self.seed, "analyze", "sub branch", repr(branch), number)
        device = self.batches[number][0].device
        with torch.random.fork_rng([] if device.type == "cpu" else [device]):
            torch.manual_seed(mix(*where))
            yield generator(*where)


def gradient(loss: Tensor, parameters: Sequence[Tensor]) -> Tensor:
    """Gradient as one vector (P,); ``.grad`` is left alone, and a weight that takes no part has 0."""
    parts = torch.autograd.grad(loss, parameters, allow_unused=True)
    return torch.cat([torch.zeros_like(p).flatten() if g is None else g.flatten() for g, p in zip(parts, parameters)])


def spread(values: Sequence[float]) -> dict[str, Any]:
    """Mean, standard deviation (n - 1; None for one value), lowest, highest, and each value."""
    mean = math.fsum(values) / len(values)
    squares = math.fsum((value - mean) ** 2 for value in values)
    std = math.sqrt(squares / (len(values) - 1)) if len(values) > 1 else None
    return {"mean": mean, "std": std, "low": min(values), "high": max(values), "each": list(values)}


class _Branch:
    """What is kept of one branch's gradients: no more than one vector, however many batches."""

    def __init__(self) -> None:
        self.norms: list[float] = []
        self.cosines: list[float] = []
        self.shares: list[float] = []
        self._directions: Tensor | None = None
        self._pointing = 0

    def add(self, own: Tensor, main: Tensor | None = None, weight: float = 0.0) -> None:
        norm = float(own.norm())
        self.norms.append(norm)
        if norm > 0:
            unit = own / norm
            self._directions = unit if self._directions is None else self._directions.add_(unit)
            self._pointing += 1
        if main is None:
            return
        length = float(main.norm())
        if norm > 0 and length > 0:
            self.cosines.append(max(-1.0, min(1.0, float(own.dot(main)) / norm / length)))
        update = (1 - weight) * main + weight * own
        size = float(update.dot(update))
        if size > 0:
            self.shares.append(weight * float(own.dot(update)) / size)

    def result(self) -> dict[str, Any]:
        found: dict[str, Any] = {"norm": spread(self.norms), "cosine_between_batches": None}
        n = self._pointing
        if self._directions is not None and n > 1:
            found["cosine_between_batches"] = (float(self._directions.norm()) ** 2 - n) / (n * (n - 1))
        return found

    def against_main(self) -> dict[str, Any]:
        return {
            **self.result(),
            "cosine_with_main": spread(self.cosines) if self.cosines else None,
            "share_of_update": spread(self.shares) if self.shares else None,
        }


def compare_gradients(
    main: Loss, subs: Mapping[str, Loss], weight: float, batches: int, parameters: Sequence[Tensor]
) -> dict[str, Any]:
    """Gradients of the main branch and of one or more sub branches on the same batches.

    Args:
        main: loss of the main branch.
        subs: losses of sub branches by name.
        weight: share of the sub branch in the loss, for ``share_of_update``.
        batches: how many there are.
        parameters: the weights to derive by.

    Returns:
        "main" and each name of ``subs``: ``norm`` (of the branch's own loss, not weighted) and
        ``cosine_between_batches`` (mean cosine of the gradients of different batches: 1 where all pull the same way,
        0 where they have nothing in common; None for one batch). For a sub branch also ``cosine_with_main`` (None
        where a gradient is 0) and ``share_of_update``: u = (1 - weight) * main + weight * sub is the update's
        gradient; the sub branch's part of it is weight * (sub . u) / |u|^2, the main branch's the rest to 1. ``norm``
        and the last two are given as by ``spread``, over batches.
    """
    kept = {"main": _Branch(), **{name: _Branch() for name in subs}}
    for number in range(batches):
        whole = gradient(main(number), parameters)
        kept["main"].add(whole)
        for name, loss in subs.items():
            kept[name].add(gradient(loss(number), parameters), whole, weight)
    return {name: each.result() if name == "main" else each.against_main() for name, each in kept.items()}
