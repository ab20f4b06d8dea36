"""``masksub inspect``: a model by name, and what masksub would do with it."""

from __future__ import annotations

import functools
import operator

import torch

from masksub.core.branches import Branch
from masksub.core.inspect import Inspection, inspect
from masksub.core.methods import METHODS

from .errors import InputError
from .named_models import build_named

__all__ = ["inspect_named"]

VARIANTS = ("masksub", "dropsub", "pathsub", "cosub")


def inspect_named(
    name: str,
    *,
    variant: str = "masksub",
    ratio: float = 0.5,
    p: float = 0.1,
    unit: int | None = None,
    image_size: int | None = None,
    batch_size: int = 8,
    measure: bool = True,
) -> Inspection:
    """Build a model by its name and inspect it.

    Args:
        name: as ``build_named`` takes it.
        variant: of VARIANTS, several joined by "+".
        ratio: share of units that is masked.
        p: rate of dropout or drop path.
        unit: side in pixels of what is masked as one.
        image_size: side of an image in pixels, None for the model's own.
        batch_size: inputs of a measured step.
        measure: measure time and memory.

    Raises:
        InputError: a name, variant or value that is not there, or a model with nothing to mask.
    """
    parts = variant.split("+")
    for part in parts:
        if part not in VARIANTS:
            raise InputError(f"variant = {part!r}: one of {', '.join(VARIANTS)}, several joined by +")
    try:
        branches = [METHODS[part].branch(ratio, unit=unit, p=p) for part in parts]
        sub: Branch = functools.reduce(operator.add, branches)
    except ValueError as error:
        raise InputError(str(error)) from error
    model, example = build_named(name, image_size=image_size, batch=batch_size)
    try:
        return inspect(model, example, sub=sub, measure=measure)
    except ValueError as error:
        raise InputError(f"{name}: {error}") from error
    except RuntimeError as error:
        shape = tuple((example if isinstance(example, torch.Tensor) else next(iter(example.values()))).shape)
        raise InputError(f"{name} does not run on a batch of shape {shape}: {str(error).splitlines()[0]}") from error
