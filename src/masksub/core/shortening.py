"""Sentences without their masked tokens, and where those that are left came from.

Shape letters: B batch, N tokens of a padded sentence, K tokens of the longest sentence that is left, A attention heads.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .call import Call
from .masking import kept_indices
from .removal import drop_pairs
from .sentences import Sentences

__all__ = ["KeptTokens", "remaining", "take"]

TOKENWISE = ("token_type_ids", "task_type_ids", "position_ids")
"""Arguments with one value a token that are shortened along with the ids and the attention mask."""


class KeptTokens:
    """Which tokens of the current batch are left; set before each forward, outside whatever is compiled.

    Attributes:
        indices: (B, K), places in the whole sentence; None where all are left.
        positions: (B, K), what the model calls the positions of these places.
        length: N.
        reached: whether the forward came by a place where positions are needed.
    """

    def __init__(self) -> None:
        self.reached = False
        self.length = 0
        self.forget()

    def forget(self) -> None:
        """All tokens are left."""
        self.indices: Tensor | None = None
        self.positions: Tensor | None = None

    def shorten(self, sentences: Sentences, keep: Tensor, count: int | None, positions: Tensor) -> Call:
        """The call with the visible tokens only.

        Rows are moved to the left and padded to the longest. The first column stays even where it is padding, for heads
        read it. An attention mask is added where the call has none.

        Args:
            sentences: the call.
            keep: boolean (B, N), ``True`` = visible; special tokens stay whatever it says. On the meta device (B, L),
                of a grid whose units are the maskable tokens.
            count: visible units of each row; needed on the meta device only.
            positions: what the model would call the positions of all tokens, (B, N) or (1, N).
        """
        ids, attention = sentences.ids, sentences.attention
        if ids.is_meta:
            assert count is not None, "rows of a grid without padding are alike"
            left = ids.shape[1] - keep.shape[1] + count
            indices = torch.arange(left, device=ids.device).expand(ids.shape[0], -1)
            filled = torch.ones_like(indices, dtype=torch.bool)
        else:
            real = sentences.real
            stay = (keep | ~sentences.maskable) & real
            if torch.equal(stay, real):
                return sentences.unchanged()
            stay[:, 0] = True
            indices, filled = remaining(stay)
            attention = real.long() if attention is None else attention
        self.indices, self.positions, self.length = indices, take(positions, indices), ids.shape[1]
        changes = {name: take(v, indices) for name in TOKENWISE if isinstance(v := sentences.given.get(name), Tensor)}
        if attention is not None:
            changes["attention_mask"] = take(attention, indices) * filled.to(attention.dtype)
        changes["input_ids"] = take(ids, indices).masked_fill(~filled, sentences.pad or 0)
        return sentences.replaced(changes)

    def look_up(self, original: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        """In place of a table of positions: the rows of the tokens that are left."""

        def forward(positions: Tensor) -> Tensor:
            self.reached = True
            return original(positions if self.positions is None else self.positions)

        return forward

    def pairs(self, table: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        """Entries for pairs of the tokens that are left, (B, A, K, K).

        Args:
            table: from an input (1, N, 1), of which it looks at shape, type and device only, to (1, A, N, N).
            x: the model's hidden states, any shape.
        """
        assert self.indices is not None, "asked for only where tokens are dropped"
        return drop_pairs(table(x.new_empty(1, self.length, 1)), self.indices)

    def near(self, reach: int) -> Tensor:
        """Which of the tokens that are left are within reach of each other in the whole sentence: (B, 1, K, K)."""
        assert self.indices is not None, "asked for only where tokens are dropped"
        places = self.indices.unsqueeze(1)  # (B, 1, K)
        return (places.unsqueeze(3) - places.unsqueeze(2)).abs() <= reach


def remaining(stay: Tensor) -> tuple[Tensor, Tensor]:
    """Where the tokens that stay are found, each row moved to the left.

    Args:
        stay: boolean (B, N).

    Returns:
        Indices (B, K), ascending as far as a row's tokens go, and boolean (B, K), False where a shorter row is padded.
        Reads the length of the longest row, so that a GPU is waited for.
    """
    counts = stay.sum(dim=1, keepdim=True)
    longest = int(counts.max())
    return kept_indices(stay, longest), torch.arange(longest, device=stay.device) < counts


def take(values: Tensor, indices: Tensor) -> Tensor:
    """Entries of (B, N), or of (1, N) for all rows, at indices (B, K): (B, K)."""
    return values.expand(indices.shape[0], -1).gather(1, indices)
