"""timm's classifier on DeepSeek's vision encoder: rotary embeddings, and perhaps an aligner of 3 x 3 patches."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn

from masksub.core.adapter import Grid, patch_grid
from masksub.core.call import Call
from masksub.core.dropping import Choice, TokenDrop
from masksub.core.intercept import Interception, after
from masksub.core.parts import loaded


class TimmDeepseekViT(TokenDrop):
    """Tokens dropped from the patch embedding, there being no positions to add; rotary embeddings are gathered.

    The encoder joins squares of patches where it has an aligner; a unit is such a square then.
    """

    name = "timm DeepseekVitClassifier"
    where = "encoder.patch_embed; rotary embeddings gathered with the same indices"

    def matches(self, model: nn.Module) -> bool:
        """True for a timm DeepseekVitClassifier; timm is not imported for it."""
        return isinstance(model, loaded("timm.models.deepseek_vit", ["DeepseekVitClassifier"]))

    def prefix(self, model: Any) -> int:
        """None."""
        return 0

    def side(self, model: Any) -> int:
        """Patches along each side of what the aligner joins."""
        return 1 if model.encoder.aligner is None else int(model.encoder.aligner.downsample_ratio)

    def grid(self, model: Any, call: Call, unit: int | None) -> Grid:
        """One cell a patch, or a square of patches that the aligner joins; ``unit`` is a multiple of it in pixels.

        Raises:
            ValueError: the aligner would pad its squares.
        """
        embed, side = model.encoder.patch_embed, self.side(model)
        rows, cols = embed.dynamic_feat_size(tuple(call.x.shape[-2:]))
        tall, wide = (side * length for length in embed.patch_size)
        if rows % side or cols % side:
            raise ValueError(
                f"an image of {rows} x {cols} patches can't be cut into the squares of {side} x {side} that the "
                f"aligner joins; use an image size that is a multiple of {tall} x {wide} px"
            )
        return patch_grid(call.x, (rows // side, cols // side), (tall, wide), unit)

    def interceptions(self, model: Any, choice: Choice) -> Sequence[Interception]:
        """The patch embedding (B, H, W, D) -> (B, K * side, side, D), as a tall image, and the rotary embeddings."""
        side = self.side(model)

        def drop(x: Tensor) -> Tensor:
            kept = choice.drop(x.flatten(1, 2))
            return x if choice.indices is None else kept.view(len(x), -1, side, x.shape[3])

        def gather(original: Callable[..., Tensor]) -> Callable[..., Tensor]:
            def get_embed(shape: Any) -> Tensor:
                if choice.indices is None:
                    return original(shape=shape)
                return choice.positions(original(shape=choice.cells))

            return get_embed

        return (after("encoder.patch_embed", drop), Interception("encoder.rope", "get_embed", gather))
