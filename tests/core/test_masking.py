"""If these fail, the wrong units are masked, or not as many as the method says."""

from __future__ import annotations

import itertools

import pytest
import torch

from masksub.core.dropping import Choice
from masksub.core.masking import keep_count, kept_indices, sample_keep, sample_keep_among, sample_keep_blocks
from masksub.core.removal import blank_pixels, drop_pairs, drop_positions, drop_tokens


@pytest.mark.parametrize("ratio", [0.0, 0.1, 0.25, 0.5, 0.75, 0.9, 0.99])
@pytest.mark.parametrize("units", [1, 2, 7, 16, 20, 196])
def test_each_row_keeps_exactly_the_stated_count(units: int, ratio: float) -> None:
    keep = sample_keep(13, units, ratio)
    assert keep.dtype == torch.bool and keep.shape == (13, units)
    assert keep.sum(dim=1).tolist() == [max(1, int(units * (1 - ratio)))] * 13


def test_choice_is_uniform_over_all_subsets() -> None:
    """Chi-square over the 20 subsets of 3 out of 6 units; 43.8 is the 0.1 % point for 19 degrees of freedom."""
    draws = 40_000
    keep = sample_keep(draws, 6, 0.5, generator=torch.Generator().manual_seed(0))
    code = (keep * 2 ** torch.arange(6)).sum(dim=1)
    counts = torch.bincount(code, minlength=64)
    subsets = [sum(2**i for i in chosen) for chosen in itertools.combinations(range(6), 3)]
    assert int(counts[subsets].sum()) == draws
    expected = draws / len(subsets)
    assert float(((counts[subsets] - expected) ** 2 / expected).sum()) < 43.8


def test_generator_decides_and_the_global_one_is_left_alone() -> None:
    before = torch.get_rng_state()
    first = sample_keep(8, 30, 0.5, generator=torch.Generator().manual_seed(3))
    again = sample_keep(8, 30, 0.5, generator=torch.Generator().manual_seed(3))
    other = sample_keep(8, 30, 0.5, generator=torch.Generator().manual_seed(4))
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("grid", [(8, 8), (7, 5), (1, 9)])
@pytest.mark.parametrize("block", [1, 2, 3, 100])
@pytest.mark.parametrize("ratio", [0.3, 0.5, 0.8])
def test_blocks_keep_exactly_the_stated_count(grid: tuple[int, int], block: int, ratio: float) -> None:
    keep = sample_keep_blocks(9, grid, ratio, block=block)
    assert keep.sum(dim=1).tolist() == [keep_count(grid[0] * grid[1], ratio)] * 9


def test_blocks_are_kept_or_dropped_as_a_whole_but_for_one() -> None:
    """8 x 8 cells in blocks of 2 x 2, 31 kept: 7 whole blocks, and 3 cells of an eighth."""
    keep = sample_keep_blocks(50, (8, 8), 0.51, block=2)
    cells = keep.view(50, 4, 2, 4, 2).permute(0, 1, 3, 2, 4).reshape(50, 16, 4).sum(dim=2)
    assert all(sorted(row) == [0] * 8 + [3] + [4] * 7 for row in cells.tolist())
    assert len({tuple(row) for row in cells.tolist()}) > 40


@pytest.mark.parametrize("ratio", [1.0, -0.1, 1.5, float("nan")])
def test_ratio_out_of_range_is_named(ratio: float) -> None:
    with pytest.raises(ValueError, match=r"ratio = .*0 <= ratio < 1"):
        sample_keep(2, 4, ratio)


def test_no_units_and_no_block_are_refused() -> None:
    with pytest.raises(ValueError, match="units = 0"):
        sample_keep(2, 0, 0.5)
    with pytest.raises(ValueError, match="block = 0"):
        sample_keep_blocks(2, (4, 4), 0.5, block=0)


