"""Random numbers that depend on where training stands and on nothing else.

Each random choice of a run (order of the data, augmentation, masks, dropout) is seeded by what it is for and by its
place: (seed, purpose, epoch or update, rank). There is no state to save, and a resumed run draws what the unbroken one
would have drawn.
"""

from __future__ import annotations

import hashlib

import torch

__all__ = ["generator", "mix"]


def mix(*parts: int | str) -> int:
    """A number from 0 to 2**63 - 1 that depends on all parts, the same on every machine."""
    digest = hashlib.blake2b("/".join(str(part) for part in parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def generator(*parts: int | str, device: torch.device | str = "cpu") -> torch.Generator:
    """A generator seeded by ``mix(*parts)``."""
    return torch.Generator(device).manual_seed(mix(*parts))
