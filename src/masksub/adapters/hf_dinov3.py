"""Hugging Face's DINOv3 ViT: rotary embeddings are made once for all blocks, and gathered here.

The library has no classifier of it: the encoder alone, or a user's own module around it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from masksub.core.adapter import Grid
from masksub.core.call import Call
from masksub.core.dropping import Choice, TokenDrop, drop_after
from masksub.core.intercept import Interception, after
from masksub.core.parts import conv_grid, loaded, nested_part

_MODULE = "transformers.models.dinov3_vit.modeling_dinov3_vit"
_MODELS = ("DINOv3ViTForImageClassification", "DINOv3ViTModel")


class HfDinoV3(TokenDrop):
    """Tokens dropped from the result of the embeddings; the blocks get the rotary embeddings of those that stay."""

    name = "transformers DINOv3"
    where = "the result of the embeddings; rotary embeddings gathered with the same indices"

    def _encoder(self, model: nn.Module) -> tuple[str, Any] | None:
        """Path and module of the encoder, which has the embeddings."""
        closed = loaded("transformers.modeling_utils", ["PreTrainedModel"])
        return nested_part(model, loaded(_MODULE, _MODELS), loaded(_MODULE, ["DINOv3ViTModel"]), closed)

    def _known(self, model: nn.Module) -> tuple[str, Any]:
        found = self._encoder(model)
        assert found is not None, "matches() was asked first"
        return found

    def matches(self, model: nn.Module) -> bool:
        """True for a DINOv3ViTModel, and for a user's own module around one; transformers is not imported for it."""
        return self._encoder(model) is not None

    def prefix(self, model: Any) -> int:
        """The class token and the registers."""
        return 1 + int(self._known(model)[1].embeddings.register_tokens.shape[1])

    def grid(self, model: Any, call: Call, unit: int | None) -> Grid:
        """One cell a patch; ``unit`` is a multiple of the patch size in pixels."""
        return conv_grid(call.x, self._known(model)[1].embeddings.patch_embeddings, unit)

    def interceptions(self, model: Any, choice: Choice) -> Sequence[Interception]:
        """The results of the embeddings and of the rotary embeddings: cosines and sines (L, D of a head)."""
        path, _ = self._known(model)
        path = f"{path}." if path else ""
        rotary = after(f"{path}rope_embeddings", lambda pair: tuple(choice.positions(table) for table in pair))
        return (drop_after(f"{path}embeddings", choice), rotary)
