"""What a case says of a model, and the inputs that go with it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from masksub.core.call import Call
from masksub.core.removal import spread

CLASSES = 5
Input = Tensor | Mapping[str, Any]


@dataclass(frozen=True)
class Case:
    """An image model: how to build it, its input (C, H, W), its units and how it is masked."""

    build: Callable[[], nn.Module]
    shape: tuple[int, ...]
    units: int
    how: str
    prefix: int = 0
    unused: frozenset[str] = frozenset()
    """Parameters that the model's own forward doesn't use, so that they get no gradient."""
    unit: int = 32
    """Side in pixels of a masked square, where cells are filled or pixels blanked."""

    def model(self) -> nn.Module:
        """The model with seeded noise on its weights, so that what starts at zero (position biases, scales) counts."""
        model = self.build()
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
        return model

    def inputs(self, batch: int = 4) -> tuple[Any, Tensor]:
        """A seeded batch (x, y); x as ``TwoBranchStep`` takes it."""
        generator = torch.Generator().manual_seed(1)
        x = torch.randn(batch, *self.shape, generator=generator)
        return x, torch.randint(CLASSES, (batch,), generator=generator)

    def changed(self, x: Any, keep: Tensor, grid: tuple[int, int], *, visible: bool) -> Any:
        """The input with other content in its visible, or in its masked, units."""
        size = (x.shape[-2], x.shape[-1])
        where = spread(keep, grid, size, None if self.how == "drop" else self.unit)
        noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(2))
        return torch.where(where if visible else ~where, x + noise, x)


@dataclass(frozen=True)
class NamedCase(Case):
    """A model that takes its input by name, as those of transformers do."""

    argument: str = "pixel_values"

    def inputs(self, batch: int = 4) -> tuple[Any, Tensor]:
        x, y = super().inputs(batch)
        return {self.argument: x}, y

    def changed(self, x: Any, keep: Tensor, grid: tuple[int, int], *, visible: bool) -> Any:
        return {**x, self.argument: super().changed(x[self.argument], keep, grid, visible=visible)}


def call_of(x: Input) -> Call:
    """The call of a model that ``TwoBranchStep`` makes for this input."""
    return Call((), x) if isinstance(x, Mapping) else Call((x,))


def logits_of(model: nn.Module, x: Input) -> Tensor:
    """Logits of a model for an input as ``TwoBranchStep`` takes it."""
    call = call_of(x)
    output = model(*call.args, **call.kwargs)
    logits = getattr(output, "logits", output)
    assert isinstance(logits, Tensor)
    return logits
