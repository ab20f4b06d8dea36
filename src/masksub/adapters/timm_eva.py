"""timm's Eva: EVA, EVA-02, DINOv3, Perception Encoder and ViTs with rotary embeddings.

The model offers ``patch_drop``, after the position embedding, and gathers the rotary embeddings by the indices that it
returns.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from masksub.core.adapter import Grid
from masksub.core.call import Call
from masksub.core.dropping import Choice, KeepTokens, TokenDrop
from masksub.core.intercept import Interception
from masksub.core.parts import embed_grid, loaded


class TimmEva(TokenDrop):
    """Tokens dropped at ``patch_drop``, which also tells the model which rotary embeddings to take."""

    name = "timm Eva"
    where = "patch_drop, after the position embedding; rotary embeddings gathered with the same indices"

    def matches(self, model: nn.Module) -> bool:
        """True for a timm Eva; timm is not imported for it."""
        return isinstance(model, loaded("timm.models.eva", ["Eva"]))

    def prefix(self, model: Any) -> int:
        """Class and register tokens."""
        return int(model.num_prefix_tokens)

    def grid(self, model: Any, call: Call, unit: int | None) -> Grid:
        """One cell a patch; ``unit`` is a multiple of the patch size in pixels."""
        return embed_grid(model.patch_embed, call.x, unit)

    def interceptions(self, model: Any, choice: Choice) -> Sequence[Interception]:
        """A KeepTokens in the place of ``patch_drop``."""
        return (Interception("", "patch_drop", lambda _: KeepTokens(choice, with_indices=True)),)
