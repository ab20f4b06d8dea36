"""timm's families: what the contract can't see. If it fails, tokens that stay compute something else.

Each is compared with the whole model made blind to what is masked, by means that share nothing with the adapters.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import masksub
from masksub.core.adapter import find_adapter
from masksub.core.call import Call
from tests.cases import (
    timm_beit,
    timm_cait,
    timm_convit,
    timm_deepseek_vit,
    timm_gemma4_vit,
    timm_hiera,
    timm_naflexvit,
    timm_packed,
    timm_qwen3_vit,
    timm_relpos,
    timm_tnt,
    timm_volo,
)
from tests.cases.case import Case
from tests.cases.timm_packed import UnevenCase

BATCH = 3
FAMILIES = (
    timm_beit, timm_cait, timm_convit, timm_deepseek_vit, timm_gemma4_vit, timm_naflexvit, timm_qwen3_vit, timm_relpos,
    timm_tnt, timm_volo,
)  # fmt: skip
TOKENS = {name: case for family in FAMILIES for name, case in family.CASES.items()}
PACKED = {name: case for name, case in timm_packed.CASES.items() if not isinstance(case, UnevenCase)}


def choice_for(model: nn.Module, x: Tensor) -> tuple[Tensor, tuple[int, int]]:
    """Visible units, and rows and columns of units."""
    grid = find_adapter(model).grid(model, Call((x,)), None)
    keep = masksub.sample_keep(BATCH, grid.units, 0.5, generator=torch.Generator().manual_seed(3))
    return keep, (grid.rows, grid.cols)


def finer(keep: Tensor, grid: tuple[int, int], side: int) -> Tensor:
    """The choice on a grid of side x side cells a unit, (B, rows * side, cols * side)."""
    return torch.kron(keep.view(-1, *grid).long(), torch.ones(1, side, side, dtype=torch.long)).bool()


@contextmanager
def keys_blocked(keep: Tensor, grid: tuple[int, int]) -> Iterator[None]:
    """No token looks at those not visible, wherever attention is over all units at some resolution (and a prefix)."""
    fused, softmax, calls = F.scaled_dot_product_attention, Tensor.softmax, []

    @functools.cache
    def blocked(length: int) -> Tensor | None:
        """An additive mask (B, 1, 1, length)."""
        for side in range(16, 0, -1):
            prefix = length - keep.shape[1] * side**2
            if prefix in range(5):
                visible = F.pad(finer(keep, grid, side).flatten(1), (prefix, 0), value=True)
                calls.append(length)
                return torch.zeros(visible.shape).masked_fill(~visible, float("-inf"))[:, None, None, :]
        return None

    def fused_blocked(query: Tensor, key: Tensor, value: Tensor, attn_mask: Any = None, **kwargs: Any) -> Tensor:
        hidden = blocked(key.shape[-2]) if len(key) == BATCH else None
        if hidden is not None:
            attn_mask = hidden if attn_mask is None else attn_mask + hidden
        return fused(query, key, value, attn_mask=attn_mask, **kwargs)

    def softmax_blocked(scores: Tensor, dim: int) -> Tensor:
        hidden = blocked(scores.shape[-1]) if len(scores) == BATCH else None
        return softmax(scores if hidden is None else scores + hidden, dim=dim)

    with (
        mock.patch.object(F, "scaled_dot_product_attention", fused_blocked),
        mock.patch.object(Tensor, "softmax", softmax_blocked),
    ):
        yield
    assert calls, "the model attends in another way"


def last_tokens(model: nn.Module, x: Tensor) -> Tensor:
    """What the last block of patches returns, (B, prefix + L, D), also where it lies on a grid (B, H, W, D)."""
    results: list[Any] = []
    parts: Any = getattr(model, "encoder", model)
    last = parts.network[-1] if hasattr(parts, "network") else parts.blocks[-1]
    handle = last.register_forward_hook(lambda _m, _args, result: results.append(result))
    try:
        model(x)
    finally:
        handle.remove()
    tokens: Tensor = results[0][-1] if isinstance(results[0], tuple) else results[0]
    return tokens.flatten(1, 2) if tokens.ndim == 4 else tokens


@pytest.mark.parametrize("case", TOKENS.values(), ids=TOKENS.keys())
def test_tokens_that_stay_are_those_of_the_whole_model_blind_to_the_others(case: Case) -> None:
    """Rotary embeddings, biases or learned positions gathered with wrong indices would show here."""
    model, x = case.model().eval(), case.inputs(BATCH)[0]
    keep, grid = choice_for(model, x)
    with masksub.MaskSub(0.5).applied(model, keep=keep):
        tokens = last_tokens(model, x)
    # What overlapping stems see is the adapter's to blank, and the contract's to check.
    seen = torch.where(spread_over(keep, grid, x), x, 0) if overlaps(model) else x
    with keys_blocked(keep, grid), talk_silenced(model, keep):
        whole = last_tokens(model, seen)
    side = round(((whole.shape[1]) // keep.shape[1]) ** 0.5)
    prefix = whole.shape[1] - keep.shape[1] * side**2
    visible = F.pad(finer(keep, grid, side).flatten(1), (prefix, 0), value=True)
    assert tokens.shape[1] == int(visible[0].sum())
    expected = whole[visible].view(tokens.shape)
    if side > 1:  # tokens of a unit follow each other
        expected = whole.view(BATCH, grid[0], side, grid[1], side, -1).transpose(2, 3)[keep.view(-1, *grid)]
    torch.testing.assert_close(tokens, expected.reshape(tokens.shape), atol=1e-5, rtol=1e-5)


@contextmanager
def talk_silenced(model: nn.Module, keep: Tensor) -> Iterator[None]:
    """CaiT mixes heads after the softmax, with a bias: there a token is left out by its value, too."""

    def without_values(_: nn.Module, __: Any, result: Tensor) -> Tensor:
        queries, keys, values = result.chunk(3, dim=-1)
        return torch.cat((queries, keys, values * keep.unsqueeze(-1)), dim=-1)

    with ExitStack() as stack:
        for module in model.modules():
            if type(module).__name__ == "TalkingHeadAttn":
                stack.callback(module.qkv.register_forward_hook(without_values).remove)  # type: ignore[union-attr]
        yield


def spread_over(keep: Tensor, grid: tuple[int, int], x: Tensor) -> Tensor:
    side = x.shape[-1] // grid[1]
    return finer(keep, grid, side).unsqueeze(1)


def overlaps(model: nn.Module) -> bool:
    return bool(find_adapter(model).overlapping(model))  # type: ignore[attr-defined]


@pytest.mark.parametrize("case", timm_hiera.CASES.values(), ids=timm_hiera.CASES.keys())
def test_hiera_does_what_its_own_mask_does(case: Case) -> None:
    """Units numbered in another order than the model's would show here."""
    model, x = case.model().eval(), case.inputs(BATCH)[0]
    keep, _ = choice_for(model, x)
    expected = model.forward_head(model.forward_features(x, mask=keep))  # type: ignore[operator]
    with masksub.MaskSub(0.5).applied(model, keep=keep):
        torch.testing.assert_close(model(x), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("training", [False, True])
def test_own_patch_dropout_rests_in_the_sub_branch(training: bool) -> None:
    """Else fewer tokens are left than were asked for, and the main branch's recipe is not what is compared."""
    for case in (
        timm_naflexvit.CASES["naflexvit with its own patch dropout"],
        timm_hiera.CASES["hiera with its own dropout of units"],
    ):
        model, x = case.model().train(training), case.inputs(BATCH)[0]
        keep, _ = choice_for(model, x)
        with masksub.MaskSub(0.5).applied(model, keep=keep):
            torch.testing.assert_close(model(x), model(x))


@contextmanager
def blind_to_masked_cells(model: nn.Module, keep: Tensor, grid: tuple[int, int]) -> Iterator[None]:
    """Convolutions that overlap see zeros in masked cells; attention and sums over all cells leave them out."""

    def on_map(_: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        x = args[0]
        return (x * finer(keep, grid, x.shape[-1] // grid[1]).unsqueeze(1), *args[1:])

    def on_map_last(_: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        x = args[0]
        return (x * finer(keep, grid, x.shape[-2] // grid[1]).unsqueeze(-1), *args[1:])

    def after_qkv(_: nn.Module, __: Any, result: Tensor) -> Tensor:
        side = round((result.shape[1] // keep.shape[1]) ** 0.5)
        return result * finer(keep, grid, side).flatten(1).unsqueeze(-1)

    def on_mean(_: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        x = args[0]
        visible = finer(keep, grid, x.shape[-1] // grid[1]).unsqueeze(1)
        mean = (x * visible).sum((2, 3), keepdim=True) / visible.sum((2, 3), keepdim=True)
        return (torch.where(visible, x, mean), *args[1:])

    with ExitStack() as stack:
        for module in model.modules():
            kind = type(module).__name__
            if isinstance(module, nn.Conv2d) and max(module.kernel_size) > min(module.stride):
                stack.callback(module.register_forward_pre_hook(on_map).remove)
            elif kind == "GlobalResponseNorm":
                hook = on_map_last if module.channel_dim == -1 else on_map
                stack.callback(module.register_forward_pre_hook(hook).remove)
            elif kind == "EffectiveSEModule":
                stack.callback(module.register_forward_pre_hook(on_mean).remove)
            elif kind == "EfficientAdditiveAttention":
                stack.callback(module.to_query.register_forward_hook(after_qkv).remove)  # type: ignore[union-attr]
            elif kind in ("XCA", "CrossCovarianceAttn"):
                stack.callback(module.qkv.register_forward_hook(after_qkv).remove)  # type: ignore[union-attr]
        yield


def cells(features: Tensor, model: nn.Module) -> Tensor:
    """Features of a hierarchical model as (B, prefix + cells, C)."""
    if features.ndim == 3:
        return features
    return features.flatten(1, 2) if getattr(model, "output_fmt", "NCHW") == "NHWC" else features.flatten(2).mT


@pytest.mark.parametrize("case", PACKED.values(), ids=PACKED.keys())
def test_packed_units_are_those_of_the_whole_model_blind_to_the_others(case: Case) -> None:
    """Units laid out in the wrong place, or positions of other units, would show here."""
    model, x = case.model().eval(), case.inputs(BATCH)[0]
    keep, grid = choice_for(model, x)
    features: list[Tensor] = []
    # The head's own view of the features; forward_features is not called through the object that is masked.
    with mock.patch.object(model, "forward_head", lambda y: features.append(y) or y):  # type: ignore[func-returns-value]
        with masksub.MaskSub(0.5).applied(model, keep=keep):
            model(x)
        attention = keys_blocked(keep, grid) if attends(model) else ExitStack()
        with blind_to_masked_cells(model, keep, grid), attention:
            model(x)
    packed, whole = (cells(each, model) for each in features)
    prefix = whole.shape[1] - keep.shape[1]
    visible = F.pad(keep, (prefix, 0), value=True)
    torch.testing.assert_close(packed, whole[visible].view(packed.shape), atol=1e-5, rtol=1e-5)


def attends(model: nn.Module) -> bool:
    kinds = ("Attention", "GlobalSubSampleAttn", "ClassAttn")
    return any(type(module).__name__ in kinds for module in model.modules())


@pytest.mark.parametrize("name", ["naflexvit", "gemma4 vit"])
def test_batches_of_patches_are_refused(name: str) -> None:
    case = TOKENS[name]
    model, x = case.model().eval(), case.inputs(2)[0]
    coordinates = torch.zeros(2, 16, 2, dtype=torch.long)
    patches = {"patches": torch.randn(2, 16, 48), "patch_coord": coordinates, "patch_valid": coordinates[..., 0] == 0}
    with masksub.MaskSub(0.5).applied(model):
        with pytest.raises(ValueError, match="images"):
            model(patches)
        with pytest.raises(ValueError, match="images"):
            model(patches["patches"], patch_coord=coordinates, patch_valid=patches["patch_valid"])
        model(x)


def test_an_aligner_that_pads_is_refused() -> None:
    case = TOKENS["deepseek vit, aligner"]
    model = case.model().eval()
    with masksub.MaskSub(0.5).applied(model), pytest.raises(ValueError, match="multiple of 12 x 12 px"):
        model(torch.randn(2, 3, 28, 36))
