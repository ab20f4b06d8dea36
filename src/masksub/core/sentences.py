"""Sentences in a model's call, and which of their tokens may be masked.

Shape letters: B batch, N tokens of a padded sentence.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from .adapter import Grid
from .call import Call
from .wrappers import unwrap

__all__ = ["Sentences", "maskable_tokens", "set_special_tokens", "special_ids", "text_grid"]


class Sentences:
    """One call of a model, as far as it is about tokens.

    Args:
        model: the unwrapped model; its forward names the arguments.
        call: what it is called with.
        config: says which ids are special, in the attributes that ``special_ids`` looks for.

    Attributes:
        given: the arguments by name.
        ids: (B, N).
        attention: the attention mask (B, N), 0 = padding, or None.
        pad: id of the padding token, or None.

    Raises:
        ValueError: the call has no ids, or an attention mask of another kind than (B, N).
    """

    def __init__(self, model: nn.Module, call: Call, config: Any) -> None:
        names = list(inspect.signature(type(model).forward).parameters)[1:]
        self._call, self._names = call, names[: len(call.args)]
        self.given: Mapping[str, Any] = {**dict(zip(names, call.args)), **call.kwargs}
        ids, kind = self.given.get("input_ids"), type(model).__name__
        if not isinstance(ids, Tensor) or ids.ndim != 2 or self.given.get("inputs_embeds") is not None:
            raise ValueError(
                f"{kind} was not called with input_ids of shape (B, N): tokens are masked by their ids, so that "
                f"inputs_embeds or several sentences in one row can't be masked"
            )
        self.ids: Tensor = ids
        self.attention: Tensor | None = self.given.get("attention_mask")
        shape = tuple(getattr(self.attention, "shape", ids.shape))
        if shape != ids.shape or isinstance(self.attention, Mapping):
            raise ValueError(
                f"{kind} was called with an attention_mask that is {type(self.attention).__name__} of shape {shape}; "
                f"masking tokens needs a tensor of shape {tuple(ids.shape)}, 0 = padding"
            )
        self.pad: int | None = getattr(config, "pad_token_id", None)
        self._special = special_ids(config)

    @property
    def real(self) -> Tensor:
        """Boolean (B, N). Without an attention mask padding is told by its id; if there is none, nothing is padding."""
        if self.attention is not None:
            return self.attention != 0
        return torch.ones_like(self.ids, dtype=torch.bool) if self.pad is None else self.ids != self.pad

    @property
    def maskable(self) -> Tensor:
        """Boolean (B, N)."""
        return maskable_tokens(self.ids, self.real, self._special, self.given.get("token_type_ids"))

    def unchanged(self) -> Call:
        """The call as it was."""
        return self._call

    def replaced(self, changes: Mapping[str, Tensor]) -> Call:
        """The call with other values, positional ones where they were."""
        left = dict(changes)
        args = tuple(left.pop(name, value) for name, value in zip(self._names, self._call.args))
        return replace(self._call, args=args, kwargs={**self._call.kwargs, **left})


def text_grid(model: nn.Module, call: Call, unit: int | None, config: Any) -> Grid:
    """The grid of a text model: a row of N units, some of them maskable; arguments as for ``Sentences``.

    On the meta device, where operations are counted and ids have no values, the units are the tokens between the first
    and the last one, as in a batch without padding.

    Raises:
        ValueError: as ``Sentences``, or a unit was given.
    """
    if unit is not None:
        raise ValueError(f"unit = {unit}: {type(model).__name__} reads text, whose units are tokens; leave it out")
    sentences = Sentences(model, call, config)
    length = sentences.ids.shape[1]
    return Grid(1, length - 2) if sentences.ids.is_meta else Grid(1, length, maskable=sentences.maskable)


def special_ids(config: Any) -> tuple[int, ...]:
    """Ids of special tokens that a configuration names: ``bos_token_id`` and the like, ``special_token_ids``."""
    values = [getattr(config, f"{name}_token_id", None) for name in ("bos", "eos", "cls", "sep", "pad", "mask")]
    values.append(getattr(config, "special_token_ids", None))
    found: set[int] = set()
    for value in values:
        found.update(() if value is None else (value,) if isinstance(value, int) else value)
    return tuple(sorted(found))


def set_special_tokens(model: nn.Module, ids: Iterable[int], *, mask: int | None = None) -> None:
    """Tell which token ids are special, so that none of them is ever masked.

    Without it these stay: ids that the model's configuration names, the first and the last token of each sentence and
    the last token of the first part of a pair with token types. That is all there is in the usual layouts, so that it
    is needed for other special tokens only, or where tokens are replaced and the configuration has no mask token.

    Side effects: ``model.config`` gets ``special_token_ids`` and ``mask_token_id``, which are copied and saved with it.
    Weights and ``state_dict`` are left alone.

    Args:
        model: may be wrapped.
        ids: usually ``tokenizer.all_special_ids``.
        mask: usually ``tokenizer.mask_token_id``.

    Raises:
        ValueError: no configuration to keep them in, or an id that the vocabulary does not have.
    """
    config, ids = getattr(unwrap(model), "config", None), sorted(set(ids))
    if config is None:
        raise ValueError(f"{type(unwrap(model)).__name__} has no .config; give the transformers model itself")
    vocabulary = getattr(config, "vocab_size", None)
    for token in (*ids, *(() if mask is None else (mask,))):
        if token < 0 or (vocabulary is not None and token >= vocabulary):
            raise ValueError(f"special token {token!r}: ids of this model are at least 0 and below {vocabulary}")
    config.special_token_ids = ids
    if mask is not None:
        config.mask_token_id = mask


def maskable_tokens(ids: Tensor, real: Tensor, special: Sequence[int], types: Tensor | None = None) -> Tensor:
    """Tokens that are neither padding nor special, as far as that can be seen without a tokenizer.

    The first and the last token of a sentence, and the last of the first part of a pair, are taken for special whatever
    their ids: there the models have their delimiters, and not all configurations name them.

    Args:
        ids: (B, N).
        real: boolean (B, N), False = padding, on either side.
        special: ids of special tokens that are known.
        types: (B, N), token types; a pair changes them from one part to the next.

    Returns:
        Boolean (B, N).
    """
    place = real.long().cumsum(dim=1)  # 1 at the first real token of a row
    maskable = real & (place != 1) & (place != place[:, -1:])
    if types is not None:
        types = types.expand_as(ids)
        maskable[:, :-1] &= ~(real[:, 1:] & (types[:, 1:] != types[:, :-1]))
    if special:
        maskable &= ~torch.isin(ids, torch.tensor(special, dtype=ids.dtype, device=ids.device))
    return maskable
