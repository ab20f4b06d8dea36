"""Models of which only the input is masked."""

from __future__ import annotations

from torch import nn

from tests.cases.case import CLASSES, Case


def resnet() -> nn.Module:
    """A small timm ResNet with batch norm."""
    from timm.models.resnet import BasicBlock, ResNet

    return ResNet(BasicBlock, [1, 1, 1, 1], num_classes=CLASSES, channels=(8, 8, 8, 8))


def plain() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, CLASSES))


CASES = {
    "resnet": Case(resnet, (3, 64, 64), 4, "pixels"),
    "plain module": Case(plain, (3, 70, 70), 9, "pixels"),
}
