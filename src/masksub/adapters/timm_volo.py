"""timm's VOLO: tokens dropped between the stage of outlook attention and those of global attention."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from masksub.core.adapter import Grid, patch_grid
from masksub.core.call import Call
from masksub.core.dropping import Choice, TokenDrop
from masksub.core.intercept import Interception, after
from masksub.core.parts import loaded


class TimmVolo(TokenDrop):
    """Tokens dropped from the result of ``pos_drop``, which all blocks of global attention come after.

    The stem and the outlook attention before it, a small part of the cost, run on the whole grid; there the pixels of
    masked units are blanked.
    """

    name = "timm VOLO"
    where = "pos_drop, after the outlook attention and the position embedding"

    def matches(self, model: nn.Module) -> bool:
        """True for a timm VOLO with global attention after ``pos_drop`` alone; timm is not imported for it."""
        if not isinstance(model, loaded("timm.models.volo", ["VOLO"])):
            return False
        volo: Any = model
        local = loaded("timm.models.volo", ["Outlooker", "Downsample"])
        later = [module for part in list(volo.network)[2:] for module in part.modules()]
        return len(volo.network) > 2 and not any(isinstance(module, local) for module in later)

    def prefix(self, model: Any) -> int:
        """None where tokens are dropped."""
        return 0

    def grid(self, model: Any, call: Call, unit: int | None) -> Grid:
        """One cell a token after the first stage, usually of 16 px; ``unit`` is a multiple of that in pixels."""
        side, x = int(model.feature_info[-1]["reduction"]), call.x
        return patch_grid(x, (x.shape[-2] // side, x.shape[-1] // side), (side, side), unit)

    def overlapping(self, model: Any) -> bool:
        """True: the stem is made of convolutions, and outlook attention looks at neighbours."""
        return True

    def why(self, model: nn.Module) -> str:
        """Where the cost is."""
        return "global attention and MLP take any number of tokens; only the first stage needs the grid"

    def interceptions(self, model: Any, choice: Choice) -> Sequence[Interception]:
        """The result of ``pos_drop``: (B, H, W, D) -> (B, K, 1, D)."""

        def drop(x: Tensor) -> Tensor:
            kept = choice.drop(x.flatten(1, 2))
            return x if choice.indices is None else kept.unsqueeze(2)

        return (after("pos_drop", drop),)
