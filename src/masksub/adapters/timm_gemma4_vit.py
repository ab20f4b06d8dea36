"""timm's classifier on Gemma 4's vision encoder, called with images; perhaps with a pooler of 3 x 3 patches."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from masksub.core.adapter import Grid, patch_grid
from masksub.core.call import Call
from masksub.core.dropping import Choice, TokenDrop
from masksub.core.intercept import Interception, after
from masksub.core.parts import loaded
from masksub.core.removal import cells_of_units


class TimmGemma4ViT(TokenDrop):
    """Tokens dropped from the patch embedding together with their coordinates, from which rotary embeddings follow.

    The encoder pools squares of patches if told so ("soft"); a unit is such a square then.
    """

    name = "timm Gemma4VitClassifier"
    where = "encoder.patch_embed, after the position embedding; coordinates dropped with the tokens"

    def matches(self, model: nn.Module) -> bool:
        """True for a timm Gemma4VitClassifier; timm is not imported for it."""
        return isinstance(model, loaded("timm.models.gemma4_vit", ["Gemma4VitClassifier"]))

    def prefix(self, model: Any) -> int:
        """None."""
        return 0

    def side(self, model: Any) -> int:
        """Patches along each side of what is pooled."""
        return int(model.encoder.pooler.pooling_kernel_size) if model.encoder.global_pool == "soft" else 1

    def grid(self, model: Any, call: Call, unit: int | None) -> Grid:
        """One cell a patch, or a square of patches that is pooled; ``unit`` is a multiple of it in pixels.

        Raises:
            ValueError: a batch of patches with coordinates, whose images have different numbers of them.
        """
        values = (*call.args, *call.kwargs.values())
        if any(isinstance(value, Mapping) for value in values) or len(values) > 1 or call.x.ndim != 4:
            raise ValueError(
                "Gemma4VitClassifier is masked by tokens for images (B, C, H, W) alone; in a batch of patches with "
                "coordinates inputs have different numbers of them, so none can be dropped evenly"
            )
        tall, wide = (self.side(model) * length for length in model.encoder.patch_embed.patch_size)
        return patch_grid(call.x, (call.x.shape[-2] // tall, call.x.shape[-1] // wide), (tall, wide), unit)

    def interceptions(self, model: Any, choice: Choice) -> Sequence[Interception]:
        """The patch embedding: tokens, their coordinates, and None, as no image is padded."""
        side = self.side(model)

        def drop(result: tuple[Tensor, Tensor, None]) -> tuple[Tensor, Tensor, None]:
            tokens, coordinates, padding = result
            return choice.drop(tokens), choice.drop(coordinates), padding

        def pool(original: Callable[..., Any]) -> Callable[..., Any]:
            def forward(tokens: Tensor, coordinates: Tensor, padding: None) -> Any:
                if choice.indices is not None:
                    # It bins tokens by coordinates into as many squares as there are: those of a tall image.
                    squares = torch.arange(tokens.shape[1] // side**2, device=tokens.device).unsqueeze(0)
                    cells = cells_of_units(squares, 1, side)  # (1, K), the order that tokens already have
                    tall = torch.stack((cells % side, cells // side), dim=2)  # x, y
                    coordinates = tall.expand(len(tokens), -1, -1)
                return original(tokens, coordinates, padding)

            return forward

        parts = [after("encoder.patch_embed", drop)]
        if side > 1:
            parts.append(Interception("encoder.pooler", "forward", pool))
        return parts
