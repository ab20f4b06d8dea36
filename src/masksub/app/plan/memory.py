"""Memory of one GPU, part by part."""

from __future__ import annotations

from dataclasses import dataclass

from masksub.app.settings import Recipe

from .shapes import Shapes

__all__ = ["Memory", "memory_of"]


@dataclass(frozen=True)
class Memory:
    """Bytes on one GPU at the fullest moment of a step.

    Attributes:
        weights: weights and buffers, fp32.
        gradients: fp32.
        buckets: DDP's buckets, a second copy of the gradients.
        optimizer: its state.
        average: the moving average.
        gathered: FSDP2: weights that are whole at one time, of two blocks and of what is in no block.
        copies: weights in the precision of the forward, kept by autocast until backward.
        activations: what a step holds for backward: of the larger branch in split mode, of both in joint mode.
        main: of these, the main branch's; in joint mode both branches'.
        sub: of these, the sub branch's; 0 in joint mode, where they are in ``main``.
        working: gradients of activations while backward runs: two tensors as large as the largest.
    """

    weights: float
    gradients: float
    buckets: float
    optimizer: float
    average: float
    gathered: float
    copies: float
    activations: float
    main: float
    sub: float
    working: float

    @property
    def total(self) -> float:
        """Sum of the parts."""
        return (
            self.weights
            + self.gradients
            + self.buckets
            + self.optimizer
            + self.average
            + self.gathered
            + self.copies
            + self.activations
            + self.working
        )


def memory_of(arm: str, recipe: Recipe, shapes: Shapes, *, gpus: int, batch: int, parts: int) -> Memory:
    """Memory of one of ``gpus`` with ``batch`` images at once and ``parts`` batches an update.

    Args:
        arm: "plain" for the same recipe without sub branch, else the recipe's own method.
        recipe: sharding, precision and moving average.
        shapes: bytes of one whole copy.
        gpus: how many.
        batch: images at once on each.
        parts: batches of each that make the update.
    """
    sharded = recipe.train.shard == "full" and gpus > 1
    split = gpus if sharded else 1
    # Between two backwards without reduction FSDP2 keeps the gradients whole.
    held = (shapes.plain_kept,) if arm == "plain" else shapes.held.kept
    several = parts > 1 or len(held) > 1
    scale = batch / shapes.batch
    kept = [scale * (each + shapes.block_kept) for each in held]
    return Memory(
        weights=shapes.weights / split,
        gradients=shapes.gradients * (1 / split + (1 if several else 0)) if sharded else shapes.gradients,
        buckets=shapes.gradients if gpus > 1 and not sharded else 0,
        optimizer=shapes.optimizer / split,
        average=0 if recipe.train.ema_decay is None else shapes.weights / split,
        gathered=shapes.rest + 2 * shapes.block if sharded else 0,
        copies=shapes.held.copies,
        activations=max(kept),
        main=kept[0],
        sub=kept[1] if len(kept) > 1 else 0,
        working=2 * scale * shapes.held.widest,
    )
