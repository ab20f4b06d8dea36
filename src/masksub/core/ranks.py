"""Randomness that differs between the processes of a distributed training."""

from __future__ import annotations

import torch
import torch.distributed as dist

__all__ = ["rank_generator"]


def rank_generator(device: torch.device) -> torch.Generator | None:
    """Where several processes train together, a generator of this one's own; None elsewhere.

    Processes are usually seeded alike, and would all draw the same masks. The generator depends on the global one, of
    which it takes one number, and on the rank.
    """
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1 or device.type == "meta":
        return None
    seed = int(torch.randint(2**62, ()))
    return torch.Generator(device).manual_seed((seed + dist.get_rank() * 0x9E3779B97F4A7C15) % 2**63)
