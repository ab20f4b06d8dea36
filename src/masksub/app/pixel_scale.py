"""Whether images are normalised as those were that given weights were trained on."""

from __future__ import annotations

import contextlib
import math
from pathlib import Path
from typing import Any

import timm

from .errors import InputError
from .fetch import HUB_PREFIXES
from .recipe import load_recipe
from .settings import Data

__all__ = ["other_pixel_scale"]

_NEAR = 1e-3
"""Less than a grey value of 255: not worth a word."""


def other_pixel_scale(name: str, weights: str, data: Data) -> str | None:
    """One line where the recipe's mean and standard deviation are not those that belong to its weights.

    A run has its own in its recipe. Of all other weights it is known of timm's published ones only; a file that was
    trained otherwise is the user's to know, so the line says where its figures are from. Grey images are not judged:
    published figures are those of colours.

    Args:
        name: timm's name of the model.
        weights: as the recipe's ``model.weights``.
        data: the recipe's.
    """
    if data.channels != 3:
        return None
    found = _of_run(Path(weights)) if weights != "pretrained" and Path(weights).is_dir() else _published(name, weights)
    own = _of_recipe(data)
    if found is None or all(
        math.isclose(a, b, abs_tol=_NEAR) for values in zip(found[1:], own) for a, b in zip(*values, strict=True)
    ):
        return None
    whose, mean, std = found
    return (
        f"model.weights = {weights!r}: {whose} data.mean = {_shown(mean)}, data.std = {_shown(std)}; this recipe has "
        f"{_shown(own[0])} and {_shown(own[1])}"
    )


def _of_recipe(data: Data) -> tuple[tuple[float, ...], tuple[float, ...]]:
    half = (0.5,) * data.channels
    return data.mean or half, data.std or half


def _of_run(run: Path) -> tuple[str, tuple[float, ...], tuple[float, ...]] | None:
    with contextlib.suppress(InputError):  # its weights may be of use although another version wrote its recipe
        data = load_recipe(run / "recipe.yaml").data
        return ("the run was trained with", *_of_recipe(data)) if data.channels == 3 else None
    return None


def _published(name: str, weights: str) -> tuple[str, tuple[float, ...], tuple[float, ...]] | None:
    if weights.startswith(HUB_PREFIXES):
        owner, _, hub_name = weights.partition(":")[2].partition("@")[0].partition("/")
        name = hub_name if owner == "timm" else name
    config: Any = None
    with contextlib.suppress(RuntimeError):  # a tag that timm does not know
        config = timm.get_pretrained_cfg(name)
    if config is None or not config.has_weights or len(config.mean) != 3:
        return None
    return f"timm's published weights of {name} go with", tuple(config.mean), tuple(config.std)


def _shown(values: tuple[float, ...]) -> str:
    return "[" + ", ".join(f"{value:.4g}" for value in values) + "]"
