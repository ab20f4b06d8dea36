"""Hugging Face's Swin, Swin V2 and Donut's Swin: masked cells of the patch embedding are filled."""

from __future__ import annotations

from typing import Any

from torch import nn

from masksub.core.filling import CellFill, Layout
from masksub.core.parts import loaded, nested_part

_FAMILIES = {
    "transformers.models.swin.modeling_swin": "Swin",
    "transformers.models.swinv2.modeling_swinv2": "Swinv2",
    "transformers.models.donut.modeling_donut_swin": "DonutSwin",
}
"""How the classes of a module begin."""


def _classes(*endings: str) -> tuple[type, ...]:
    """Those classes of all families, as far as they are loaded."""
    return tuple(
        kind
        for module, start in _FAMILIES.items()
        for kind in loaded(module, [f"{start}{ending}" for ending in endings])
    )


class HfSwin(CellFill):
    """Cells filled after the norm of the embeddings and before positions are added, where its own mask token goes."""

    name = "transformers Swin"
    where = "patch embedding, after its norm"

    def _embeddings(self, model: nn.Module) -> tuple[str, Any] | None:
        """Path and module of the embeddings."""
        closed = loaded("transformers.modeling_utils", ["PreTrainedModel"])
        return nested_part(model, _classes("ForImageClassification", "Model"), _classes("Embeddings"), closed)

    def _known(self, model: nn.Module) -> tuple[str, Any]:
        found = self._embeddings(model)
        assert found is not None, "matches() was asked first"
        return found

    def matches(self, model: nn.Module) -> bool:
        """True for classifiers and encoders, and for a user's own module around one; nothing is imported for it."""
        return self._embeddings(model) is not None

    def why(self, model: nn.Module) -> str:
        """Why tokens can't be dropped."""
        return "attention in windows of fixed size needs the whole grid"

    def embedding(self, model: Any) -> str:
        """Path of the norm."""
        return f"{self._known(model)[0]}.norm"

    def layout(self, model: Any) -> Layout:
        """The norm is over a sequence."""
        return "NLC"

    def stride(self, model: Any) -> int:
        """Side of a cell in pixels."""
        return int(self._known(model)[1].patch_embeddings.projection.stride[0])

    def width(self, model: Any) -> int:
        """D."""
        return int(self._known(model)[1].norm.normalized_shape[0])
