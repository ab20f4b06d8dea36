"""What every integration is held against: the core's step in a bare loop, on data, masks and weights that are given.

An integration's test trains the same ``build()`` on the same ``batches()`` with the same ``SEED`` in its own trainer
(plain SGD, ``LEARNING_RATE``, no shuffling) and compares the weights with those of ``trained``. If it fails, users of
that trainer train something else than MaskSub.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import masksub
from masksub.core.seeds import MasksOfUpdates
from tests.models import vit

SEED = 11
LEARNING_RATE = 0.05
BATCH = 8
PIXELS = 16

Batches = list[tuple[Tensor, Tensor]]


def build() -> nn.Module:
    """A small real ViT of timm: no dropout, no drop path."""
    torch.manual_seed(0)
    return vit()


def batches(count: int, size: int = BATCH) -> Batches:
    """Micro-batches in the order of training, (size, 3, PIXELS, PIXELS) and labels from 0 to 4."""
    draw = torch.Generator().manual_seed(3)
    return [
        (torch.randn(size, 3, PIXELS, PIXELS, generator=draw), torch.randint(5, (size,), generator=draw))
        for _ in range(count)
    ]


def share(data: Batches, rank: int, processes: int) -> Batches:
    """The micro-batches of one process: it takes every ``processes``-th row of each."""
    return [(x[rank::processes], y[rank::processes]) for x, y in data]


def trained(
    data: Batches,
    *,
    updates: int,
    accumulation: int = 1,
    processes: int = 1,
    weight: float = 0.5,
    model: nn.Module | None = None,
    criterion: Callable[[Tensor, Tensor], Tensor] = F.cross_entropy,
    seed: int = SEED,
) -> nn.Module:
    """The model after ``updates`` plain SGD updates by ``TwoBranchStep``, each of ``accumulation`` micro-batches.

    Several processes are played one after the other in this one: the gradient is the mean of theirs, and each draws
    masks as its rank would.

    Args:
        data: micro-batches, ``updates * accumulation`` of them, each with the rows of all processes.
        model: is trained in place; ``build()`` if None.
    """
    model = build() if model is None else model
    model.train()
    step = masksub.TwoBranchStep(model, criterion, sub=masksub.MaskSub(0.5), weight=weight)
    optimizer = torch.optim.SGD(model.parameters(), lr=LEARNING_RATE)
    masks = [MasksOfUpdates(seed) for _ in range(processes)]
    assert len(data) == updates * accumulation
    for update in range(updates):
        optimizer.zero_grad()
        for x, y in data[update * accumulation : (update + 1) * accumulation]:
            for rank, draw in enumerate(masks):
                (own,) = share([(x, y)], rank, processes)
                step(
                    *own,
                    generator=draw(update, rank),
                    backward=lambda loss: (loss / accumulation / processes).backward(),
                )
        optimizer.step()
    return model


def same_weights(one: nn.Module, other: nn.Module, tolerance: float = 1e-6) -> None:
    """Assert that two models have the same parameters and buffers, to within rounding of float32."""
    ours, theirs = one.state_dict(), other.state_dict()
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        assert torch.allclose(value, theirs[name], rtol=tolerance, atol=tolerance), (
            f"{name} differs by up to {(value - theirs[name]).abs().max():.3g}"
        )
