"""DropSub, PathSub, CoSub, sums, batch-norm statistics. If these fail, a variant trains on something else."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
import torchvision.models
from torch import Tensor, nn

import masksub
from masksub import CoSub, DropSub, MaskSub, PathSub
from masksub.core.dropouts import dropout_sites
from masksub.core.flops import step_flops
from masksub.core.intercept import Interceptor, swapped
from masksub.core.paths import find_paths
from masksub.core.residual import exits_of
from tests.cases.case import Case, call_of, logits_of
from tests.models import CASES, resnet, vit


def batch(size: int = 6, pixels: int = 16) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    return torch.randn(size, 3, pixels, pixels, generator=generator), torch.arange(size) % 5


def gradients(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def stirred(model: nn.Module) -> nn.Module:
    """Noise on all weights: layers that start at zero would hide what a branch does."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator(1)))
    return model


# --- DropSub


def test_dropout_is_in_force_at_its_rate_in_the_sub_branch_only() -> None:
    model, (x, _) = vit().eval(), batch(64)
    expected, zeros = model(x), {}
    for path in dropout_sites(model):
        model.get_submodule(path).register_forward_hook(
            lambda m, a, out, path=path: zeros.__setitem__(path, float((out == 0).float().mean()))
        )
    with DropSub(0.3).applied(model):
        dropped = model(x)
    assert sorted(zeros) == sorted(f"blocks.{i}.{s}" for i in (0, 1) for s in ("attn.proj_drop", "mlp.drop2"))
    assert all(abs(share - 0.3) < 0.02 for share in zeros.values()), zeros  # 64 * 17 * 24 values each
    assert not torch.allclose(dropped, expected)
    assert torch.equal(model(x), expected)


def test_the_recipes_own_rates_are_back_also_after_an_exception() -> None:
    """Else the main branch goes on with another recipe."""
    model, (x, _) = vit(proj_drop_rate=0.2, drop_path_rate=0.3), batch()

    def rates() -> list[Any]:
        drops = [(m.p, m.training) for m in model.modules() if isinstance(m, nn.Dropout)]
        return drops + [m.drop_prob for m in model.modules() if hasattr(m, "drop_prob")]

    before = rates()
    for branch in (DropSub(0.5), PathSub(0.5), PathSub(0.5, efficient=False), MaskSub(0.5) + DropSub(0.5)):
        with pytest.raises(KeyError), branch.applied(model):
            model(x)
            raise KeyError
        assert rates() == before


@pytest.mark.parametrize(("branch", "message"), [(DropSub(0.1), "no dropout"), (PathSub(0.1), "no residual branch")])
def test_a_branch_that_changes_nothing_is_an_error(branch: masksub.Branch, message: str) -> None:
    plain = nn.Sequential(nn.Flatten(), nn.Linear(768, 5))
    step = masksub.TwoBranchStep(plain, F.cross_entropy, sub=branch)
    with pytest.raises(ValueError, match=f"changes nothing: Sequential has {message}"):
        step(*batch())


@pytest.mark.parametrize("branch", [DropSub, PathSub, CoSub])
@pytest.mark.parametrize("p", [1.0, -0.1, float("nan")])
def test_a_rate_out_of_range_is_named(branch: Callable[[float], Any], p: float) -> None:
    with pytest.raises(ValueError, match=r"p = .*0 <= p < 1"):
        branch(p)


# --- PathSub


def by_hand(model: Any, x: Tensor, rows: Tensor, kept: int) -> Tensor:
    """A ViT's forward written out, each residual branch for the inputs ``rows`` of it, scaled by B / K."""
    tokens = model.norm_pre(model.patch_drop(model._pos_embed(model.patch_embed(x))))
    numbers = iter(rows)

    def residual(tokens: Tensor, branch: Callable[[Tensor], Tensor]) -> Tensor:
        chosen = torch.zeros(len(x), 1, 1).index_fill(0, next(numbers), len(x) / kept)
        return tokens + chosen * branch(tokens)

    for block in model.blocks:
        tokens = residual(tokens, lambda t, b=block: b.ls1(b.attn(b.norm1(t))))  # type: ignore[misc]
        tokens = residual(tokens, lambda t, b=block: b.ls2(b.mlp(b.norm2(t))))  # type: ignore[misc]
    return model.forward_head(model.norm(tokens))