@pytest.mark.parametrize("prefix", [0, 1, 2, 5])
def test_dropping_keeps_the_prefix_and_the_visible_tokens_in_order(prefix: int) -> None:
    keep = sample_keep(3, 10, 0.6)
    x = torch.randn(3, prefix + 10, 4, requires_grad=True)
    out = drop_tokens(x, kept_indices(keep, 4), prefix)
    for row in range(3):
        expected = torch.cat((x[row, :prefix], x[row, prefix:][keep[row]]))
        assert torch.equal(out[row], expected)
    out.sum().backward()
    assert x.grad is not None
    assert torch.equal(x.grad[:, :prefix], torch.ones(3, prefix, 4))
    assert torch.equal(x.grad[:, prefix:], keep.unsqueeze(-1).expand(-1, -1, 4).float())


def test_keep_tokens_refuses_a_token_count_it_does_not_know() -> None:
    choice = Choice(prefix=1)
    choice.units, choice.indices = 9, torch.zeros(2, 3, dtype=torch.long)
    with pytest.raises(RuntimeError, match="17 tokens where 1 prefix tokens \\+ 9 units"):
        choice.drop(torch.randn(2, 17, 4))


@pytest.mark.parametrize("ratio", [0.0, 0.3, 0.5, 0.9])
def test_rows_of_different_length_keep_the_same_share_of_their_own(ratio: float) -> None:
    """Else long sentences are masked less, or special and padding tokens are masked (transformers#1395)."""
    lengths = [0, 1, 2, 7, 20, 30]
    maskable = torch.arange(34) < torch.tensor(lengths)[:, None] + 1
    maskable[:, 0] = False  # the class token
    keep = sample_keep_among(maskable, ratio, generator=torch.Generator().manual_seed(0))
    assert bool(keep[~maskable].all())
    expected = [0 if length == 0 else keep_count(length, ratio) for length in lengths]
    assert (keep & maskable).sum(dim=1).tolist() == expected


def test_choice_among_maskable_units_is_uniform() -> None:
    """Chi-square over the 6 subsets of 2 out of 4; 20.5 is the 0.1 % point for 5 degrees of freedom."""
    maskable = torch.tensor([False, True, True, False, True, True]).expand(30_000, 6)
    keep = sample_keep_among(maskable, 0.5, generator=torch.Generator().manual_seed(0))
    code = (keep[:, [1, 2, 4, 5]] * 2 ** torch.arange(4)).sum(dim=1)
    counts = torch.bincount(code, minlength=16)[[3, 5, 6, 9, 10, 12]]
    assert int(counts.sum()) == 30_000
    assert float(((counts - 5000.0) ** 2 / 5000.0).sum()) < 20.5


def test_pairs_and_positions_of_the_visible_units_are_gathered() -> None:
    """Else relative and rotary positions belong to other tokens (pytorch-image-models#2549, #2692)."""
    indices = kept_indices(sample_keep(3, 7, 0.5), 3)
    table, bias = torch.randn(7, 4), torch.randn(1, 2, 9, 9)
    tokens = torch.cat((torch.tensor([[0, 1]]).expand(3, 2), indices + 2), dim=1)
    for row in range(3):
        assert torch.equal(drop_positions(table, indices)[row], table[indices[row]])
        assert torch.equal(drop_pairs(bias, indices, prefix=2)[row], bias[0][:, tokens[row]][:, :, tokens[row]])


def test_pixels_are_blanked_where_keep_is_false() -> None:
    """40 x 70 pixels in blocks of 32: 2 x 3 units, the last column and row cut short."""
    x = torch.rand(2, 3, 40, 70) + 1
    keep = torch.tensor([[True, False, True, False, True, False], [False, True, False, True, False, True]])
    out = blank_pixels(x, keep, 32, fill=-7.0)
    for row in range(2):
        for i, j in itertools.product(range(40), range(70)):
            visible = bool(keep[row, (i // 32) * 3 + j // 32])
            expected = x[row, :, i, j] if visible else torch.full((3,), -7.0)
            assert torch.equal(out[row, :, i, j], expected)
