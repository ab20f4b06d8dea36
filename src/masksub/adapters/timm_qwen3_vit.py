"""timm's classifier on Qwen3's vision encoder: learned and rotary positions, and perhaps a merger of 2 x 2 patches."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn

from masksub.core.adapter import Grid, patch_grid
from masksub.core.call import Call
from masksub.core.dropping import Choice, TokenDrop
from masksub.core.intercept import Interception, after
from masksub.core.parts import loaded
from masksub.core.removal import drop_positions


class TimmQwen3ViT(TokenDrop):
    """Tokens dropped from the patch embedding; learned positions and rotary embeddings are gathered.

    The encoder joins squares of patches where it has a merger; a unit is such a square then.
    """

    name = "timm Qwen3VitClassifier"
    where = "encoder.patch_embed; learned and rotary positions gathered with the same indices"

    def matches(self, model: nn.Module) -> bool:
        """True for a timm Qwen3VitClassifier; timm is not imported for it."""
        return isinstance(model, loaded("timm.models.qwen3_vit", ["Qwen3VitClassifier"]))

    def prefix(self, model: Any) -> int:
        """None."""
        return 0

    def side(self, model: Any) -> int:
        """Patches along each side of what the merger joins."""
        return 1 if model.encoder.merger is None else int(model.encoder.merger.merge_size)

    def grid(self, model: Any, call: Call, unit: int | None) -> Grid:
        """One cell a patch, or a square of patches that the merger joins; ``unit`` is a multiple of it in pixels."""
        embed, side = model.encoder.patch_embed, self.side(model)
        rows, cols = embed.dynamic_feat_size(tuple(call.x.shape[-2:]))
        tall, wide = (side * length for length in embed.patch_size)
        return patch_grid(call.x, (rows // side, cols // side), (tall, wide), unit)

    def interceptions(self, model: Any, choice: Choice) -> Sequence[Interception]:
        """The patch embedding (B, H, W, D) -> (B, K * side, side, D), as a tall image, and what gives it positions."""
        side = self.side(model)

        def drop(x: Tensor) -> Tensor:
            kept = choice.drop(x.flatten(1, 2))
            return x if choice.indices is None else kept.view(len(x), -1, side, x.shape[3])

        def place(original: Callable[[Tensor], tuple[Tensor, Tensor]]) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
            def pos_embed(x: Tensor) -> tuple[Tensor, Tensor]:
                if choice.indices is None:
                    return original(x)
                # Added to nothing on the whole grid, the positions are left alone.
                table, rope = original(x.new_zeros(1, *choice.cells, x.shape[3]))
                return x.flatten(1, 2) + drop_positions(table[0], choice.indices), choice.positions(rope)

            return pos_embed

        return (after("encoder.patch_embed", drop), Interception("encoder", "_pos_embed", place))
