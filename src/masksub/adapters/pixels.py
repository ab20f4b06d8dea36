"""Any other image model: square blocks of the input are blanked. It saves nothing, but it works everywhere."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

from torch import Tensor, nn

from masksub.core.adapter import Grid, Masker, WrongInputError
from masksub.core.call import Call
from masksub.core.removal import blank_pixels

DEFAULT_UNIT = 32
"""Side of a block in pixels: 32 in the paper's experiments with convolutional and windowed models."""


_REASONS: dict[str, dict[str, str]] = {
    "all of its layers are convolutions or poolings over the grid, and these need the whole of it": {
        "timm.models": (
            "convmixer convnext cspnet cspnext densenet dla dpn efficientnet fasternet ghostnet hardcorenas hgnet "
            "hrnet inception_next inception_resnet_v2 inception_v3 inception_v4 lcnetv2 mambaout nasnet nfnet pnasnet "
            "rdnet regnet repghost repvit res2net resnest resnet resnetv2 rexnet selecsls senet sknet starnet tresnet "
            "vgg vovnet xception xception_aligned"
        ),
        "torchvision.models": (
            "alexnet convnext densenet efficientnet googlenet inception mnasnet mobilenetv2 mobilenetv3 regnet resnet "
            "shufflenetv2 squeezenet vgg"
        ),
        "transformers.models": (
            "bit convnext convnextv2 efficientnet hgnet_v2 mobilenet_v1 mobilenet_v2 poolformer pp_lcnet regnet "
            "resnet textnet"
        ),
    },
    "its blocks are convolutions, in some variants with attention inside, and these need the whole grid": {
        "timm.models": "byoanet byobnet mobilenetv3 mobilenetv5 mobilevit",
        "transformers.models": "mobilevit mobilevitv2",
    },
    "stages of convolutions come before its attention or between it, and these need the whole grid": {
        "timm.models": (
            "cpubone edgenext efficientformer efficientformer_v2 efficientvit_mit efficientvit_msra fastvit iformer "
            "lowformer nextvit shvit swiftformer visformer"
        ),
        "transformers.models": "cvt focalnet levit pvt pvt_v2 segformer swiftformer",
    },
    "early stages, or all, mix tokens by pooling or convolutions over the grid, and these need the whole of it": {
        "timm.models": "metaformer",
    },
    "its attention is among neighbours on the grid and needs the whole of it": {"transformers.models": "dinat"},
    "its tokens could be dropped, but masksub does not know the place; masksub.register names it": {
        "transformers.models": "hiera siglip2",
    },
    "its two grids of patches have no squares in common but quarters of the image": {"timm.models": "crossvit"},
    "its overlapping patches and the pools between its stages can't be cut into units": {"timm.models": "pit"},
    "it is an encoder without a classifier; those of the same module have their tokens dropped": {
        "timm.models": "deepseek_vit gemma4_vit qwen3_vit",
    },
    "convolutions stand around its state-space mixers, and these need the whole grid": {"timm.models": "efficientvim"},
    "convolutions follow a transform of the input to frequencies, and these need the whole grid": {
        "timm.models": "csatv2"
    },
}
"""Why, by the place of a library's models and the names of its modules."""
_UNKNOWN = (
    "nothing is known of this model but that it takes images; if it has tokens, masksub.register names the place where "
    "they can be dropped"
)


def _reason(model: nn.Module) -> str:
    """That of the model's class, or of the nearest class that it is derived from."""
    for kind in type(model).__mro__:
        place, _, name = kind.__module__.rpartition(".")
        if place.startswith("transformers.models."):
            place, _, name = place.rpartition(".")
        for reason, libraries in _REASONS.items():
            if name in libraries.get(place, "").split():
                return reason
    return _UNKNOWN


class PixelBlocks:
    """Blocks of pixels set to the value that means "nothing"."""

    name = "pixel blocks"
    how: Literal["pixels"] = "pixels"
    inside_blocks = False
    where = "the input"

    def matches(self, model: nn.Module) -> bool:
        """True for every model; whether its input is an image is seen at the forward."""
        return True

    def why(self, model: nn.Module) -> str:
        """Why nothing better is possible, or known."""
        return _reason(model)

    def prefix(self, model: nn.Module) -> int:
        """None: the input has pixels only."""
        return 0

    def grid(self, model: nn.Module, call: Call, unit: int | None) -> Grid:
        """Blocks of ``unit`` pixels, those at the right and lower edge possibly smaller."""
        unit, x = DEFAULT_UNIT if unit is None else unit, call.x
        if x.ndim != 4 or not x.is_floating_point():
            raise WrongInputError(
                f"{type(model).__name__} has nothing to mask: blanking pixels needs floating-point images "
                f"(B, C, H, W), not {x.dtype} of shape {tuple(x.shape)}"
            )
        return Grid(-(-x.shape[-2] // unit), -(-x.shape[-1] // unit))

    @contextmanager
    def masking(self, model: nn.Module, unit: int | None, fill: float | str) -> Iterator[Masker]:
        """The model is left alone; only its input changes."""
        if isinstance(fill, str):
            raise ValueError(
                f"fill = {fill!r}: {type(model).__name__} is masked in pixels and has no mask token; give a number"
            )
        size = DEFAULT_UNIT if unit is None else unit

        def mask(call: Call, keep: Tensor, count: int | None) -> Call:
            return call if count == keep.shape[1] else call.with_x(blank_pixels(call.x, keep, size, fill))

        yield mask
