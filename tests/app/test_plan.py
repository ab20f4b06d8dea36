"""If these fail, a team books machines by figures that are wrong."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from masksub.app.errors import InputError
from masksub.app.models import create_criterion, create_model, create_optimizer
from masksub.app.plan import COUNTS, create_machine, make_plan, plan_text
from masksub.app.plan.activations import blocks_of, held_by
from masksub.app.plan.memory import memory_of
from masksub.app.plan.shapes import Shapes, count_shapes, meta_model, optimizer_bytes, step_of
from masksub.app.plan.steps import all_gather_seconds, all_reduce_seconds, update_of
from masksub.app.recipe import load_recipe
from masksub.app.settings import Recipe
from tests.app.plan_made_up import DEPTH, TOKENS, WIDTH, plan, recipe
from tests.core.test_flops import vit_forward


def parameters() -> int:
    """Weights of that model by hand: patch embedding, class token, positions, blocks, norm, head."""
    block = 4 * WIDTH * WIDTH + 4 * WIDTH + 8 * WIDTH * WIDTH + 5 * WIDTH + 4 * WIDTH
    return 4 * WIDTH + WIDTH + WIDTH + TOKENS * WIDTH + DEPTH * block + 2 * WIDTH + 10 * WIDTH + 10


@pytest.fixture(scope="module")
def shapes() -> Shapes:
    return count_shapes(recipe(), 10)


def test_counts_of_a_small_model_equal_a_hand_count(shapes: Shapes) -> None:
    assert shapes.parameters == parameters()
    assert shapes.weights == shapes.gradients == 4 * parameters()
    assert shapes.blocks == DEPTH
    assert shapes.block * DEPTH + shapes.rest == shapes.weights
    embed = 2 * 16 * 4 * WIDTH
    forwards = [vit_forward(tokens, 16, WIDTH, DEPTH, 2, 10) - 2 * 16 * 3 * 4 * WIDTH + embed for tokens in (17, 9)]
    assert shapes.plain == shapes.main == 3 * forwards[0] - embed
    assert shapes.sub == 3 * forwards[1] - embed


@pytest.mark.parametrize(("name", "each"), [("adamw", 2), ("lamb", 2), ("sgd", 1), ("lion", 1)])
def test_optimizer_state_equals_that_of_a_real_step(name: str, each: int) -> None:
    """The state of a real step on a CPU, and two (one) tensors for each weight."""
    wanted = recipe(f"optim.name={name}")
    model = create_model(wanted, 10)
    optimizer = create_optimizer(wanted, model)
    model(torch.zeros(2, 1, 8, 8)).sum().backward()
    optimizer.step()
    values = [value for state in optimizer.state.values() for value in state.values() if isinstance(value, Tensor)]
    counted = optimizer_bytes(wanted, meta_model(wanted, 10))
    assert counted == sum(value.nbytes for value in values)
    assert counted == pytest.approx(4 * each * parameters(), rel=0.02)  # and step counters


def test_an_optimizer_that_reads_values_is_refused() -> None:
    wanted = recipe("optim.name=novograd")
    with pytest.raises(InputError, match=r"optim\.name = 'novograd': its state can't be counted"):
        optimizer_bytes(wanted, meta_model(wanted, 10))


def kept_for_backward(model: nn.Module, step: Any, x: Tensor) -> list[int]:
    """What a real forward on a CPU keeps, told by saved_tensors_hooks, and its input; one figure a backward."""
    own = {tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), *model.buffers())}
    alive: list[Tensor] = []
    seen: dict[int, int] = {}
    found: list[int] = []

    def pack(tensor: Tensor) -> Tensor:
        alive.append(tensor)  # so that no other storage gets its address
        if tensor.untyped_storage().data_ptr() not in own:
            seen[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    def backward(loss: Tensor) -> None:
        found.append(sum(seen.values()))
        seen.clear()

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        seen[x.untyped_storage().data_ptr()] = x.nbytes
        step(model, x, backward)
    return found


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "resnet18", "swin_tiny_patch4_window7_224"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_activations_equal_what_a_real_forward_saves(name: str, precision: str) -> None:
    """The main branch of a real step on a CPU. Logits and losses, which the step itself holds, are the small rest."""
    wanted = load_recipe(
        "own/vit_small_finetune", [f"model.name={name}", "model.weights=null", f"train.precision={precision}"]
    )
    step = step_of(wanted, create_criterion(wanted), 10, 0.5, 0.0)
    held = held_by(meta_model(wanted, 10), step, (2, 3, 224, 224), precision=precision, device="cpu")
    torch.manual_seed(0)
    model = create_model(wanted, 10).train()
    if precision == "bf16":
        model.forward = torch.autocast("cpu", torch.bfloat16)(model.forward)
    (real,) = kept_for_backward(model, step, torch.zeros(2, 3, 224, 224))
    # In bf16 norms on a CPU keep their statistics in another precision than shapes tell.
    assert held.kept[0] + held.copies == pytest.approx(real, abs=200 + real * 2e-3 * (precision == "bf16"))


def test_split_mode_holds_one_branch_and_joint_mode_both() -> None:
    def kept(mode: str) -> tuple[int, ...]:
        wanted = recipe(f"sub.mode={mode}", "train.batch_size=32")
        step = step_of(wanted, create_criterion(wanted), 10, 0.5, 0.5)
        return held_by(meta_model(wanted, 10), step, (32, 1, 8, 8)).kept

    main, sub = kept("split")
    (both,) = kept("joint")
    assert 0.4 * main < sub < 0.7 * main
    assert both == pytest.approx(main + sub, rel=0.05)


def test_recompute_keeps_less_and_one_block_comes_back() -> None:
    changes = ("model.kwargs={patch_size: 2, embed_dim: 24, depth: 6, num_heads: 3}", "train.batch_size=32")
    usual, again = (count_shapes(recipe(*changes, f"train.recompute={on}"), 10) for on in ("false", "true"))
    assert usual.block_kept == 0
    assert again.block_kept == usual.held.block
    assert again.held.kept[0] + again.block_kept < 0.5 * usual.held.kept[0]
    assert usual.backward == pytest.approx(2 / 3)
    assert 1.2 * usual.main < again.main < 4 / 3 * usual.main, "blocks run forward twice, but for their last product"
    assert again.main * (1 - again.backward) == pytest.approx(usual.main / 3), "the forward itself is as it was"


def test_half_precision_halves_most_activations_and_adds_copies_of_weights() -> None:
    wide = ("model.kwargs={patch_size: 2, embed_dim: 48, depth: 4, num_heads: 3}", "train.batch_size=64")
    full, half = (count_shapes(recipe(*wide, f"train.precision={p}"), 10) for p in ("fp32", "bf16"))
    assert full.held.copies == 0
    assert 0.9 * full.weights / 2 < half.held.copies < full.weights / 2  # norms and tokens stay fp32
    assert 0.5 * full.held.kept[0] < half.held.kept[0] < 0.85 * full.held.kept[0]


def test_blocks_are_those_that_are_sharded() -> None:
    with torch.device("meta"):
        counts = [
            len(blocks_of(timm.create_model(name)))
            for name in ("vit_tiny_patch16_224", "swin_tiny_patch4_window7_224", "resnet50")
        ]
    assert counts == [12, 2 + 2 + 6 + 2, 3 + 4 + 6 + 3]


def test_memory_of_ddp_and_of_sharding_by_hand(shapes: Shapes) -> None:
    held = shapes.held
    one = memory_of("masksub", recipe("train.ema_decay=0.9"), shapes, gpus=1, batch=4, parts=1)
    weights = 4 * parameters()
    assert one.total == 3 * weights + shapes.optimizer + max(held.kept) + 2 * held.widest
    ddp = memory_of("masksub", recipe(), shapes, gpus=8, batch=8, parts=1)
    assert ddp.total == 3 * weights + shapes.optimizer + 2 * max(held.kept) + 4 * held.widest
    full = memory_of("masksub", recipe("train.shard=full"), shapes, gpus=8, batch=4, parts=1)
    assert full.weights == weights / 8 and full.optimizer == shapes.optimizer / 8 and full.buckets == 0
    assert full.gradients == weights / 8 + weights, "two backwards and one reduction: whole in between"
    assert full.gathered == shapes.rest + 2 * shapes.block
    plain = memory_of("plain", recipe("train.shard=full"), shapes, gpus=8, batch=4, parts=1)
    assert plain.gradients == weights / 8


def test_communication_by_hand() -> None:
    assert all_reduce_seconds(8e9, 4, 2e9) == pytest.approx(2 * 3 / 4 * 8 / 2)
    assert all_gather_seconds(8e9, 4, 2e9) == pytest.approx(3 / 4 * 8 / 2)
    assert all_reduce_seconds(8e9, 1, 2e9) == 0
    machine = create_machine("a100-80gb", "bf16", per_node=8, utilisation=0.4, network=400, assume=["links=0.5"])
    assert machine.bandwidth(8) == 0.5 * 300e9, "NVLink, one direction"
    assert machine.bandwidth(16) == 0.5 * 50e9, "the network of a node"


def test_an_update_by_hand(shapes: Shapes) -> None:
    """DDP hides its reduction behind the last backward alone; FSDP2 gathers before each pass."""
    machine = create_machine("h100-80gb", "fp32", per_node=8, utilisation=0.4, network=400)
    known = replace(shapes, plain=3e9, main=3e9, sub=1.5e9, gradients=40 * 10**9)
    more: dict[str, Any] = {"rate": 1e9, "gpus": 16, "batch": 2, "parts": 3}
    wire = 15 / 16  # seconds of a gather over 40 GB/s
    ddp = update_of("masksub", recipe(), known, machine, **more)
    assert ddp.compute == pytest.approx(3 * 2 * 4.5)
    assert ddp.communication == pytest.approx(2 * wire)
    assert ddp.seconds == pytest.approx(3 * 9 - 2 + max(2, 2 * wire)) and ddp.images == 16 * 2 * 3
    slow = replace(machine, network=100)
    assert update_of("masksub", recipe(), known, slow, **more).seconds == pytest.approx(3 * 9 - 2 + 8 * wire)
    plain = update_of("plain", recipe(), known, slow, **more)
    assert plain.seconds == pytest.approx(3 * 6 - 4 + 8 * wire)
    full = update_of("masksub", recipe("train.shard=full"), known, slow, **more)
    each = 4 * wire  # passes of 2, 4, 1 and 2 s
    batch = max(2, each) + max(4, each) + max(1, each) + max(2, each)
    assert full.seconds == pytest.approx(3 * batch - max(2, each) + max(2, 2 * each))
    assert full.communication == pytest.approx(3 * 4 * each + each)


def test_more_gpus_are_never_slower_nor_more_efficient(shapes: Shapes) -> None:
    wanted = recipe("train.batch_size=4")
    # Links as fast between nodes as within: a step to a slower network may well cost speed.
    machine = create_machine("h100-80gb", "fp32", per_node=8, utilisation=0.4, network=3600)
    found = make_plan(wanted, machine, gpus=8, images=14_197_122, classes=10, shapes=shapes)
    assert [updates["masksub"].gpus for _, updates, _ in found.table] == list(COUNTS)
    for arm in ("plain", "masksub"):
        speeds = [updates[arm].images_per_second for _, updates, _ in found.table]
        ideal = [updates[arm].efficiency for _, updates, _ in found.table]
        assert speeds == sorted(speeds)
        assert ideal == sorted(ideal, reverse=True) and ideal[0] == 1 and ideal[-1] < 1


def test_an_update_of_fixed_size_stays_so_on_any_number_of_gpus(shapes: Shapes) -> None:
    found = plan("train.batch_size=32", "train.global_batch_size=512", images=10_000, classes=10, shapes=shapes)
    assert {updates["masksub"].images for _, updates, _ in found.table} == {512}
    assert [(u["masksub"].batch, u["masksub"].parts) for _, u, _ in found.table][-2:] == [(2, 1), (1, 1)]
    assert found.totals["masksub"].updates == 45 * (10_000 // 512)


def test_a_measured_speed_takes_the_place_of_the_peak(shapes: Shapes) -> None:
    found = plan(gpus=1, measured=100.0, shapes=shapes)
    assert found.updates["masksub"].images_per_second == pytest.approx(100)
    ratio = (found.shapes.main + found.shapes.sub) / found.shapes.plain
    assert found.updates["plain"].images_per_second == pytest.approx(100 * ratio)
    both = plan(gpus=1, measured=100.0, measured_plain=130.0, shapes=shapes)
    assert both.updates["plain"].images_per_second == pytest.approx(130)
    assert "100 images/s of masksub on one device" in plan_text(found)


def test_measured_here_is_the_trainers_own_speed(monkeypatch: pytest.MonkeyPatch) -> None:
    """One batch an update, whatever the recipe accumulates."""
    from masksub.app.plan import measured

    asked: list[Recipe] = []
    monkeypatch.setattr(measured, "measure", lambda recipe, images, validation: (asked.append(recipe), (0.5, 1.0))[1])
    speed, where = measured.measure_here(recipe("train.batch_size=32", "train.accumulate=4"))
    assert speed == 64 and "measured here on" in where
    assert asked[0].train.accumulate == 1


def test_too_little_memory_says_what_to_change() -> None:
    wanted = recipe("train.batch_size=64", "sub.mode=joint", "augment.mixup=0.2", "data.train_images=null")
    shapes = count_shapes(wanted, 10)
    need = memory_of("masksub", wanted, shapes, gpus=2, batch=64, parts=1).total
    machine = create_machine(
        "h100-80gb", "fp32", per_node=8, utilisation=0.4, network=400, assume=[f"memory={need / 1e9}", "reserve=0.2"]
    )
    text = plan_text(make_plan(wanted, machine, gpus=2, shapes=shapes))
    assert "does NOT fit" in text
    for change in (
        "train.batch_size=32 train.accumulate=2",
        "train.recompute=true",
        "sub.mode=split",
        "train.shard=full",
    ):
        assert change in text
    roomy = replace(machine, memory=2 * machine.memory)
    assert "does NOT fit" not in plan_text(make_plan(wanted, roomy, gpus=2, shapes=shapes))


def test_advice_to_recompute_is_given_only_where_training_would_accept_it() -> None:
    """Batch norm, and both branches in one backward, refuse it: the plan must not send anybody there."""
    machine = create_machine("h100-80gb", "fp32", per_node=8, utilisation=0.4, network=400, assume=["memory=0.0001"])
    for changes, advised in (
        (["method=plain"], True),
        (["method=dropsub", "sub.mode=joint"], False),
        (["method=plain", "model.name=resnet10t", "model.kwargs={}", "data.image_size=32"], False),
    ):
        text = plan_text(make_plan(recipe(*changes), machine, gpus=1))
        assert "does NOT fit" in text and ("train.recompute=true" in text) is advised, changes


def test_a_warm_up_that_training_would_refuse_is_refused(shapes: Shapes) -> None:
    changes = ("train.epochs=3", "optim.warmup_epochs=500")
    with pytest.raises(InputError, match=r"optim\.warmup_epochs = 500\.0: .* shorter than train\.epochs = 3"):
        plan(*changes, images=1000, classes=10, shapes=shapes)


def test_models_that_drop_no_tokens_are_said_to_be_slower_than_told() -> None:
    """One share of the peak for all architectures makes plans of convolutions too short."""
    convolutions = ["model.name=resnet10t", "model.kwargs={}", "data.image_size=64"]
    windows = [
        "data.image_size=64",
        "model.name=swin_tiny_patch4_window7_224",
        "model.kwargs={patch_size: 2, window_size: 4, embed_dim: 16, depths: [1], num_heads: [2]}",
    ]
    for changes, told in ((convolutions, True), (windows, True), ([], False), (["method=plain", *convolutions], True)):
        text = plan_text(plan(*changes, gpus=1))
        assert ("drops no tokens; such models" in text and "measure one GPU" in text) is told, changes
    assert "drops no tokens" not in plan_text(plan(*convolutions, gpus=1, measured=100.0))


def test_meta_models_are_left_alone_by_counting() -> None:
    """Counting the optimizer's state leaves no gradients behind."""
    wanted = recipe()
    model = meta_model(wanted, 10)
    before = copy.deepcopy(model.state_dict())
    optimizer_bytes(wanted, model)
    assert all(parameter.grad is None for parameter in model.parameters())
    assert model.state_dict().keys() == before.keys()
