"""timm's TNT, a transformer in a transformer: a patch goes with all its inner tokens."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn

from masksub.core.adapter import Grid
from masksub.core.call import Call
from masksub.core.dropping import Choice, TokenDrop, drop_after
from masksub.core.intercept import Interception
from masksub.core.parts import embed_grid, loaded


class TimmTnt(TokenDrop):
    """Patches dropped from the result of ``pos_drop``, and their inner tokens on the way into the first block."""

    name = "timm TNT"
    where = "pos_drop, after the position embedding; inner tokens before the first block"
    inside_blocks = True

    def matches(self, model: nn.Module) -> bool:
        """True for a timm TNT with at least one block; timm is not imported for it."""
        tnt: Any = model
        return isinstance(model, loaded("timm.models.tnt", ["TNT"])) and len(tnt.blocks) > 0

    def prefix(self, model: Any) -> int:
        """The class token."""
        return int(model.num_prefix_tokens)

    def grid(self, model: Any, call: Call, unit: int | None) -> Grid:
        """One cell a patch; ``unit`` is a multiple of the patch size in pixels."""
        return embed_grid(model.pixel_embed, call.x, unit)

    def overlapping(self, model: Any) -> bool:
        """True for the models of old, which convolve before they cut patches."""
        return bool(model.pixel_embed.legacy)

    def interceptions(self, model: Any, choice: Choice) -> Sequence[Interception]:
        """The result of ``pos_drop``, and what goes into the first block: inner tokens (B * L, M, C)."""

        def drop_inner(original: Callable[[Tensor, Tensor], Any]) -> Callable[[Tensor, Tensor], Any]:
            def forward(inner: Tensor, outer: Tensor) -> Any:
                if choice.indices is not None:
                    _, tokens, width = inner.shape
                    kept = choice.drop(inner.reshape(-1, choice.units, tokens * width), prefix=0)  # (B, K, M * C)
                    inner = kept.view(-1, tokens, width)
                return original(inner, outer)

            return forward

        return (drop_after("pos_drop", choice), Interception("blocks.0", "forward", drop_inner))
