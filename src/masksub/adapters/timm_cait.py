"""timm's Cait: class attention after blocks of patches alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from masksub.core.adapter import Grid
from masksub.core.call import Call
from masksub.core.dropping import Choice, TokenDrop, drop_after
from masksub.core.intercept import Interception
from masksub.core.parts import embed_grid, loaded


class TimmCait(TokenDrop):
    """Tokens dropped after the position embedding; the class token joins them in the last blocks."""

    name = "timm Cait"
    where = "pos_drop, after the position embedding"

    def matches(self, model: nn.Module) -> bool:
        """True for a timm Cait; timm is not imported for it."""
        return isinstance(model, loaded("timm.models.cait", ["Cait"]))

    def prefix(self, model: Any) -> int:
        """None where tokens are dropped."""
        return 0

    def grid(self, model: Any, call: Call, unit: int | None) -> Grid:
        """One cell a patch; ``unit`` is a multiple of the patch size in pixels."""
        return embed_grid(model.patch_embed, call.x, unit)

    def token_module(self, model: Any) -> str:
        """Positions are added before, and blocks take any number of tokens."""
        return "pos_drop"

    def interceptions(self, model: Any, choice: Choice) -> Sequence[Interception]:
        """``pos_drop``."""
        return (drop_after("pos_drop", choice),)
