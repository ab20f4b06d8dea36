"""Where each model family keeps its tokens: one file a family.

``FAMILIES`` is the table of those that come with the package, the most specific first. Adding a family is one file
and one row.
"""

from masksub.core.adapter import Adapter, register

from . import residuals as residuals
from .hf_ast import HfAst
from .hf_beit import HfBeit
from .hf_dinov3 import HfDinoV3
from .hf_swin import HfSwin
from .hf_text import HfTextDrop
from .hf_text_mask import HfTextReplace
from .hf_vit import HfViT
from .pixels import PixelBlocks
from .timm_beit import TimmBeit
from .timm_cait import TimmCait
from .timm_convit import TimmConViT
from .timm_deepseek_vit import TimmDeepseekViT
from .timm_eva import TimmEva
from .timm_gemma4_vit import TimmGemma4ViT
from .timm_hiera import TimmHiera
from .timm_naflexvit import TimmNaFlexViT
from .timm_packed import TimmPacked
from .timm_qwen3_vit import TimmQwen3ViT
from .timm_relpos import TimmRelPos
from .timm_tnt import TimmTnt
from .timm_vit import TimmViT
from .timm_volo import TimmVolo
from .timm_windows import TimmWindows
from .torchvision_vit import TorchvisionViT
from .torchvision_windows import TorchvisionWindows

__all__ = ["FAMILIES"]

FAMILIES: tuple[Adapter, ...] = (
    TimmViT(),
    TimmEva(),
    TimmBeit(),
    TimmRelPos(),
    TimmCait(),
    TimmNaFlexViT(),
    TimmHiera(),
    TimmDeepseekViT(),
    TimmQwen3ViT(),
    TimmGemma4ViT(),
    TimmConViT(),
    TimmTnt(),
    TimmVolo(),
    TimmPacked(),
    TimmWindows(),
    TorchvisionViT(),
    TorchvisionWindows(),
    HfViT(),
    HfDinoV3(),
    HfBeit(),
    HfAst(),
    HfSwin(),
    HfTextDrop(),
    HfTextReplace(),
    PixelBlocks(),
)

for _adapter in reversed(FAMILIES):
    register(_adapter)
