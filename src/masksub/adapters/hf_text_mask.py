"""Hugging Face's other classifiers of sequences: tokens are replaced by the mask token.

Which tokens are chosen is as where they are dropped. Most configurations don't say the mask token's id: see
``masksub.core.sentences.set_special_tokens``.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

from torch import Tensor, nn

from masksub.core.adapter import Grid, Masker
from masksub.core.call import Call
from masksub.core.parts import loaded
from masksub.core.sentences import Sentences, text_grid


class HfTextReplace:
    """Tokens replaced by the mask token. It saves nothing, but it works with every model that has such a token."""

    name = "transformers text, mask token"
    how: Literal["replace"] = "replace"
    inside_blocks = False
    where = "the input ids"

    def matches(self, model: nn.Module) -> bool:
        """True for any transformers classifier of sequences that is called with ``input_ids``."""
        pretrained = loaded("transformers.modeling_utils", ["PreTrainedModel"])
        named = any(kind.__name__.endswith("ForSequenceClassification") for kind in type(model).__mro__)
        return named and isinstance(model, pretrained) and getattr(model, "main_input_name", "") == "input_ids"

    def why(self, model: nn.Module) -> str:
        """Why tokens are not dropped."""
        return (
            "nothing is known that tells this model the places of tokens in a shorter sentence, so it keeps its length"
        )

    def prefix(self, model: nn.Module) -> int:
        """None: special tokens are units that are never chosen, as they stand anywhere."""
        return 0

    def grid(self, model: Any, call: Call, unit: int | None) -> Grid:
        """One unit a token."""
        return text_grid(model, call, unit, model.config)

    @contextmanager
    def masking(self, model: Any, unit: int | None, fill: float | str) -> Iterator[Masker]:
        """As ``Adapter.masking``; ``fill="token"`` says the same as leaving it out."""
        token: int | None = getattr(model.config, "mask_token_id", None)
        if token is None:
            raise ValueError(
                f"{type(model).__name__} has its tokens replaced by the mask token, whose id its configuration doesn't "
                f"say; call masksub.core.sentences.set_special_tokens(model, tokenizer.all_special_ids, "
                f"mask=tokenizer.mask_token_id)"
            )

        def mask(call: Call, keep: Tensor, count: int | None) -> Call:
            sentences = Sentences(model, call, model.config)
            if count == keep.shape[1] or sentences.ids.is_meta:
                return call
            hidden = ~keep & sentences.maskable
            return sentences.replaced({"input_ids": sentences.ids.masked_fill(hidden, token)})

        yield mask
