"""timm's NaFlexVit, called with images: learned, factorized or rotary positions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from masksub.core.adapter import Grid
from masksub.core.call import Call
from masksub.core.dropping import Choice, TokenDrop
from masksub.core.intercept import Interception, after
from masksub.core.parts import embed_grid, loaded


class TimmNaFlexViT(TokenDrop):
    """Tokens dropped from the result of ``embeds``; rotary embeddings, also those of each block, are gathered.

    The model's own patch dropout works in training only, so it is no place for this; it rests in the sub branch.
    """

    name = "timm NaFlexVit"
    where = "the result of embeds, after the position embedding; rotary embeddings gathered with the same indices"

    def matches(self, model: nn.Module) -> bool:
        """True for a timm NaFlexVit; timm is not imported for it."""
        return isinstance(model, loaded("timm.models.naflexvit", ["NaFlexVit"]))

    def prefix(self, model: Any) -> int:
        """Class and register tokens."""
        return int(model.num_prefix_tokens)

    def grid(self, model: Any, call: Call, unit: int | None) -> Grid:
        """One cell a patch; ``unit`` is a multiple of the patch size in pixels.

        Raises:
            ValueError: a batch of patches with coordinates, whose images have different numbers of them.
        """
        if any(isinstance(value, Mapping) for value in (*call.args, *call.kwargs.values())) or len(call.args) > 1:
            raise ValueError(_NEEDS_IMAGES)
        if not call.kwargs.keys() <= {"x"} or call.x.ndim != 4:
            raise ValueError(_NEEDS_IMAGES)
        return embed_grid(model.embeds, call.x, unit)

    def interceptions(self, model: Any, choice: Choice) -> Sequence[Interception]:
        """The result of ``embeds``, and that of ``rope`` where there is one."""

        def drop(result: tuple[Tensor, Any]) -> tuple[Tensor, Any]:
            # The size of the grid stays that of the whole image: rotary embeddings are made for it.
            return choice.drop(result[0]), result[1]

        parts = [after("embeds", drop), Interception("", "patch_drop", lambda _: None)]
        if model.rope is not None:
            parts.append(after("rope", choice.positions, "get_embed"))
        return parts


_NEEDS_IMAGES = (
    "NaFlexVit is masked by tokens for images (B, C, H, W) alone; in a batch of patches with patch_coord and "
    "patch_valid inputs have different numbers of them, so none can be dropped evenly"
)
