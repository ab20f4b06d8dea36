"""torchvision's VisionTransformer: tokens dropped after the position embedding."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from masksub.core.adapter import Grid, patch_grid
from masksub.core.call import Call
from masksub.core.dropping import Choice, TokenDrop, drop_after
from masksub.core.intercept import Interception
from masksub.core.parts import loaded


class TorchvisionViT(TokenDrop):
    """Tokens dropped from the result of the encoder's dropout, which stands between the positions and the layers."""

    name = "torchvision VisionTransformer"
    where = "encoder.dropout, after the position embedding"

    def matches(self, model: nn.Module) -> bool:
        """True for torchvision's VisionTransformer; torchvision is not imported for it."""
        return isinstance(model, loaded("torchvision.models.vision_transformer", ["VisionTransformer"]))

    def prefix(self, model: Any) -> int:
        """The class token."""
        return 1

    def grid(self, model: Any, call: Call, unit: int | None) -> Grid:
        """One cell a patch; ``unit`` is a multiple of the patch size in pixels."""
        patch, x = int(model.patch_size), call.x
        return patch_grid(x, (x.shape[-2] // patch, x.shape[-1] // patch), (patch, patch), unit)

    def overlapping(self, model: Any) -> bool:
        """True for stems of several convolutions."""
        return not isinstance(model.conv_proj, nn.Conv2d)

    def token_module(self, model: Any) -> str:
        """Positions are added before, and blocks take any number of tokens."""
        return "encoder.dropout"

    def interceptions(self, model: Any, choice: Choice) -> Sequence[Interception]:
        """The result of the dropout goes through the choice."""
        return (drop_after("encoder.dropout", choice),)
