"""The imaginary library of CONTRIBUTING's worked examples: a model, and a trainer with a place to hook into.

``ViT`` is not known to masksub, and has what makes a family: a class token, and rotary positions that are looked up in
each block. ``Trainer`` divides by its accumulation and steps an optimizer, as trainers do.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Embed(nn.Module):
    """Patches of 8 x 8 pixels behind a class token, (B, 1 + L, 16)."""

    def __init__(self) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, 16, 8, stride=8)
        self.cls = nn.Parameter(torch.zeros(1, 1, 16))

    def forward(self, x: Tensor) -> Tensor:
        x = self.proj(x).flatten(2).transpose(1, 2)
        return torch.cat((self.cls.expand(len(x), -1, -1), x), dim=1)


class Rope(nn.Module):
    """Angles of the patches' positions, (L, 4): half of a head's width."""

    def forward(self, patches: int) -> Tensor:
        return torch.outer(torch.arange(patches) + 1.0, torch.tensor([1.0, 0.5, 0.25, 0.125]))


class Block(nn.Module):
    """Attention with two heads of width 8, and an MLP."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(16), nn.LayerNorm(16)
        self.qkv, self.proj = nn.Linear(16, 48), nn.Linear(16, 16)
        self.mlp = nn.Sequential(nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 16))

    def forward(self, x: Tensor, angles: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm1(x)).unflatten(-1, (3, 2, 8)).permute(2, 0, 3, 1, 4)  # (B, 2, N, 8) each
        y = F.scaled_dot_product_attention(_turned(q, angles), _turned(k, angles), v)
        x = x + self.proj(y.transpose(1, 2).flatten(2))
        return x + self.mlp(self.norm2(x))


def _turned(x: Tensor, angles: Tensor) -> Tensor:
    """Heads (B, 2, 1 + L, 8) whose patches are turned by their angles (L, 4)."""
    cls, (a, b) = x[:, :, :1], x[:, :, 1:].chunk(2, dim=-1)
    patches = torch.cat((a * angles.cos() - b * angles.sin(), a * angles.sin() + b * angles.cos()), dim=-1)
    return torch.cat((cls, patches), dim=2)


class ViT(nn.Module):
    """Two blocks; images of any size that 8 divides."""

    patch_size = 8

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.embed, self.rope = Embed(), Rope()
        self.blocks = nn.ModuleList(Block() for _ in range(2))
        self.head = nn.Linear(16, classes)

    def forward(self, x: Tensor) -> Tensor:
        angles = self.rope((x.shape[-2] // 8) * (x.shape[-1] // 8))
        x = self.embed(x)
        for block in self.blocks:
            x = block(x, angles)
        return self.head(x[:, 0])


class Trainer:
    """Trains a classifier; ``loss`` is what a subclass may replace."""

    def __init__(self, model: nn.Module, lr: float, accumulation: int = 1) -> None:
        self.model, self.accumulation, self.updates = model, accumulation, 0
        self.optimizer = torch.optim.SGD(model.parameters(), lr=lr)

    def loss(self, x: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(self.model(x), y)

    def fit(self, batches: Iterable[tuple[Tensor, Tensor]]) -> None:
        self.model.train()
        for number, (x, y) in enumerate(batches, start=1):
            (self.loss(x, y) / self.accumulation).backward()
            if number % self.accumulation == 0:
                self.optimizer.step()
                self.optimizer.zero_grad()
                self.updates += 1
