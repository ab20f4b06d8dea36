"""transformers' sequence classifiers: sentences of different length, and pairs where the model knows token types."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import transformers
from torch import Tensor, nn

from tests.cases.case import CLASSES, Case

VOCABULARY, ORDINARY = 40, 5
"""Number of ids, and the first that is no special token."""
LENGTHS = (12, 9, 6, 11)
"""Of the sentences of a batch, delimiters included; each may be masked."""

SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
    "intermediate_size": 32, "max_position_embeddings": 40, "num_labels": CLASSES,
}  # fmt: skip
BERT_IDS = {"pad": 0, "cls": 1, "sep": 2}
ROBERTA_IDS = {"cls": 0, "pad": 1, "sep": 2}


def classifier(name: str, **changes: Any) -> nn.Module:
    """A random ``<name>ForSequenceClassification`` of 2 layers x 16."""
    config = getattr(transformers, f"{name}Config")(**{**SIZES, **changes})
    model: nn.Module = getattr(transformers, f"{name}ForSequenceClassification")(config)
    return model


@dataclass(frozen=True)
class TextCase(Case):
    """A text model; ``shape`` is the padded length.

    Attributes:
        ids: of its special tokens.
        pairs: whether it knows token types; then each row is a pair of sentences.
        left: padding is on the left.
    """

    ids: tuple[tuple[str, int], ...] = tuple(BERT_IDS.items())
    pairs: bool = False
    left: bool = False

    def inputs(self, batch: int = 4) -> tuple[Any, Tensor]:
        """Keyword arguments of the model: ids, attention mask and, for pairs, token types."""
        generator, special, (length,) = torch.Generator().manual_seed(1), dict(self.ids), self.shape
        ids = torch.full((batch, length), special["pad"])
        attention, types = torch.zeros_like(ids), torch.zeros_like(ids)
        for row, count in enumerate(LENGTHS[:batch]):
            sentence = torch.randint(ORDINARY, VOCABULARY, (count,), generator=generator)
            sentence[0], sentence[-1] = special["cls"], special["sep"]
            start = length - count if self.left else 0
            if self.pairs:
                sentence[count // 2] = special["sep"]
                types[row, start + count // 2 + 1 : start + count] = 1
            ids[row, start : start + count], attention[row, start : start + count] = sentence, 1
        x = {"input_ids": ids, "attention_mask": attention, **({"token_type_ids": types} if self.pairs else {})}
        return x, torch.randint(CLASSES, (batch,), generator=generator)

    def changed(self, x: Any, keep: Tensor, grid: tuple[int, int], *, visible: bool) -> Any:
        """Other ordinary tokens in the place of those ordinary ones that are visible, or masked."""
        ids = x["input_ids"]
        where = (keep if visible else ~keep) & (ids >= ORDINARY)
        others = (ids - ORDINARY + 1) % (VOCABULARY - ORDINARY) + ORDINARY
        return {**x, "input_ids": torch.where(where, others, ids)}


def case(
    name: str, *, roberta: bool = False, pairs: bool = False, left: bool = False, how: str = "drop", **changes: Any
) -> TextCase:
    build: Callable[[], nn.Module] = partial(classifier, name, **changes)
    ids = tuple((ROBERTA_IDS if roberta else BERT_IDS).items())
    return TextCase(build, (12,), 12, how, ids=ids, pairs=pairs, left=left)


DEBERTA: dict[str, Any] = {
    "relative_attention": True, "position_buckets": 4, "max_relative_positions": 16, "pos_att_type": ["p2c", "c2p"],
    "position_biased_input": False, "norm_rel_ebd": "layer_norm", "type_vocab_size": 0,
}  # fmt: skip
MODERNBERT: dict[str, Any] = {
    "global_attn_every_n_layers": 2, "local_attention": 4, "pad_token_id": 0, "bos_token_id": 1, "cls_token_id": 1,
    "eos_token_id": 2, "sep_token_id": 2, "reference_compile": False,
}  # fmt: skip
DISTILBERT: dict[str, Any] = {"dim": 16, "hidden_dim": 32, "n_layers": 2, "n_heads": 2}

CASES = {
    "bert": case("Bert", pairs=True),
    "bert, padding on the left": case("Bert", pairs=True, left=True),
    "roberta": case("Roberta", roberta=True),
    "roberta, padding on the left": case("Roberta", roberta=True, left=True),
    "xlm-r": case("XLMRoberta", roberta=True),
    "xlm-r xl": case("XLMRobertaXL", roberta=True),
    "roberta prelayernorm": case("RobertaPreLayerNorm", roberta=True),
    "camembert": case("Camembert", roberta=True),
    "data2vec text": case("Data2VecText", roberta=True),
    "distilbert": case("DistilBert", **DISTILBERT),
    "distilbert, sines": case("DistilBert", sinusoidal_pos_embds=True, **DISTILBERT),
    "electra": case("Electra", pairs=True, embedding_size=8),
    "ernie": case("Ernie", pairs=True),
    "albert": case("Albert", pairs=True, embedding_size=8, bos_token_id=1),
    "megatron bert": case("MegatronBert", pairs=True),
    "rembert": case("RemBert", pairs=True, input_embedding_size=8, pad_token_id=0, bos_token_id=1, eos_token_id=2),
    "mpnet": case("MPNet", roberta=True),
    "deberta-v2": case("DebertaV2", **DEBERTA),
    "deberta-v2, absolute positions too": case(
        "DebertaV2",
        pairs=True,
        **{**DEBERTA, "position_biased_input": True, "type_vocab_size": 2, "share_att_key": True},
    ),
    "deberta-v2 without relative positions": case("DebertaV2", relative_attention=False, pairs=True, type_vocab_size=2),
    "modernbert": case("ModernBert", **MODERNBERT),
    "modernbert, mean of tokens, eager": case(
        "ModernBert", left=True, **MODERNBERT, classifier_pooling="mean", attn_implementation="eager"
    ),
    "deberta-v2, convolution": case("DebertaV2", how="replace", conv_kernel_size=3, mask_token_id=3, **DEBERTA),
    "roformer": case("RoFormer", how="replace", pairs=True, mask_token_id=3),
}
