"""timm's Beit: BEiT and BEiT v2, with a relative position bias in each attention or one for all."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from masksub.core.adapter import Grid
from masksub.core.call import Call
from masksub.core.dropping import Choice, TokenDrop, drop_after
from masksub.core.intercept import Interception, after
from masksub.core.parts import embed_grid, loaded


class TimmBeit(TokenDrop):
    """Tokens dropped after the position embedding; the relative position biases of the kept pairs gathered."""

    name = "timm Beit"
    where = "pos_drop, after the position embedding; relative position biases gathered for the kept pairs"
    inside_blocks = True

    def matches(self, model: nn.Module) -> bool:
        """True for a timm Beit; timm is not imported for it."""
        return isinstance(model, loaded("timm.models.beit", ["Beit"]))

    def prefix(self, model: Any) -> int:
        """The class token."""
        return int(model.num_prefix_tokens)

    def grid(self, model: Any, call: Call, unit: int | None) -> Grid:
        """One cell a patch; ``unit`` is a multiple of the patch size in pixels."""
        return embed_grid(model.patch_embed, call.x, unit)

    def interceptions(self, model: Any, choice: Choice) -> Sequence[Interception]:
        """``pos_drop``, and whatever makes a bias."""
        found = [drop_after("pos_drop", choice)]
        if model.rel_pos_bias is not None:
            found.append(after("rel_pos_bias", choice.pairs))
        for number, block in enumerate(model.blocks):
            if block.attn.relative_position_bias_table is not None:
                found.append(after(f"blocks.{number}.attn", choice.pairs, "_get_rel_pos_bias"))
        return found
