"""timm's VisionTransformer and what shares its class or its place for dropping patches.

ViT, DeiT, DeiT-III, AugReg, CLIP, SigLIP, DINO, DINOv2, MAE weights; hybrids and ViTamin, whose stem is a network of
its own. ``patch_drop`` stands after the position embedding and before the first block.
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


class TimmViT(TokenDrop):
    """Tokens dropped at ``patch_drop``, any number of prefix tokens."""

    name = "timm VisionTransformer"
    where = "patch_drop, after the position embedding"

    def matches(self, model: nn.Module) -> bool:
        """True for a timm VisionTransformer or a subclass; timm is not imported for it."""
        return isinstance(model, loaded("timm.models.vision_transformer", ["VisionTransformer"]))

    def prefix(self, model: Any) -> int:
        """Class, distillation and register tokens."""
        return int(model.num_prefix_tokens)

    def grid(self, model: Any, call: Call, unit: int | None) -> Grid:
        """One cell a patch; ``unit`` is a multiple of the patch size in pixels."""
        return embed_grid(model.patch_embed, call.x, unit)

    def overlapping(self, model: Any) -> bool:
        """True for hybrids: their stem is a convolutional network."""
        return hasattr(model.patch_embed, "backbone")

    def token_module(self, model: Any) -> str | None:
        """``patch_drop``, if nothing else is dropped there."""
        return "patch_drop" if isinstance(model.patch_drop, nn.Identity) else None

    def interceptions(self, model: Any, choice: Choice) -> Sequence[Interception]:
        """A KeepTokens in the place of ``patch_drop``."""
        return (Interception("", "patch_drop", lambda _: KeepTokens(choice)),)
