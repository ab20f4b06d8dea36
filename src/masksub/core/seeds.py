"""Random numbers that depend on where training stands and on nothing else.

Each random choice of a run (order of the data, augmentation, masks, dropout) is seeded by what it is for and by its
place: (seed, purpose, epoch or update, rank). There is no state to save, and a resumed run draws what the unbroken one
would have drawn.
"""

from __future__ import annotations

import hashlib

import torch

__all__ = ["MasksOfUpdates", "generator", "mix"]


def mix(*parts: int | str) -> int:
    """A number from 0 to 2**63 - 1 that depends on all parts, the same on every machine."""
    digest = hashlib.blake2b("/".join(str(part) for part in parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def generator(*parts: int | str, device: torch.device | str = "cpu") -> torch.Generator:
    """A generator seeded by ``mix(*parts)``."""
    return torch.Generator(device).manual_seed(mix(*parts))


class MasksOfUpdates:
    """Generators of masks for a trainer that says where it stands: one for each update and process.

    All parts of an accumulated update draw from the same generator, so that 4 x 16 inputs are masked as 1 x 64. Nothing
    is to be saved: a resumed training draws what the unbroken one would have drawn, if it goes on between two updates.

    Args:
        seed: of the training; the same on all processes, which still draw differently.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self._place: tuple[int, int, torch.device] | None = None
        self._generator: torch.Generator | None = None

    def __call__(self, update: int, rank: int = 0, device: torch.device | str = "cpu") -> torch.Generator:
        """The generator to draw the next masks from.

        Args:
            update: optimizer updates done so far. While it stays the same, so does the generator, which goes on.
            rank: of this process.
            device: where masks are drawn.
        """
        place = (update, rank, torch.device(device))
        if self._generator is None or place != self._place:
            self._generator = generator("mask", self.seed, update, 0, rank, device=device)
            self._place = place
        return self._generator
