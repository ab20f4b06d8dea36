"""torchvision's classifiers, each as small as its class allows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn
from torchvision.models import ConvNeXt, DenseNet, MaxVit, MobileNetV2, ShuffleNetV2, SwinTransformer, VisionTransformer
from torchvision.models.convnext import CNBlockConfig
from torchvision.models.swin_transformer import PatchMergingV2, SwinTransformerBlockV2
from torchvision.models.vision_transformer import ConvStemConfig

from tests.cases.case import CLASSES, Case

VIT = {"image_size": 16, "patch_size": 4, "num_layers": 2, "num_heads": 2, "hidden_dim": 16, "mlp_dim": 32}
STEM = 2 * [ConvStemConfig(out_channels=8, kernel_size=3, stride=2)]
SWIN = {"patch_size": [4, 4], "embed_dim": 8, "depths": [2, 2], "num_heads": [1, 1], "window_size": [4, 4]}
MAXVIT = {
    "input_size": (64, 64), "stem_channels": 8, "partition_size": 4, "block_channels": [16, 16], "block_layers": [1, 1],
    "head_dim": 8, "stochastic_depth_prob": 0.2,
}  # fmt: skip


def vit(**kwargs: Any) -> Case:
    return Case(lambda: VisionTransformer(num_classes=CLASSES, **VIT, **kwargs), (3, 16, 16), 16, "drop", 1)


def case(how: str, build: Callable[..., nn.Module], *args: Any, **kwargs: Any) -> Case:
    """A model of 64 x 64 images: 4 units of 32 px."""
    return Case(lambda: build(*args, num_classes=CLASSES, **kwargs), (3, 64, 64), 4, how)


CASES = {
    "torchvision vit": vit(dropout=0.1),
    "torchvision vit, stem of convolutions": vit(conv_stem_configs=STEM),
    "torchvision swin": case("fill", SwinTransformer, **SWIN),
    "torchvision swin v2": case(
        "fill", SwinTransformer, block=SwinTransformerBlockV2, downsample_layer=PatchMergingV2, **SWIN
    ),
    "torchvision maxvit": case("fill", MaxVit, **MAXVIT),
    "torchvision convnext": case("pixels", ConvNeXt, [CNBlockConfig(8, 8, 1), CNBlockConfig(8, None, 1)]),
    "torchvision densenet": case("pixels", DenseNet, growth_rate=4, block_config=(1, 1), num_init_features=8),
    "torchvision mobilenet": case("pixels", MobileNetV2, inverted_residual_setting=[[1, 8, 1, 1], [2, 8, 2, 2]]),
    "torchvision shufflenet": case("pixels", ShuffleNetV2, [1, 1, 1], [8, 8, 8, 8, 16]),
}
