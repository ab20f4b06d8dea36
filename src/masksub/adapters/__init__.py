"""Where each model family keeps its tokens: one file a family.

``FAMILIES`` is the table of those that come with the package, the most specific first. Adding a family is one file
and one row.
"""

from masksub.core.adapter import Adapter, register

from .pixels import PixelBlocks
from .timm_eva import TimmEva
from .timm_vit import TimmViT
from .timm_windows import TimmWindows

__all__ = ["FAMILIES"]

FAMILIES: tuple[Adapter, ...] = (TimmViT(), TimmEva(), TimmWindows(), PixelBlocks())

for _adapter in reversed(FAMILIES):
    register(_adapter)
