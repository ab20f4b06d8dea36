"""Which image comes when: the order of an epoch is a function of (seed, epoch) and is never stored.

Shape letters: N images of the source, E images of an epoch.
"""

from __future__ import annotations

import torch
from torch import Tensor

from masksub.core.seeds import generator

__all__ = ["epoch_order", "of_process"]


def epoch_order(
    usable: Tensor,
    *,
    images: int,
    seed: int,
    epoch: int,
    repeats: int = 1,
    shards: Tensor | None = None,
    window: int = 1,
) -> tuple[Tensor, Tensor]:
    """The images of an epoch, over all processes.

    Without shards, it is a random permutation. With shards, these are shuffled, and images are shuffled within windows
    of so many shards: what lies together on the disk is read at about the same time. That is less than a permutation:
    images of a batch come from one window (two at its border), so images that are alike should not have been written
    into the same shards, and classes must have been mixed when the shards were made. In each epoch other shards meet in
    a window.

    With repeats (Hoffer et al., "Augment Your Batch", 2020), each image comes ``repeats`` times in a row, and so few
    images are taken that the epoch is no longer than before.

    Args:
        usable: int64, indices of the source to draw from.
        images: E, at most as many as are usable.
        seed: the recipe's seed.
        epoch: number of the epoch.
        repeats: copies of each image.
        shards: (N,) number of the shard of each image of the source; None if it has none.
        window: shards whose images are shuffled together.

    Returns:
        Indices of the source (E,), and which copy of the image it is, from 0 (E,).
    """
    draws = generator(seed, "order", epoch)
    shuffled = usable[torch.randperm(len(usable), generator=draws)]
    if shards is not None:
        of_image = shards[shuffled]
        place = torch.randperm(int(shards.max()) + 1, generator=draws)  # of each shard in this epoch
        shuffled = shuffled[(place[of_image] // window).argsort(stable=True)]
    different = -(-images // repeats)
    indices = shuffled[:different].repeat_interleave(repeats)[:images]
    return indices, torch.arange(images) % repeats


def of_process(order: Tensor, *, batches: int, batch_size: int, repeats: int, rank: int, world: int) -> Tensor:
    """The part of one process, (batches, batch_size).

    Batch b of all processes together is a run of ``batch_size * world`` places. Each process takes a run of it; with
    repeats every ``world``-th place, so that the copies of an image go to different processes.
    """
    if repeats == 1:
        return order.view(batches, world, batch_size)[:, rank]
    return order.view(batches, batch_size, world)[:, :, rank]