@pytest.mark.parametrize("rate", [0.0, 0.4])
def test_efficient_paths_equal_the_formula_whatever_the_models_own_rate(rate: float) -> None:
    """A model built without drop path has the places all the same."""
    model, (x, _) = vit(drop_path_rate=rate).train(), batch()
    rows = torch.rand(4, 6, generator=generator(7)).argsort(dim=1)[:, :3]
    with PathSub(0.5).applied(model, generator=generator(7)):
        out = model(x)
    for module in model.modules():
        if hasattr(module, "drop_prob"):
            module.drop_prob = 0.0
    torch.testing.assert_close(out, by_hand(model, x, rows, 3))


def test_plain_paths_are_bernoulli_for_each_input() -> None:
    """One block, one input repeated: the branch is there with 1 / (1 - p) or not at all."""
    model = vit(depth=1).eval()
    with PathSub(0.25, efficient=False).applied(model, generator=generator()):
        out = model(batch(1)[0].expand(2000, -1, -1, -1))
    kinds, counts = out.round(decimals=5).unique(dim=0, return_counts=True)
    assert len(kinds) == 4  # two residual branches, each there or not
    expected = torch.tensor([0.0625, 0.1875, 0.1875, 0.5625]) * 2000
    assert float(((counts.sort().values - expected) ** 2 / expected).sum()) < 16.3  # 0.1 % point, 3 degrees of freedom


class Nothing(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.zeros_like(x)


def test_expectation_of_a_residual_branch_is_unchanged() -> None:
    """Averaged over draws, a branch with its scale is the whole branch: else sub and main differ by more than noise."""
    model, (x, _) = vit(depth=1).eval(), batch(4)
    block: Any = model.blocks[0]  # type: ignore[index]
    tokens, seen = torch.randn(4, 17, 24), []
    block.mlp = Nothing()  # the first branch alone
    whole = block(tokens).detach()
    block.register_forward_pre_hook(lambda m, a: (tokens,))
    block.register_forward_hook(lambda m, a, out: seen.append(out))
    draws = generator()
    with torch.no_grad(), PathSub(0.5).applied(model, generator=draws):
        for _ in range(400):
            model(x)
    mean = torch.stack(seen).mean(dim=0)
    branch = (whole - tokens).abs().max()
    assert float((mean - whole).abs().max()) < 0.2 * float(branch)  # a share of 1/2 kept of 400: 5 % standard error
    rows = torch.stack([(out - tokens).abs().amax(dim=(1, 2)) > 0 for out in seen])
    assert rows.sum(dim=1).tolist() == [2] * 400  # exactly half of the batch


FAMILIES: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "vit": (vit, 16),
    "vit, post-norm": (lambda: timm.create_model("vit_relpos_small_patch16_rpn_224", img_size=32, patch_size=8, depth=2,
                                                 num_classes=5), 32),
    "resnet": (resnet, 64),
    "cait, one drop path for two branches": (
        lambda: timm.create_model("cait_xxs24_224", img_size=32, patch_size=8, depth=2, num_classes=5), 32),
    "convnext": (lambda: timm.create_model("convnext_atto", depths=(1, 1, 1, 1), dims=(8, 8, 8, 8), num_classes=5), 64),
    "swin": (lambda: timm.create_model("swin_tiny_patch4_window7_224", img_size=64, window_size=4, embed_dim=12,
                                       depths=(2, 1, 1, 1), num_heads=(1, 1, 1, 1), num_classes=5), 64),
    "eva, rotary": (lambda: timm.create_model("eva02_tiny_patch14_224", img_size=28, depth=2, num_classes=5), 28),
    "efficientnet": (lambda: timm.create_model("efficientnet_b0", num_classes=5), 64),
    "tnt, patches as rows": (lambda: timm.create_model("tnt_s_patch16_224", img_size=32, depth=2, num_classes=5), 32),
    "torchvision vit": (lambda: torchvision.models.VisionTransformer(16, 4, 2, 2, 24, 48, num_classes=5), 16),
    "torchvision resnet": (lambda: torchvision.models.resnet18(num_classes=5), 32),
}  # fmt: skip


def case_library(case: Case) -> str:
    """Where the case is written: those of transformers have files of their own."""
    return "transformers" if type(case).__name__ in ("TextCase", "NamedCase") else ""


