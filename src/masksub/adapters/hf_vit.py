"""Hugging Face's vision transformers whose positions are all added before the first block.

ViT, ViT-MSN, I-JEPA, DeiT, DINOv2 with and without registers, CLIP, MetaCLIP 2, SigLIP: classifiers, encoders without
a head, and a user's own module around one of them. Tokens are dropped from the result of the embeddings.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from masksub.core.adapter import Grid
from masksub.core.call import Call
from masksub.core.dropping import Choice, TokenDrop, drop_after
from masksub.core.intercept import Interception
from masksub.core.parts import conv_grid, loaded, nested_part


@dataclass(frozen=True)
class _Family:
    """Classes of one module of transformers.models.

    Attributes:
        models: classifiers and encoders. Those that need the grid of patches afterwards are not among them.
        embeddings: of the module whose result is all tokens, positions added.
    """

    models: tuple[str, ...]
    embeddings: str


_FAMILIES: dict[str, _Family] = {
    "vit": _Family(("ViTForImageClassification", "ViTModel"), "ViTEmbeddings"),
    "vit_msn": _Family(("ViTMSNForImageClassification", "ViTMSNModel"), "ViTMSNEmbeddings"),
    "ijepa": _Family(("IJepaForImageClassification", "IJepaModel"), "IJepaEmbeddings"),
    "deit": _Family(
        ("DeiTForImageClassification", "DeiTForImageClassificationWithTeacher", "DeiTModel"), "DeiTEmbeddings"
    ),
    "dinov2": _Family(("Dinov2ForImageClassification", "Dinov2Model"), "Dinov2Embeddings"),
    "dinov2_with_registers": _Family(
        ("Dinov2WithRegistersForImageClassification", "Dinov2WithRegistersModel"), "Dinov2WithRegistersEmbeddings"
    ),
    "clip": _Family(
        ("CLIPForImageClassification", "CLIPVisionModel", "CLIPVisionModelWithProjection"), "CLIPVisionEmbeddings"
    ),
    "metaclip_2": _Family(
        ("MetaClip2ForImageClassification", "MetaClip2VisionModel", "MetaClip2VisionModelWithProjection"),
        "MetaClip2VisionEmbeddings",
    ),
    "siglip": _Family(("SiglipForImageClassification", "SiglipVisionModel"), "SiglipVisionEmbeddings"),
}
"""By module of transformers.models."""


class HfViT(TokenDrop):
    """Tokens dropped from the result of the embeddings, any number of prefix tokens."""

    name = "transformers ViT"
    where = "the result of the embeddings, after the position embedding"

    def _embeddings(self, model: nn.Module) -> tuple[str, Any] | None:
        """Path and module of the embeddings."""
        models: list[type] = []
        embeddings: list[type] = []
        for name, family in _FAMILIES.items():
            module = f"transformers.models.{name}.modeling_{name}"
            models += loaded(module, family.models)
            embeddings += loaded(module, [family.embeddings])
        closed = loaded("transformers.modeling_utils", ["PreTrainedModel"])
        return nested_part(model, tuple(models), tuple(embeddings), closed)

    def _known(self, model: nn.Module) -> tuple[str, Any]:
        found = self._embeddings(model)
        assert found is not None, "matches() was asked first"
        return found

    def matches(self, model: nn.Module) -> bool:
        """True for the classes of the table, and for a user's own module around one; nothing is imported for it."""
        return self._embeddings(model) is not None

    def prefix(self, model: Any) -> int:
        """Class, distillation and register tokens: those that the embeddings have."""
        _, embeddings = self._known(model)
        single = ("cls_token", "class_embedding", "distillation_token")
        registers = getattr(embeddings, "register_tokens", None)
        return sum(hasattr(embeddings, name) for name in single) + (0 if registers is None else registers.shape[1])

    def grid(self, model: Any, call: Call, unit: int | None) -> Grid:
        """One cell a patch; ``unit`` is a multiple of the patch size in pixels."""
        _, embeddings = self._known(model)
        return conv_grid(call.x, next(m for m in embeddings.modules() if isinstance(m, nn.Conv2d)), unit)

    def token_module(self, model: Any) -> str:
        """Positions are added before, and blocks take any number of tokens."""
        return self._known(model)[0]

    def interceptions(self, model: Any, choice: Choice) -> Sequence[Interception]:
        """The result of the embeddings goes through the choice."""
        return (drop_after(self._known(model)[0], choice),)
