"""timm's VisionTransformer and what shares its class: ViT, DeiT, DeiT-III, AugReg, CLIP, SigLIP, DINO, MAE weights.

These models offer a place for dropping patches, ``patch_drop``, after the position embedding and before the first
block. For the time of the sub branch a ``KeepTokens`` stands there.
"""

from __future__ import annotations

import sys
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

from torch import Tensor, nn

from masksub.core.adapter import Grid, Masker
from masksub.core.masking import KeepTokens, kept_indices


class TimmViT:
    """Tokens really dropped, any number of prefix tokens."""

    name = "timm VisionTransformer"
    how: Literal["drop"] = "drop"

    def __init__(self) -> None:
        # One KeepTokens a model, used again at each step: a new object would make torch.compile trace again.
        self._sites: weakref.WeakKeyDictionary[nn.Module, KeepTokens] = weakref.WeakKeyDictionary()

    def matches(self, model: nn.Module) -> bool:
        """True for a timm VisionTransformer or a subclass; timm is not imported for it."""
        module = sys.modules.get("timm.models.vision_transformer")
        return module is not None and isinstance(model, module.VisionTransformer)

    def grid(self, model: Any, x: Tensor, unit: int | None) -> Grid:
        """One cell a patch; ``unit`` is a multiple of the patch size in pixels."""
        if x.ndim != 4:
            raise ValueError(f"a vision transformer needs images (B, C, H, W), not an input of shape {tuple(x.shape)}")
        height, width = x.shape[-2:]
        rows, cols = model.patch_embed.dynamic_feat_size((height, width))
        if unit is None:
            return Grid(rows, cols)
        embed = model.patch_embed
        tall, wide = embed.feat_ratio(as_scalar=False) if hasattr(embed, "feat_ratio") else embed.patch_size
        if unit % tall or tall != wide:
            raise ValueError(
                f"unit = {unit} px: this model's patches are {tall} x {wide} px; use a multiple of that where they are "
                f"square, or None"
            )
        return Grid(rows, cols, block=unit // tall)

    @contextmanager
    def masking(self, model: Any, unit: int | None, fill: float) -> Iterator[Masker]:
        """Put a KeepTokens in the place of ``patch_drop``, and back what was there.

        The recipe's own patch dropout, if any, stays with the main branch.
        """
        drop = self._sites.setdefault(model, KeepTokens(model.num_prefix_tokens))
        previous, armed = model.patch_drop, False
        if previous is drop:
            raise RuntimeError(
                f"{type(model).__name__} is a masked sub branch already; applied() can't be nested on it"
            )
        drop.units = 0

        def mask(x: Tensor, keep: Tensor, count: int | None) -> Tensor:
            nonlocal armed
            if count is None:
                raise ValueError(
                    "keep has rows with different numbers of visible units; dropped tokens need equal rows"
                )
            armed, drop.reached, drop.units = True, False, keep.shape[1]
            drop.indices = None if count == keep.shape[1] else kept_indices(keep, count)
            return x

        model.patch_drop = drop
        try:
            yield mask
            if armed and not drop.reached:
                raise RuntimeError(
                    f"{type(model).__name__} ran without its patch_drop, so nothing was masked; its forward is not "
                    f"that of timm's VisionTransformer"
                )
        finally:
            model.patch_drop = previous
            drop.indices = None
