"""A plain ``nn.Module`` of a user's own, supported by one call of ``masksub.register``."""

from __future__ import annotations

import torch
from torch import Tensor, nn

import masksub
from tests.cases.case import CLASSES, Case


class Embed(nn.Module):
    """Patches of 8 x 8 pixels, class token, position embedding."""

    def __init__(self, pixels: int, width: int = 16) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, width, 8, stride=8)
        self.cls = nn.Parameter(torch.zeros(1, 1, width))
        self.pos = nn.Parameter(0.02 * torch.randn(1, 1 + (pixels // 8) ** 2, width))
        self.unused = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        x = self.proj(x).flatten(2).transpose(1, 2)
        return torch.cat((self.cls.expand(len(x), -1, -1), x), dim=1) + self.pos


class OwnViT(nn.Module):
    """Knows nothing of masksub."""

    def __init__(self, pixels: int) -> None:
        super().__init__()
        self.embed = Embed(pixels)
        layer = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True, norm_first=True)
        self.blocks = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(16, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(self.embed(x))[:, 0])


masksub.register(OwnViT, tokens="embed", prefix=1, patch=8)

CASES = {"a user's own vit": Case(lambda: OwnViT(32), (3, 32, 32), 16, "drop", 1)}
