"""torchvision's Swin, Swin V2 and MaxViT: masked cells of the patch embedding are filled."""

from __future__ import annotations

from typing import Any

from torch import nn

from masksub.core.filling import CellFill, Layout
from masksub.core.parts import loaded


def _is_swin(model: nn.Module) -> bool:
    return isinstance(model, loaded("torchvision.models.swin_transformer", ["SwinTransformer"]))


class TorchvisionWindows(CellFill):
    """The grid stays; masked cells take a constant or a learnable mask token."""

    name = "torchvision windowed transformer"
    where = "patch embedding"

    def matches(self, model: nn.Module) -> bool:
        """True for torchvision's SwinTransformer (also V2) and MaxVit; torchvision is not imported for it."""
        return _is_swin(model) or isinstance(model, loaded("torchvision.models.maxvit", ["MaxVit"]))

    def why(self, model: nn.Module) -> str:
        """Why tokens can't be dropped."""
        if _is_swin(model):
            return "attention in windows of fixed size needs the whole grid"
        return "convolutions and attention in windows need the whole grid"

    def embedding(self, model: Any) -> str:
        """Path of the patch embedding."""
        return "features.0" if _is_swin(model) else "stem"

    def layout(self, model: Any) -> Layout:
        """How the patch embedding lies."""
        return "NHWC" if _is_swin(model) else "NCHW"
