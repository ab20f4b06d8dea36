"""The rate of drop path by depth: timm's models let it rise linearly; DeiT III gives each block the same."""

from __future__ import annotations

from timm.layers import DropPath
from torch import nn

from .errors import InputError
from .settings import Recipe

__all__ = ["settle_drop_path"]


def settle_drop_path(model: nn.Module, recipe: Recipe) -> None:
    """Give each block the whole rate where the recipe says so (``model.drop_path: uniform``).

    So do the trainings of Touvron et al., "DeiT III: Revenge of the ViT" (arXiv 2204.07118).

    Args:
        model: of timm, as it was created with the linear rule.
        recipe: ``model.drop_path`` and ``model.kwargs.drop_path_rate``.

    Raises:
        InputError: no rate to give, or a model without timm's drop path.
    """
    if recipe.model.drop_path == "linear":
        return
    rate = recipe.model.kwargs.get("drop_path_rate")
    if rate is None:
        raise InputError("model.drop_path = 'uniform': it needs the rate, model.kwargs.drop_path_rate")
    found = [
        (module, name)
        for module in model.modules()
        for name, child in module.named_children()
        if name.startswith("drop_path") and isinstance(child, (DropPath, nn.Identity))
    ]
    if not found:
        raise InputError(
            f"model.drop_path = 'uniform': {recipe.model.name} has no drop path in its blocks; use 'linear'"
        )
    for module, name in found:
        setattr(module, name, DropPath(rate) if rate else nn.Identity())
