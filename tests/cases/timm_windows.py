"""timm's windowed transformers."""

from __future__ import annotations

import timm
from torch import nn

from tests.cases.case import CLASSES, Case


def swin() -> nn.Module:
    return timm.create_model(
        "swin_tiny_patch4_window7_224", img_size=64, embed_dim=12, depths=(1, 1, 1, 1), num_heads=(1, 1, 1, 1),
        window_size=2, num_classes=CLASSES,
    )  # fmt: skip


CASES = {"swin": Case(swin, (3, 64, 64), 4, "fill")}
