"""Finding the parts of a model by their class, without importing the library that the class is from."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from typing import Any

from torch import Tensor, nn

from .adapter import Grid, patch_grid

__all__ = ["conv_grid", "embed_grid", "loaded", "nested_part", "only_part"]


def loaded(module: str, names: Iterable[str]) -> tuple[type, ...]:
    """Classes of a module, those that it has; none where nobody has imported it, for then no model is of them.

    Args:
        module: dotted name.
        names: of classes; other versions of the library may lack some.
    """
    found = sys.modules.get(module)
    classes = (getattr(found, name, None) for name in names)
    return tuple(kind for kind in classes if isinstance(kind, type))


def only_part(
    model: nn.Module, wanted: tuple[type, ...], closed: tuple[type, ...] = ()
) -> tuple[str, nn.Module] | None:
    """Path and module of the one part of a model that is of a wanted class; None if there is none, or several.

    It may be the model itself, with path "". A user's own module around one is looked into. What lies inside a part
    that was found is not a part of its own.

    Args:
        model: where to look.
        wanted: classes.
        closed: classes that are not looked into, as what they do with the parts inside is not known.
    """
    if not wanted:
        return None
    parts = list(_outermost(model, wanted, closed, ""))
    return parts[0] if len(parts) == 1 else None


def nested_part(
    model: nn.Module, outer: tuple[type, ...], inner: tuple[type, ...], closed: tuple[type, ...] = ()
) -> tuple[str, Any] | None:
    """Path and module of the first part of an ``inner`` class in the one part of an ``outer`` class; None without both.

    Typed as Any, for the caller knows which attributes its classes have. Arguments as for ``only_part``.
    """
    around = only_part(model, outer, closed)
    within = None if around is None else next(_outermost(around[1], inner, (), ""), None)
    if around is None or within is None:
        return None
    return ".".join(path for path in (around[0], within[0]) if path), within[1]


def _outermost(
    module: nn.Module, wanted: tuple[type, ...], closed: tuple[type, ...], path: str
) -> Iterator[tuple[str, nn.Module]]:
    if isinstance(module, wanted):
        yield path, module
    elif not isinstance(module, closed):
        for name, child in module.named_children():
            yield from _outermost(child, wanted, closed, f"{path}.{name}" if path else name)


def conv_grid(x: Tensor, projection: nn.Conv2d, unit: int | None) -> Grid:
    """The grid of an image model whose patches are cut by a convolution; arguments as for ``patch_grid``."""
    tall, wide = projection.kernel_size
    down, right = projection.stride
    cells = ((x.shape[-2] - tall) // down + 1, (x.shape[-1] - wide) // right + 1)
    return patch_grid(x, cells, (tall, wide), unit)


def embed_grid(embed: Any, x: Tensor, unit: int | None) -> Grid:
    """The grid of a patch embedding that can be asked for it: ``dynamic_feat_size``, ``feat_ratio`` or ``patch_size``.

    Args:
        embed: the module.
        x: the model's input.
        unit: side in pixels of the square that is masked as one; None for one patch.
    """
    ratio = embed.feat_ratio(as_scalar=False) if hasattr(embed, "feat_ratio") else embed.patch_size
    return patch_grid(x, embed.dynamic_feat_size(tuple(x.shape[-2:])), ratio, unit)
