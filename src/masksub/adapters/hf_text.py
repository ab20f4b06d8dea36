"""Hugging Face's text encoders: tokens are dropped at the input, so that the sub branch reads shorter sentences.

Tokens are chosen among those that are neither padding nor special; each sentence of a batch loses the same share of its
own length. A model does not say all its special ids: see ``masksub.core.sentences.set_special_tokens``.

Shape letters: B batch, N tokens of a padded sentence, K tokens of the longest sentence that is left, A attention heads.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from masksub.core.adapter import Grid, Masker
from masksub.core.call import Call
from masksub.core.intercept import Interception, Interceptor
from masksub.core.parts import loaded, only_part
from masksub.core.sentences import Sentences, text_grid
from masksub.core.shortening import KeptTokens


class _Family(NamedTuple):
    """Classes of one module of transformers.models.

    Attributes:
        start: how their names begin.
        after_padding: positions are counted from the padding id on, without padding, as RoBERTa has it.
    """

    start: str
    after_padding: bool = False


_FAMILIES: dict[str, _Family] = {
    "albert.modeling_albert": _Family("Albert"),
    "bert.modeling_bert": _Family("Bert"),
    "camembert.modeling_camembert": _Family("Camembert", True),
    "data2vec.modeling_data2vec_text": _Family("Data2VecText", True),
    "deberta_v2.modeling_deberta_v2": _Family("DebertaV2"),
    "distilbert.modeling_distilbert": _Family("DistilBert"),
    "electra.modeling_electra": _Family("Electra"),
    "ernie.modeling_ernie": _Family("Ernie"),
    "megatron_bert.modeling_megatron_bert": _Family("MegatronBert"),
    "modernbert.modeling_modernbert": _Family("ModernBert"),
    "mpnet.modeling_mpnet": _Family("MPNet", True),
    "rembert.modeling_rembert": _Family("RemBert"),
    "roberta.modeling_roberta": _Family("Roberta", True),
    "roberta_prelayernorm.modeling_roberta_prelayernorm": _Family("RobertaPreLayerNorm", True),
    "xlm_roberta.modeling_xlm_roberta": _Family("XLMRoberta", True),
    "xlm_roberta_xl.modeling_xlm_roberta_xl": _Family("XLMRobertaXL", True),
}
"""By module of transformers.models."""


@dataclass(frozen=True)
class _Encoder:
    """The part of a model that embeds tokens and runs the blocks."""

    path: str
    module: Any
    family: _Family

    @property
    def can_drop(self) -> bool:
        """Whether tokens can be dropped without changing what the others compute."""
        config, blocks = self.module.config, getattr(self.module, "encoder", None)
        if getattr(blocks, "conv", None) is not None:  # a convolution over neighbours, in the largest DeBERTa-v2
            return False
        # Relative positions that old releases count inside attention, as does their ModernBERT in flash attention.
        if getattr(config, "position_embedding_type", None) not in (None, "absolute"):
            return False
        return not (
            hasattr(self.module, "_update_attention_mask") and config._attn_implementation == "flash_attention_2"
        )

    def positions(self, sentences: Sentences) -> Tensor:
        """Positions that the model would give to all tokens, (B, N) or (1, N)."""
        given, ids = sentences.given.get("position_ids"), sentences.ids
        if isinstance(given, Tensor):
            return given
        if not self.family.after_padding:
            return torch.arange(ids.shape[1], device=ids.device).unsqueeze(0)
        padding: int = self.module.embeddings.padding_idx
        tokens = (ids != padding).long()
        return tokens.cumsum(dim=1) * tokens + padding


def _encoder(model: nn.Module) -> _Encoder | None:
    """The one encoder of a classifier, or of a user's own module around one; nothing is imported for it."""
    closed = loaded("transformers.modeling_utils", ["PreTrainedModel"])
    for name, family in _FAMILIES.items():
        kinds = loaded(f"transformers.models.{name}", [f"{family.start}ForSequenceClassification"])
        bases = loaded(f"transformers.models.{name}", [f"{family.start}Model"])
        outer = only_part(model, kinds + bases, closed)
        if outer is None or (outer[1] is model and isinstance(model, bases)):
            continue
        path, module = outer
        if isinstance(module, kinds):
            prefix: Any = module.base_model_prefix
            path, module = f"{path}.{prefix}".lstrip("."), getattr(module, prefix)
        return _Encoder(path, module, family)
    return None