def part_and_whole(model: nn.Module, x: Any) -> tuple[Tensor, Tensor, Tensor, int]:
    """Logits with residual branches run on a part of the batch, and with the same ones run whole; plain logits; number
    of those run on a part."""
    call = call_of(x)
    part, whole = (find_paths(model, call, (), efficient) for efficient in (True, False))
    assert all(r.entry is None for r in whole.residuals)
    results = []
    for paths in (part, whole):
        with Interceptor(lambda _, p=paths: p, lambda _, p: p.interceptions()).applied(model):  # type: ignore[misc]
            paths.draw(call.x, 0.5, generator())
            if paths is whole:
                assert whole.rows is not None
                size = call.x.shape[0]
                chosen = torch.zeros(len(whole.residuals), size).scatter(1, whole.rows, whole.factor)
                bernoulli = torch.rand(len(whole.residuals), size, generator=generator()) >= 0.5
                alone = torch.tensor([r.entry is None for r in part.residuals])
                whole.scales = torch.where(alone[:, None], bernoulli * 2.0, chosen)
            results.append(logits_of(model, x))
    return results[0], results[1], logits_of(model, x), sum(r.entry is not None for r in part.residuals)


@pytest.mark.parametrize("name", FAMILIES)
def test_on_a_part_of_the_batch_equals_run_whole(name: str) -> None:
    """The branch run on K inputs gives what it gives these inputs in the whole batch (batch norm in eval mode)."""
    build, pixels = FAMILIES[name]
    one, other, plain, count = part_and_whole(stirred(build()).eval(), batch(4, pixels)[0])
    assert count > 0
    torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)
    assert not torch.allclose(one, plain)


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if "transformers" in case_library(case)])
def test_transformers_run_on_a_part_of_the_batch(name: str) -> None:
    """Their layers were not made for drop path; sentences bring attention masks that must follow the inputs."""
    model, (x, _) = CASES[name].model().eval(), CASES[name].inputs()
    if not exits_of(model):
        pytest.skip("no residual branches that masksub knows")
    one, other, plain, _ = part_and_whole(model, x)
    torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)
    assert not torch.allclose(one, plain)


@pytest.mark.parametrize("name", ["bert", "distilbert", "modernbert", "deberta-v2", "roberta", "hf vit", "hf clip"])
def test_all_residual_branches_of_these_run_on_a_part(name: str) -> None:
    model, (x, _) = CASES[name].model().eval(), CASES[name].inputs()
    residuals = find_paths(model, call_of(x), (), True).residuals
    assert residuals and all(r.entry is not None for r in residuals)


