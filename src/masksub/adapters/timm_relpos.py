"""timm's VisionTransformerRelPos: relative positions by a table or an MLP, in each attention or one for all."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from masksub.core.adapter import Grid
from masksub.core.call import Call
from masksub.core.dropping import Choice, TokenDrop
from masksub.core.intercept import Interception, after
from masksub.core.parts import embed_grid, loaded


class TimmRelPos(TokenDrop):
    """Tokens dropped after the patch embedding; the relative position biases of the kept pairs gathered.

    The model has no absolute positions: where no class token follows, the patches are all its tokens.
    """

    name = "timm VisionTransformerRelPos"
    where = "after patch_embed; relative position biases gathered for the kept pairs"
    inside_blocks = True

    def matches(self, model: nn.Module) -> bool:
        """True for a timm VisionTransformerRelPos; timm is not imported for it."""
        return isinstance(model, loaded("timm.models.vision_transformer_relpos", ["VisionTransformerRelPos"]))

    def prefix(self, model: Any) -> int:
        """The class token, where there is one."""
        return int(model.num_prefix_tokens)

    def grid(self, model: Any, call: Call, unit: int | None) -> Grid:
        """One cell a patch; ``unit`` is a multiple of the patch size in pixels."""
        return embed_grid(model.patch_embed, call.x, unit)

    def interceptions(self, model: Any, choice: Choice) -> Sequence[Interception]:
        """The patches before the class token joins them, and whatever makes a bias."""
        found = [after("patch_embed", lambda x: choice.drop(x, prefix=0))]
        for path, _ in model.named_modules():
            if path == "shared_rel_pos" or path.endswith(".attn.rel_pos"):
                found.append(after(path, choice.pairs, "get_bias"))
        return found
