"""timm's windowed and hierarchical transformers: masked cells of the patch embedding are filled."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from masksub.core.filling import CellFill, Layout
from masksub.core.parts import loaded


@dataclass(frozen=True)
class _Place:
    """Where a class keeps its patch embedding.

    Attributes:
        embedding: path of the module whose result is the embedding, alone or as the first part of a tuple.
        layout: how the result lies.
        why: why tokens can't be dropped.
    """

    embedding: str
    layout: Layout
    why: str


_WINDOWS = "attention in windows of fixed size needs the whole grid"
_CONVOLUTIONS = "convolutions beside and between the blocks of attention need the whole grid"

_PLACES: dict[tuple[str, str], _Place] = {
    ("swin_transformer", "SwinTransformer"): _Place("patch_embed", "NHWC", _WINDOWS),
    ("swin_transformer_v2", "SwinTransformerV2"): _Place("patch_embed", "NHWC", _WINDOWS),
    ("swin_transformer_v2_cr", "SwinTransformerV2Cr"): _Place("patch_embed", "NCHW", _WINDOWS),
    ("maxxvit", "MaxxVit"): _Place("stem", "NCHW", _CONVOLUTIONS),
    ("nest", "Nest"): _Place(
        "patch_embed", "NCHW", "attention in blocks of the grid, joined by convolutions, needs the whole grid"
    ),
    ("twins", "Twins"): _Place(
        "patch_embeds.0", "NLC", "attention in windows and convolutions for positions need the whole grid"
    ),
    ("davit", "DaVit"): _Place(
        "stem", "NCHW", "attention in windows and convolutions for positions need the whole grid"
    ),
    ("mvitv2", "MultiScaleVit"): _Place(
        "patch_embed", "NLC", "queries, keys and values are pooled over the grid by convolutions"
    ),
    ("gcvit", "GlobalContextVit"): _Place("stem", "NCHW", _WINDOWS),
    ("tiny_vit", "TinyVit"): _Place(
        "patch_embed", "NCHW", "attention in windows, after a stage of convolutions, needs the whole grid"
    ),
    ("mlp_mixer", "MlpMixer"): _Place(
        "stem", "NLC", "the MLP over tokens has weights for each cell, so that their number is fixed"
    ),
    ("coat", "CoaT"): _Place("patch_embed1", "NLC", "convolutions for positions in every block need the whole grid"),
    ("levit", "Levit"): _Place(
        "stem", "NCHW", "attention biases and the thinning between stages go by the place on the whole grid"
    ),
    ("focalnet", "FocalNet"): _Place("stem", "NCHW", "focal modulation is made of convolutions over the whole grid"),
    ("hieradet_sam2", "HieraDet"): _Place("patch_embed", "NHWC", _WINDOWS),
    ("sequencer", "Sequencer2d"): _Place("stem", "NHWC", "recurrent layers run along whole rows and columns"),
    ("vision_transformer_sam", "VisionTransformerSAM"): _Place("patch_embed", "NHWC", _WINDOWS),
    ("pvt_v2", "PyramidVisionTransformerV2"): _Place(
        "patch_embed",
        "NHWC",
        "a convolution in each MLP needs the whole grid; laying kept units out for it saves no time",
    ),
    ("volo", "VOLO"): _Place("patch_embed", "NCHW", "outlook attention weighs the neighbours of each cell of the grid"),
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
            if isinstance(model, loaded(f"timm.models.{module}", [name])):
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