class HfTextDrop:
    """Tokens dropped at the input; those that are left keep their own positions.

    Absolute positions are looked up, rotary ones turned and relative ones gathered by the places in the whole sentence,
    and ModernBERT's local attention reaches as far as there. With flash attention that window counts the tokens that
    are left, so that it reaches farther. The model gets an attention mask also where it was called without: padding is
    told by its id, if the configuration has a ``pad_token_id``; else there is none.
    """

    name = "transformers text"
    how: Literal["drop"] = "drop"
    inside_blocks = False
    where = "the input, each token with its own position"

    def __init__(self) -> None:
        self._interceptor: Interceptor[KeptTokens] = Interceptor(lambda _: KeptTokens(), _interceptions)

    def matches(self, model: nn.Module) -> bool:
        """True for classifiers of the table whose tokens don't need their neighbours, and modules around an encoder."""
        encoder = _encoder(model)
        return encoder is not None and encoder.can_drop

    def why(self, model: nn.Module) -> str:
        """Why tokens can be dropped."""
        return "attention takes sentences of any length, and each token keeps its position"

    def prefix(self, model: nn.Module) -> int:
        """None: special tokens are units that are never chosen, as they stand anywhere."""
        return 0

    def grid(self, model: nn.Module, call: Call, unit: int | None) -> Grid:
        """One unit a token."""
        return text_grid(model, call, unit, self._known(model).module.config)

    def _known(self, model: nn.Module) -> _Encoder:
        encoder = _encoder(model)
        assert encoder is not None, "matches() was asked first"
        return encoder

    @contextmanager
    def masking(self, model: nn.Module, unit: int | None, fill: float | str) -> Iterator[Masker]:
        """As ``Adapter.masking``. Rows may keep different numbers of tokens; they are padded to the longest."""
        if isinstance(fill, str):
            raise ValueError(f"fill = {fill!r}: {type(model).__name__} drops tokens, nothing is filled; leave it out")
        encoder, armed = self._known(model), False
        with self._interceptor.applied(model) as kept:

            def mask(call: Call, keep: Tensor, count: int | None) -> Call:
                nonlocal armed
                armed, kept.reached = True, False
                kept.forget()
                if count == keep.shape[1]:
                    return call
                sentences = Sentences(model, call, encoder.module.config)
                return kept.shorten(sentences, keep, count, encoder.positions(sentences))

            kept.forget()
            try:
                yield mask
            finally:
                kept.forget()
            if armed and not kept.reached:
                raise RuntimeError(
                    f"{type(model).__name__} ran without asking for the positions of its tokens, which may have been "
                    f"wrong ones; its forward is not the one that masksub knows"
                )


def _interceptions(model: nn.Module, kept: KeptTokens) -> Sequence[Interception]:
    """All places of a model that look at the positions of tokens."""
    encoder = _encoder(model)
    assert encoder is not None, "matches() was asked first"
    path, module, blocks = encoder.path, encoder.module, getattr(encoder.module, "encoder", None)
    parts = []
    if getattr(module.embeddings, "position_embeddings", None) is not None:
        parts.append(Interception(f"{path}.embeddings.position_embeddings", "forward", kept.look_up))
    if encoder.family.start == "MPNet":
        parts.append(Interception(f"{path}.encoder", "compute_position_bias", _bias_gathered(kept)))
    if encoder.family.start == "DebertaV2" and getattr(blocks, "relative_attention", False):
        heads: int = module.config.num_attention_heads
        parts.append(Interception(f"{path}.encoder", "get_rel_pos", _distances_gathered(kept, heads)))
    if encoder.family.start == "ModernBert":
        parts.append(Interception(path, "forward", _told(kept, module)))
        if hasattr(module, "_update_attention_mask"):  # before transformers 5
            parts.append(Interception(path, "_update_attention_mask", _window_narrowed(kept, module.config)))
    return parts


def _bias_gathered(kept: KeptTokens) -> Callable[[Any], Any]:
    """MPNet: a bias for each pair of places, (B, A, N, N)."""

    def make(original: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def bias(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            if kept.indices is None:
                return original(x, *args, **kwargs)
            return kept.pairs(lambda whole: original(whole, *args, **kwargs), x)

        return bias

    return make


def _distances_gathered(kept: KeptTokens, heads: int) -> Callable[[Any], Any]:
    """DeBERTa-v2: the distance of each pair of places, (1, N, N)."""

    def make(original: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def distances(hidden: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            kept.reached = True
            if kept.indices is None:
                return original(hidden, *args, **kwargs)
            left = kept.pairs(lambda whole: original(whole, *args, **kwargs).unsqueeze(0), hidden)  # (B, 1, K, K)
            # The model has one row for each sentence and head, and takes off a first dimension of 1.
            return left.repeat_interleave(heads, dim=0).transpose(0, 1)  # (1, B * A, K, K)

        return distances

    return make


def _window_narrowed(kept: KeptTokens, config: Any) -> Callable[[Any], Any]:
    """ModernBERT before transformers 5: the second of its two attention masks is that of local attention."""

    def make(original: Callable[..., tuple[Tensor, Tensor]]) -> Callable[..., tuple[Tensor, Tensor]]:
        def masks(*args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
            everywhere, local = original(*args, **kwargs)
            if kept.indices is not None:
                near = kept.near(config.local_attention // 2)
                local = everywhere.masked_fill(~near, torch.finfo(everywhere.dtype).min)
            return everywhere, local

        return masks

    return make


def _told(kept: KeptTokens, module: Any) -> Callable[[Any], Any]:
    """ModernBERT: rotary embeddings take the positions given, and a mask may be given for each kind of attention."""
    one_mask = hasattr(module, "_update_attention_mask")

    def make(original: Callable[..., Any]) -> Callable[..., Any]:
        def forward(*args: Any, **kwargs: Any) -> Any:
            kept.reached = True
            if kept.indices is not None:
                kwargs["position_ids"] = kept.positions
                if not one_mask:
                    kwargs["attention_mask"] = _both_masks(kept.indices, module, kwargs.get("attention_mask"))
            return original(*args, **kwargs)

        return forward

    return make


def _both_masks(places: Tensor, module: Any, attention: Tensor | None) -> dict[str, Any]:
    """Masks as the library makes them for its kinds of attention, the local one by places in the whole sentence."""
    make_mask = sys.modules["transformers.masking_utils"].create_bidirectional_mask
    config, reach = module.config, int(module.config.sliding_window)
    # Only its shape, type and device are looked at.
    example = module.embeddings.tok_embeddings.weight.new_empty(*places.shape, 1)

    def near(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        distance: Tensor = places[batch, query] - places[batch, key]
        return distance.abs() <= reach

    return {
        "full_attention": make_mask(config, example, attention),
        "sliding_attention": make_mask(config, example, attention, and_mask_function=near),
    }
