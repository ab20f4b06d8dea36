"""timm's models that mix neighbours by cheap convolutions: the costly layers get the cells of visible units only."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn

from masksub.core.dropping import Choice
from masksub.core.intercept import Interception
from masksub.core.packing import PackedUnits, packable, packed_table
from masksub.core.parts import loaded

_ENTRIES = {
    ("convmixer", "ConvMixer"): "stem",
    ("convnext", "ConvNeXt"): "stem",
    ("edgenext", "EdgeNeXt"): "stem",
    ("inception_next", "MetaNeXt"): "stem",
    ("mambaout", "MambaOut"): "stem",
    ("metaformer", "MetaFormer"): "stem",
    ("rdnet", "RDNet"): "stem",
    ("swiftformer", "SwiftFormer"): "stem",
    ("twins", "Twins"): "patch_embeds.0",
    ("xcit", "Xcit"): "patch_embed",
}
"""By module of timm.models and class: the module that gets the image."""


def _entry(model: nn.Module) -> str | None:
    for (module, name), path in _ENTRIES.items():
        if isinstance(model, loaded(f"timm.models.{module}", [name])):
            return path
    return None


class TimmPacked(PackedUnits):
    """Kept units packed before the stem.

    Twins are taken where attention is global, MetaFormers where no pool mixes tokens. Where a convolution works on the
    wide layer of each MLP (PVT v2), laying the units out for it takes longer than is saved: such models are not here.
    """

    name = "timm hierarchical model by units"

    def matches(self, model: nn.Module) -> bool:
        """True for the classes of the table, as far as no layer needs the whole grid; timm is not imported for it."""
        if _entry(model) is None:
            return False
        windows = loaded("timm.models.twins", ["LocallyGroupedAttn"])
        return packable(model) and not any(isinstance(m, windows) for m in model.modules())

    def entry(self, model: Any) -> str:
        """The stem."""
        path = _entry(model)
        assert path is not None, "matches() was asked first"
        return path

    def stride(self, model: Any) -> int:
        """Pixels along each side of a cell of the last stage; a ConvMixer has one stage and doesn't list it."""
        stages = getattr(model, "feature_info", None)
        return int(stages[-1]["reduction"] if stages else model.stem[0].stride[0])

    def interceptions(self, model: Any, choice: Choice) -> Sequence[Interception]:
        """Overlapping convolutions, and position embeddings that are made for a height and a width."""

        def of_sizes(original: Callable[[int, int, int], Tensor]) -> Callable[[int, int, int], Tensor]:
            def forward(batch: int, height: int, width: int) -> Tensor:
                if choice.indices is None:
                    return original(batch, height, width)
                return packed_table(choice, lambda tall, wide: original(1, tall, wide), width)

            return forward

        def of_shape(original: Callable[[tuple[int, int, int]], Tensor]) -> Callable[[tuple[int, int, int]], Tensor]:
            def forward(shape: tuple[int, int, int]) -> Tensor:
                if choice.indices is None:
                    return original(shape)
                return packed_table(choice, lambda tall, wide: original((1, tall, wide)), shape[2])

            return forward

        makers: dict[type, Callable[[Any], Any]] = {
            **dict.fromkeys(loaded("timm.models.xcit", ["PositionalEncodingFourier"]), of_sizes),
            **dict.fromkeys(loaded("timm.models.edgenext", ["PositionalEncodingFourier"]), of_shape),
        }
        return [
            *super().interceptions(model, choice),
            *(
                Interception(path, "forward", makers[type(module)])
                for path, module in model.named_modules()
                if type(module) in makers
            ),
        ]
