"""timm's ConViT: gated attention to relative positions in the first blocks, gathered here."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn

from masksub.core.adapter import Grid
from masksub.core.call import Call
from masksub.core.dropping import Choice, TokenDrop, drop_after
from masksub.core.intercept import Interception
from masksub.core.parts import embed_grid, loaded
from masksub.core.removal import drop_pairs


class TimmConViT(TokenDrop):
    """Tokens dropped from the result of ``pos_drop``, where no class token is yet.

    Each block keeps a table of the offsets of all pairs of patches, and makes a new one when the number of tokens is
    another. In the sub branch the table stays, and the pairs of the tokens that are left are taken from it.
    """

    name = "timm ConVit"
    where = "pos_drop, after the position embedding; relative positions gathered with the same indices"
    inside_blocks = True

    def matches(self, model: nn.Module) -> bool:
        """True for a timm ConVit whose class token joins after the gated blocks; timm is not imported for it."""
        if not isinstance(model, loaded("timm.models.convit", ["ConVit"])):
            return False
        convit: Any = model
        return not any(block.use_gpsa for block in list(convit.blocks)[convit.local_up_to_layer :])

    def prefix(self, model: Any) -> int:
        """None where tokens are dropped."""
        return 0

    def grid(self, model: Any, call: Call, unit: int | None) -> Grid:
        """One cell a patch; ``unit`` is a multiple of the patch size in pixels."""
        return embed_grid(model.patch_embed, call.x, unit)

    def overlapping(self, model: Any) -> bool:
        """True for hybrids: their stem is a convolutional network."""
        return hasattr(model.patch_embed, "backbone")

    def interceptions(self, model: Any, choice: Choice) -> Sequence[Interception]:
        """The result of ``pos_drop``, and in each gated block where its table is made and where it is read."""

        def keep_table(original: Callable[[int], Tensor]) -> Callable[[int], Tensor]:
            owner: Any = original.__self__  # type: ignore[attr-defined]

            def get_rel_indices(tokens: int) -> Tensor:
                if choice.indices is None:
                    return original(tokens)
                table: Tensor = owner.rel_indices
                return table if table.shape[1] == choice.units else original(choice.units)

            return get_rel_indices

        def gather(original: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
            def forward(offsets: Tensor) -> Tensor:
                # (B, N, N, 3), one table expanded. A single token finds the table that a fresh block starts with.
                if choice.indices is not None and offsets.shape[1] == choice.units:
                    table = offsets[:1].permute(0, 3, 1, 2)
                    offsets = drop_pairs(table, choice.indices).permute(0, 2, 3, 1)
                return original(offsets)

            return forward

        gated = loaded("timm.models.convit", ["GPSA"])
        paths = [path for path, module in model.named_modules() if isinstance(module, gated)]
        return (
            drop_after("pos_drop", choice),
            *(Interception(path, "get_rel_indices", keep_table) for path in paths),
            *(Interception(f"{path}.pos_proj", "forward", gather) for path in paths),
        )
