"""Image and spectrogram classifiers of transformers, built from small random configurations."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import torch
import transformers as hf
from torch import Tensor, nn

from tests.cases.case import CLASSES, NamedCase

BODY: dict[str, Any] = {
    "hidden_size": 24,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}
VIT: dict[str, Any] = {**BODY, "image_size": 16, "patch_size": 4}
SWIN: dict[str, Any] = {
    "image_size": 64,
    "patch_size": 4,
    "embed_dim": 12,
    "depths": [2, 2],
    "num_heads": [2, 2],
    "window_size": 4,
    "drop_path_rate": 0.0,
}


def build(kind: str, config: Any, attention: str | None = None) -> nn.Module:
    """A classifier in train mode, its configuration given the number of classes; attention as the library chooses."""
    config.num_labels = CLASSES
    model: nn.Module = getattr(hf, kind)._from_config(config, attn_implementation=attention)
    return model.train()


def case(
    kind: str, config: type, prefix: int, attention: str = "sdpa", unused: tuple[str, ...] = (), **changes: Any
) -> NamedCase:
    """A classifier of 16 x 16 images and 16 patches."""
    return NamedCase(
        lambda: build(kind, config(**{**VIT, **changes}), attention), (3, 16, 16), 16, "drop", prefix, frozenset(unused)
    )


def two_towers(kind: str, config: type, prefix: int, unused: tuple[str, ...] = (), **changes: Any) -> NamedCase:
    """A classifier on the vision tower of a model of images and texts."""
    vision = {**VIT, **changes}
    return NamedCase(
        lambda: build(kind, config(vision_config=vision)), (3, 16, 16), 16, "drop", prefix, frozenset(unused)
    )


class DinoV3Classifier(nn.Module):
    """A head as users put it around an encoder; the library has none for DINOv3."""

    def __init__(self, attention: str = "sdpa", **changes: Any) -> None:
        super().__init__()
        config = hf.DINOv3ViTConfig(**{**VIT, "num_register_tokens": 3, **changes})
        self.encoder = hf.DINOv3ViTModel._from_config(config, attn_implementation=attention)
        self.head = nn.Linear(48, CLASSES)

    def forward(self, pixel_values: Tensor) -> Tensor:
        tokens = self.encoder(pixel_values).last_hidden_state
        return self.head(torch.cat((tokens[:, 0], tokens[:, 4:].mean(dim=1)), dim=1))


def dinov3(attention: str = "sdpa", shape: tuple[int, int] = (16, 16)) -> NamedCase:
    units = shape[0] * shape[1] // 16
    unused = frozenset({"encoder.embeddings.mask_token"})
    return NamedCase(lambda: DinoV3Classifier(attention).train(), (3, *shape), units, "drop", 4, unused)


@dataclass(frozen=True)
class SpectrogramCase(NamedCase):
    """Patches overlap; a place belongs to the patch whose centre is nearest."""

    size: int = 8
    stride: int = 6

    def changed(self, x: Any, keep: Tensor, grid: tuple[int, int], *, visible: bool) -> Any:
        values = x[self.argument]  # (B, frames, bins)
        where = torch.zeros(values.shape, dtype=torch.bool)
        for frame, mel in itertools.product(range(values.shape[1]), range(values.shape[2])):
            row, col = (
                min(range(count), key=lambda n, at=at: abs(at + 0.5 - n * self.stride - self.size / 2))
                for at, count in ((mel, grid[0]), (frame, grid[1]))
            )
            where[:, frame, mel] = keep[:, row * grid[1] + col]
        noise = torch.randn(values.shape, generator=torch.Generator().manual_seed(2))
        return {self.argument: torch.where(where if visible else ~where, values + noise, values)}


def spectrogram() -> nn.Module:
    """AST with 3 x 5 patches of 8 x 8, one every 6 bins and frames; one bin and two frames are left over."""
    config = hf.ASTConfig(
        **BODY, patch_size=8, frequency_stride=6, time_stride=6, num_mel_bins=21, max_length=34
    )  # fmt: skip
    return build("ASTForAudioClassification", config)


BIAS = {"use_relative_position_bias": True}
SHARED = {"use_shared_relative_position_bias": True}
CLIP_UNUSED = ("vision_model.post_layernorm.weight", "vision_model.post_layernorm.bias")

CASES = {
    "hf vit": case("ViTForImageClassification", hf.ViTConfig, 1),
    "hf vit, eager": case("ViTForImageClassification", hf.ViTConfig, 1, "eager"),
    "hf vit-msn": case("ViTMSNForImageClassification", hf.ViTMSNConfig, 1),
    "hf ijepa, no prefix": case("IJepaForImageClassification", hf.IJepaConfig, 0),
    "hf deit": case("DeiTForImageClassification", hf.DeiTConfig, 2),
    "hf deit with teacher": case("DeiTForImageClassificationWithTeacher", hf.DeiTConfig, 2),
    "hf dinov2": case(
        "Dinov2ForImageClassification", hf.Dinov2Config, 1, unused=("dinov2.embeddings.mask_token",)
    ),
    "hf dinov2 with registers": case(
        "Dinov2WithRegistersForImageClassification", hf.Dinov2WithRegistersConfig, 4,
        unused=("dinov2_with_registers.embeddings.mask_token",), num_register_tokens=3,
    ),
    "hf dinov3": dinov3(),
    "hf dinov3, eager, not square": dinov3("eager", (12, 20)),
    "hf beit, a bias each block": case("BeitForImageClassification", hf.BeitConfig, 1, **BIAS),
    "hf beit, a bias each block, eager": case("BeitForImageClassification", hf.BeitConfig, 1, "eager", **BIAS),
    "hf beit, shared bias": case("BeitForImageClassification", hf.BeitConfig, 1, **SHARED),
    "hf beit, both biases and absolute": case(
        "BeitForImageClassification", hf.BeitConfig, 1, **BIAS, **SHARED, use_absolute_position_embeddings=True
    ),
    "hf data2vec": case("Data2VecVisionForImageClassification", hf.Data2VecVisionConfig, 1, **BIAS),
    "hf data2vec, both biases, eager": case(
        "Data2VecVisionForImageClassification", hf.Data2VecVisionConfig, 1, "eager", **BIAS, **SHARED
    ),
    "hf clip": two_towers("CLIPForImageClassification", hf.CLIPConfig, 1, CLIP_UNUSED),
    "hf metaclip 2": two_towers("MetaClip2ForImageClassification", hf.MetaClip2Config, 1, CLIP_UNUSED),
    "hf siglip": two_towers("SiglipForImageClassification", hf.SiglipConfig, 0, vision_use_head=False),
    "hf ast": SpectrogramCase(spectrogram, (34, 21), 15, "drop", 2, argument="input_values"),
    "hf swin": NamedCase(
        lambda: build("SwinForImageClassification", hf.SwinConfig(**SWIN)), (3, 64, 64), 4, "fill"
    ),
    "hf swin, eager": NamedCase(
        lambda: build("SwinForImageClassification", hf.SwinConfig(**SWIN), "eager"), (3, 64, 64), 4, "fill"
    ),
    "hf swin v2": NamedCase(
        lambda: build("Swinv2ForImageClassification", hf.Swinv2Config(**SWIN), "eager"), (3, 64, 64), 4, "fill"
    ),
    "hf convnext": NamedCase(
        lambda: build("ConvNextForImageClassification", hf.ConvNextConfig(hidden_sizes=[8, 8, 8, 8], depths=[1] * 4)),
        (3, 64, 64), 4, "pixels",
    ),
    "hf convnext v2": NamedCase(
        lambda: build(
            "ConvNextV2ForImageClassification", hf.ConvNextV2Config(hidden_sizes=[8, 8, 8, 8], depths=[1] * 4)
        ),
        (3, 64, 64), 4, "pixels",
    ),
    "hf resnet": NamedCase(
        lambda: build(
            "ResNetForImageClassification",
            hf.ResNetConfig(embedding_size=8, hidden_sizes=[8, 8], depths=[1, 1], layer_type="basic"),
        ),
        (3, 64, 64), 4, "pixels",
    ),
}  # fmt: skip
