"""timm's windowed and hierarchical transformers: masked cells of the patch embedding are filled."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Any

from torch import nn

from masksub.core.filling import CellFill, Layout


@dataclass(frozen=True)
class _Place:
    """Where a class keeps its patch embedding.

    Attributes:
        embedding: path of the module whose result is the embedding.
        layout: how the result lies.
        stride: side of a cell in pixels; None: what ``patch_embed.patch_size`` says.
        overlapping: a cell also sees pixels of its neighbours.
        why: why tokens can't be dropped.
    """

    embedding: str
    layout: Layout
    stride: int | None
    overlapping: bool
    why: str


_WINDOWS = "attention in windows of fixed size needs the whole grid"

_PLACES: dict[tuple[str, str], _Place] = {
    ("swin_transformer", "SwinTransformer"): _Place("patch_embed", "NHWC", None, False, _WINDOWS),
}
"""By module of timm.models and class."""


class TimmWindows(CellFill):
    """The grid stays; masked cells take a constant or a learnable mask token."""

    name = "timm windowed transformer"
    where = "patch embedding"

    def matches(self, model: nn.Module) -> bool:
        """True for the classes of the table and their subclasses; timm is not imported for it."""
        return self._place(model) is not None

    def _place(self, model: nn.Module) -> _Place | None:
        for (module, name), place in _PLACES.items():
            loaded = sys.modules.get(f"timm.models.{module}")
            if loaded is not None and isinstance(model, getattr(loaded, name)):
                return place
        return None

    def _known(self, model: nn.Module) -> _Place:
        place = self._place(model)
        assert place is not None, "matches() was asked first"
        return place

    def why(self, model: nn.Module) -> str:
        """Why tokens can't be dropped."""
        return self._known(model).why

    def embedding(self, model: Any) -> str:
        """Path of the patch embedding."""
        return self._known(model).embedding

    def layout(self, model: Any) -> Layout:
        """How the patch embedding lies."""
        return self._known(model).layout

    def stride(self, model: Any) -> int:
        """Side of a cell in pixels."""
        stride = self._known(model).stride
        return int(model.patch_embed.patch_size[0]) if stride is None else stride

    def overlapping(self, model: Any) -> bool:
        """True where the embedding is an overlapping convolution."""
        return self._known(model).overlapping