def test_sequence_first_blocks_are_refused() -> None:
    """Their rows are tokens: dropping these would be another method, silently."""

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc, self.drop_path = nn.Linear(8, 8), nn.Identity()

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = x + self.drop_path(self.fc(x))
            return out

    class SequenceFirst(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = super().forward(x.transpose(0, 1)).mean(dim=0)
            return out

    model = SequenceFirst(Block())
    for efficient in (True, False):
        with pytest.raises(ValueError, match=r"inputs: residual branches are dropped by input"):  # noqa: SIM117
            with PathSub(0.5, efficient=efficient).applied(model):
                model(torch.randn(4, 5, 8))


def test_new_blocks_are_seen() -> None:
    """Model surgery between steps."""
    model, (x, _) = vit().eval(), batch()
    with PathSub(0.5).applied(model):
        model(x)
    model.blocks.append(copy.deepcopy(model.blocks[0]))  # type: ignore[index, operator, union-attr]
    seen: list[int] = []
    model.blocks[2].attn.register_forward_pre_hook(lambda m, a: seen.append(len(a[0])))  # type: ignore[index, union-attr]
    with PathSub(0.5).applied(model):
        model(x)
    assert seen == [3]


def test_contexts_left_in_another_order_leave_nothing_behind() -> None:
    """Branches put in force by hand, one inside the other, at the same place."""
    model, (x, _) = vit().eval(), batch()
    expected, before = model(x), [sorted(vars(m)) for m in model.modules()]
    one, two = MaskSub(0.5).applied(model), PathSub(0.5).applied(model)
    one.__enter__()
    two.__enter__()
    model(x)
    one.__exit__(None, None, None)
    two.__exit__(None, None, None)
    assert [sorted(vars(m)) for m in model.modules()] == before and torch.equal(model(x), expected)
    owner = nn.Identity()
    outer, inner = swapped(owner, "forward", 1), swapped(owner, "forward", 2)
    outer.__enter__()
    inner.__enter__()
    outer.__exit__(None, None, None)
    assert owner.forward == 2
    inner.__exit__(None, None, None)
    assert "forward" not in vars(owner)


def test_keep_for_a_branch_that_masks_nothing_is_refused() -> None:
    model, (x, _) = vit(), batch()
    for branch in (PathSub(0.5), DropSub(0.5)):
        with pytest.raises(ValueError, match="masks nothing"), branch.applied(model, keep=torch.ones(6, 16).bool()):
            model(x)


@pytest.mark.parametrize("name", ["vit", "eva, rotary", "swin", "resnet"])
@pytest.mark.parametrize("efficient", [True, False])
def test_split_and_joint_give_the_same_gradient_with_masks_and_paths(name: str, efficient: bool) -> None:
    build, pixels = FAMILIES[name]
    one, (x, y) = stirred(build()), batch(4, pixels)
    two = copy.deepcopy(one)
    for model, mode in ((one, "split"), (two, "joint")):
        sub = MaskSub(0.5) + PathSub(0.3, efficient=efficient)
        torch.manual_seed(5)  # the main branch's own drop path
        masksub.TwoBranchStep(model, F.cross_entropy, sub=sub, mode=mode)(x, y, generator=generator())  # type: ignore[arg-type]
    torch.testing.assert_close(gradients(one), gradients(two), atol=1e-6, rtol=1e-4)


def test_masks_and_paths_together_equal_the_formula() -> None:
    model, (x, _) = vit().eval(), batch()
    keep = masksub.sample_keep(6, 16, 0.5)
    rows = torch.rand(4, 6, generator=generator(7)).argsort(dim=1)[:, :3]
    with (MaskSub(0.5) + PathSub(0.5)).applied(model, keep=keep, generator=generator(7)):
        out = model(x)
    with MaskSub(0.5).applied(model, keep=keep):
        model(x)
        torch.testing.assert_close(out, by_hand(model, x, rows, 3))


def test_efficient_paths_cost_their_share() -> None:
    """Half of the inputs in each block: the blocks of the sub branch cost half."""

    def flops(sub: masksub.Branch, weight: float = 0.5) -> int:
        def run(model: nn.Module, x: Tensor) -> None:
            y = torch.zeros(len(x), dtype=torch.long, device="meta")
            masksub.TwoBranchStep(model, F.cross_entropy, sub=sub, weight=weight)(x, y)

        return step_flops(vit(), run, (8, 3, 16, 16))

    plain = flops(MaskSub(0.5), weight=0.0)
    whole = flops(PathSub(0.5, efficient=False))
    embed, head = 2 * (2 * 16 * 48 * 24), 3 * (2 * 24 * 5)  # forward and weights; forward and both gradients
    blocks = plain // 8 - embed - head
    assert whole == 2 * plain
    assert flops(PathSub(0.5)) == 8 * (2 * (embed + head) + blocks + blocks // 2)


def test_a_batch_too_small_to_drop_an_input_is_run_whole() -> None:
    """The last batch of an epoch may have one input: it is dropped with probability p, as drop path does."""
    model, (x, _) = vit().eval(), batch(1)
    with PathSub(0.5).applied(model, generator=generator(2)):
        results = [model(x) for _ in range(20)]
    assert len({tuple(r[0].tolist()) for r in results}) > 2
    with PathSub(0.1).applied(model, generator=generator(2)):
        model(x)


def test_two_draws_differ_and_a_seed_repeats_them() -> None:
    model, (x, _) = vit().eval(), batch()
    results = []
    for seed in (1, 1, 2):
        with PathSub(0.5).applied(model, generator=generator(seed)):
            results.append(model(x))
    assert torch.equal(results[0], results[1]) and not torch.equal(results[0], results[2])


@pytest.mark.parametrize("sub", [PathSub(0.5), DropSub(0.5), MaskSub(0.5) + PathSub(0.5)], ids=repr)
def test_gradient_checkpointing_in_split_mode(sub: masksub.Branch) -> None:
    """Backward runs blocks again: if the branch were gone by then, the gradient would be silently wrong."""
    one, (x, y) = vit(), batch()
    two: Any = copy.deepcopy(one)
    two.set_grad_checkpointing()
    for model in (one, two):
        torch.manual_seed(5)
        masksub.TwoBranchStep(model, F.cross_entropy, sub=sub)(x, y, generator=generator())
    torch.testing.assert_close(gradients(two), gradients(one))
    with pytest.raises(ValueError, match="gradient checkpointing"):
        masksub.TwoBranchStep(two, F.cross_entropy, sub=sub, mode="joint")(x, y)


# --- Sums


def test_sums_say_what_they_are_and_refuse_what_makes_no_sense() -> None:
    both = MaskSub(0.5) + PathSub(0.1) + DropSub(0.2)
    for part in ("MaskSub(ratio=0.5", "PathSub(p=0.1", "DropSub(p=0.2"):
        assert part in repr(both)
    with pytest.raises(ValueError, match="MaskSub stands there twice"):
        MaskSub(0.5) + MaskSub(0.25)
    with pytest.raises(ValueError, match="CoSub draws both branches"):
        MaskSub(0.5) + CoSub(0.1)
    with pytest.raises(TypeError):
        MaskSub(0.5) + 1  # type: ignore[operator]


# --- CoSub


@pytest.mark.parametrize("weight", [0.0, 0.5, 1.0])
def test_both_branches_learn_from_each_other(weight: float) -> None:
    one, (x, y) = vit(), batch()
    two = copy.deepcopy(one)
    out = masksub.TwoBranchStep(one, F.cross_entropy, sub=CoSub(0.5), weight=weight)(x, y, generator=generator())
    draws, logits = generator(), []
    for _ in range(2):
        with PathSub(0.5).applied(two, generator=draws):
            logits.append(two(x))
    a, b = logits

    def soft(z: Tensor, other: Tensor) -> Tensor:
        return -(other.detach().softmax(-1) * z.log_softmax(-1)).sum(-1).mean()

    labels = (F.cross_entropy(a, y) + F.cross_entropy(b, y)) / 2
    if weight > 0:
        loss = (1 - weight) * labels + weight * (soft(a, b) + soft(b, a)) / 2
        loss.backward()
        torch.testing.assert_close(out.loss, loss.detach())
        torch.testing.assert_close(gradients(one), gradients(two), atol=1e-6, rtol=1e-4)
        assert not torch.equal(a, b)
    else:  # the plain step
        assert out.loss_sub is None


def test_cosub_has_no_main_branch_to_keep_statistics_for() -> None:
    with pytest.raises(ValueError, match="has no main branch"):
        CoSub(0.1, bn="main")


def test_cosub_has_no_labels_target() -> None:
    with pytest.raises(ValueError, match="learn from each other"):
        masksub.TwoBranchStep(vit(), F.cross_entropy, sub=CoSub(0.1), target="labels")


# --- Batch norm


def statistics(model: nn.Module) -> list[Tensor]:
    return [b.clone() for n, b in model.named_buffers() if "running" in n or "num_batches" in n]


@functools.cache
def after_a_step(bn: Any, weight: float) -> list[Tensor]:
    torch.manual_seed(0)
    model, (x, y) = resnet().train(), batch(4, 64)
    step = masksub.TwoBranchStep(model, F.cross_entropy, sub=MaskSub(0.5, bn=bn), weight=weight)
    step(x, y, keep=torch.tensor([[True, False, False, True]] * 4))
    return statistics(model)


def test_batch_norm_statistics_of_one_or_both_branches() -> None:
    """main: as if there were no sub branch, counters included. shared: both are seen."""
    plain, main, shared = after_a_step("main", 0.0), after_a_step("main", 0.5), after_a_step("shared", 0.5)
    assert len(plain) > 0
    assert all(torch.equal(a, b) for a, b in zip(plain, main))
    assert not any(torch.equal(a, b) for a, b in zip(plain, shared))


def test_with_main_the_sub_branch_still_normalises_by_its_batch() -> None:
    model, (x, _) = resnet().train(), batch(4, 64)
    keep = torch.tensor([[True, False, False, True]] * 4)
    results = []
    for bn in ("shared", "main"):
        with MaskSub(0.5, bn=bn).applied(model, keep=keep):  # type: ignore[arg-type]
            results.append(model(x))
    assert torch.equal(results[0], results[1])
    model.eval()  # frozen batch norm stays frozen
    before = model(x)
    with MaskSub(0.0, bn="main").applied(model):
        assert torch.equal(model(x), before)


def test_unknown_batch_norm_setting_is_named() -> None:
    with pytest.raises(ValueError, match="bn = 'sub'"):
        MaskSub(0.5, bn="sub")  # type: ignore[arg-type]


def test_exits_are_found_by_name_and_by_table() -> None:
    assert exits_of(vit()) == {f"blocks.{i}": ["drop_path1", "drop_path2"] for i in range(2)}
    tv = torchvision.models.VisionTransformer(16, 4, 1, 2, 24, 48, num_classes=5)
    assert exits_of(tv) == {"encoder.layers.encoder_layer_0": ["dropout", "mlp"]}
