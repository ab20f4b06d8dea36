"""The step against the formula written out. If these fail, some loop trains on another gradient than it should."""

from __future__ import annotations

import copy
import functools
import pickle
from types import SimpleNamespace
from typing import Any

import pytest
import timm.loss
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import masksub
from masksub.core.call import Call
from masksub.core.methods import METHODS
from tests.models import resnet, vit


def gradients(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def by_hand(model: nn.Module, x: Tensor, keep: Tensor, main_loss: Any, sub_loss: Any, weight: float) -> Tensor:
    """L = (1 - w) L_main + w L_sub with one backward; sub_loss gets (sub logits, main logits detached)."""
    logits = model(x)
    with masksub.MaskSub(0.5).applied(model, keep=keep):
        sub_logits = model(x)
    loss = (1 - weight) * main_loss(logits) + weight * sub_loss(sub_logits, logits.detach())
    loss.backward()
    return loss.detach()


def soft_ce(sub: Tensor, main: Tensor) -> Tensor:
    return -(main.softmax(-1) * sub.log_softmax(-1)).sum(-1).mean()


def soft_bce(sub: Tensor, main: Tensor) -> Tensor:
    t = main.sigmoid()
    return -(t * F.logsigmoid(sub) + (1 - t) * F.logsigmoid(-sub)).mean()


def batch(size: int = 6, pixels: int = 16) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(size, 3, pixels, pixels, generator=generator)
    y = torch.randint(5, (size,), generator=generator)
    return x, y, masksub.sample_keep(size, 16, 0.5, generator=generator)


class ByName(nn.Module):
    """A user's own model, called with a batch as it comes."""

    def __init__(self) -> None:
        super().__init__()
        self.net = resnet()

    def forward(self, image: Tensor, target: Any = None, **others: Any) -> Any:
        return SimpleNamespace(logits=self.net(image))


@pytest.mark.parametrize("target", [torch.arange(4), torch.eye(5)[:4], torch.ones(4, 32, 32, dtype=torch.long)])
def test_the_order_of_a_batchs_keys_says_nothing(target: Tensor) -> None:
    """Targets that come before the image, hard, soft and by pixel, are none of what is masked."""
    losses, image = [], torch.randn(4, 3, 64, 64)
    for x in ({"image": image, "target": target}, {"target": target, "image": image}):
        torch.manual_seed(0)
        step = masksub.TwoBranchStep(ByName(), F.cross_entropy, sub=masksub.MaskSub(0.5))
        losses.append(step(x, torch.arange(4), generator=torch.Generator().manual_seed(1)).loss_sub)
    assert losses[0] is not None and losses[1] is not None and torch.equal(losses[0], losses[1])


IMAGE, WIDE, VECTOR, IDS = torch.zeros(2, 3, 4, 4), torch.zeros(2, 5), torch.zeros(2), torch.zeros(2, 7).long()


@pytest.mark.parametrize(
    ("args", "kwargs", "main", "named"),
    [
        ((IMAGE, WIDE), {}, None, "positional argument 1"),
        ((WIDE, IMAGE), {}, None, "positional argument 1"),  # the order of a signature does say something
        ((None, VECTOR, IMAGE), {}, None, "positional argument 3"),
        ((VECTOR,), {"image": IMAGE}, None, "argument 'image'"),
        ((VECTOR,), {}, None, "positional argument 1"),
        ((IMAGE,), {"mask": IMAGE}, None, "positional argument 1"),
        ((), {"labels": WIDE, "weight": VECTOR, "x": IDS}, None, "argument 'x'"),
        ((), {"soft": WIDE, "image": IMAGE}, None, "argument 'image'"),
        ((), {"a": IMAGE, "b": IMAGE}, None, "argument 'a'"),
        ((), {"ids": IDS, "mask": IDS}, None, "argument 'ids'"),
        ((), {"bias": IMAGE, "input_ids": IDS}, "input_ids", "argument 'input_ids'"),
        ((), {"pixel_values": IMAGE, "mask": WIDE}, "input_ids", "argument 'pixel_values'"),
    ],
)
def test_what_is_taken_for_the_input(args: Any, kwargs: Any, main: Any, named: str) -> None:
    call, other = Call(args, kwargs, main), torch.ones(1)
    assert call.named == named
    changed = call.with_x(other)
    values, before = [*changed.args, *changed.kwargs.values()], [*args, *kwargs.values()]
    assert [old for new, old in zip(values, before) if new is other] == [call.x]


@pytest.mark.parametrize("build", [resnet, vit])
def test_an_input_that_is_none_is_named(build: Any) -> None:
    """Else a user is told of a shape, and not where it came from."""
    for x, name in (({"target": torch.arange(6)}, "argument 'target'"), (torch.zeros(6, 5), "positional argument 1")):
        with masksub.MaskSub(0.5).applied(model := build()), pytest.raises(ValueError, match=name):
            model(**x) if isinstance(x, dict) else model(x)


def one_hot(y: Tensor) -> Tensor:
    """Soft labels as mixup gives them."""
    return 0.7 * F.one_hot(y, 5).float() + 0.3 * F.one_hot(y.flip(0), 5).float()


CRITERIA = {
    "cross-entropy": (nn.CrossEntropyLoss(), False, soft_ce),
    "cross-entropy, smoothed": (nn.CrossEntropyLoss(label_smoothing=0.1), False, soft_ce),
    "cross-entropy, soft labels": (nn.CrossEntropyLoss(), True, soft_ce),
    "cross-entropy, sum": (nn.CrossEntropyLoss(reduction="sum"), False, lambda s, m: soft_ce(s, m) * len(s)),
    "function": (F.cross_entropy, False, soft_ce),
    "partial": (functools.partial(F.cross_entropy, label_smoothing=0.1, reduction="sum"), False,
                lambda s, m: soft_ce(s, m) * len(s)),
    "timm smoothing": (timm.loss.LabelSmoothingCrossEntropy(0.1), False, soft_ce),
    "timm soft target": (timm.loss.SoftTargetCrossEntropy(), True, soft_ce),
    "bce": (nn.BCEWithLogitsLoss(), True, soft_bce),
    "bce, sum": (nn.BCEWithLogitsLoss(reduction="sum"), True, lambda s, m: soft_bce(s, m) * s.numel()),
    "bce function": (F.binary_cross_entropy_with_logits, True, soft_bce),
    "timm bce": (timm.loss.BinaryCrossEntropy(smoothing=0.1), False, soft_bce),
    "timm bce, threshold": (timm.loss.BinaryCrossEntropy(smoothing=0.0, target_threshold=0.2), True, soft_bce),
    "timm bce, sum of classes": (
        timm.loss.BinaryCrossEntropy(sum_classes=True), False, lambda s, m: soft_bce(s, m) * s.shape[1],
    ),
}  # fmt: skip


@pytest.mark.parametrize("weight", [0.25, 0.5, 1.0])
@pytest.mark.parametrize("mode", ["split", "joint"])
@pytest.mark.parametrize("name", CRITERIA)
def test_gradient_is_that_of_the_formula(name: str, mode: Any, weight: float) -> None:
    criterion, soft, sub_loss = CRITERIA[name]
    x, y, keep = batch()
    y = one_hot(y) if soft else y
    one = vit()
    two = copy.deepcopy(one)
    expected = by_hand(one, x, keep, lambda z: criterion(z, y), sub_loss, weight)
    step = masksub.TwoBranchStep(two, criterion, sub=masksub.MaskSub(0.5), weight=weight, mode=mode)
    out = step(x, y, keep=keep)
    torch.testing.assert_close(out.loss, expected)
    torch.testing.assert_close(gradients(two), gradients(one), atol=1e-6, rtol=1e-4)
    assert all(t is not None and not t.requires_grad for t in vars(out).values())
    torch.testing.assert_close(out.loss, (1 - weight) * out.loss_main + weight * out.loss_sub)


def test_joint_loss_without_backward() -> None:
    x, y, keep = batch()
    one = vit()
    two = copy.deepcopy(one)
    masksub.TwoBranchStep(one, F.cross_entropy, sub=masksub.MaskSub(0.5))(x, y, keep=keep)
    loss = masksub.TwoBranchStep(two, F.cross_entropy, sub=masksub.MaskSub(0.5)).loss(x, y, keep=keep)
    assert gradients(two) == {}
    loss.backward()
    torch.testing.assert_close(gradients(two), gradients(one))


class Focal(nn.CrossEntropyLoss):
    """Inherits from cross-entropy and is another criterion."""

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        return super().forward(input, target) ** 2


@pytest.mark.parametrize(
    ("criterion", "message"),
    [
        (Focal(), "does not know the criterion Focal"),
        (nn.MSELoss(), "does not know the criterion MSELoss"),
        (lambda z, y: z.sum(), "does not know the criterion <function"),
        (functools.wraps(F.cross_entropy)(lambda z, y: z.sum()), "does not know the criterion"),
        (functools.partial(F.cross_entropy, weight=torch.ones(5)), "class weights"),
        (functools.partial(F.cross_entropy, size_average=False), "size_average"),
        (nn.CrossEntropyLoss(weight=torch.ones(5)), "class weights"),
        (nn.BCEWithLogitsLoss(pos_weight=torch.ones(5)), "class weights"),
        (nn.CrossEntropyLoss(reduction="none"), "reduction='none'"),
    ],
)
def test_unknown_criteria_are_refused_with_what_to_pass(criterion: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        masksub.TwoBranchStep(vit(), criterion, sub=masksub.MaskSub())
    assert "target='softmax'" in str(caught.value) and "sub_criterion=" in str(caught.value)


def test_unknown_criterion_works_with_an_explicit_target() -> None:
    x, y, keep = batch()
    one = vit()
    two = copy.deepcopy(one)
    expected = by_hand(one, x, keep, lambda z: Focal()(z, y), soft_ce, 0.5)
    out = masksub.TwoBranchStep(two, Focal(), sub=masksub.MaskSub(), target="softmax")(x, y, keep=keep)
    torch.testing.assert_close(out.loss, expected)
    torch.testing.assert_close(gradients(two), gradients(one))


def test_own_sub_criterion() -> None:
    x, y, keep = batch()
    one = vit()
    two = copy.deepcopy(one)

    def mse(sub: Tensor, target: Tensor) -> Tensor:
        return ((sub.sigmoid() - target) ** 2).mean()

    expected = by_hand(
        one, x, keep, lambda z: F.cross_entropy(z, y), lambda s, m: ((s.sigmoid() - m.sigmoid()) ** 2).mean(), 0.5
    )
    step = masksub.TwoBranchStep(two, F.cross_entropy, sub=masksub.MaskSub(), target="sigmoid", sub_criterion=mse)
    torch.testing.assert_close(step(x, y, keep=keep).loss, expected)
    torch.testing.assert_close(gradients(two), gradients(one))


@pytest.mark.parametrize("mode", ["split", "joint"])
def test_weight_zero_is_the_plain_step_bit_for_bit(mode: Any) -> None:
    """Also the random numbers: dropout of the recipe, and none for masks."""
    x, y, _ = batch()
    one = vit(proj_drop_rate=0.2, drop_path_rate=0.2)
    two = copy.deepcopy(one)
    torch.manual_seed(1)
    F.cross_entropy(one(x), y).backward()
    after = torch.get_rng_state()
    torch.manual_seed(1)
    step = masksub.TwoBranchStep(two, F.cross_entropy, sub=masksub.MaskSub(0.5), weight=0.0, mode=mode)
    out = step(x, y)
    assert torch.equal(after, torch.get_rng_state())
    assert out.loss_sub is None and out.sub_logits is None
    for name, gradient in gradients(one).items():
        assert torch.equal(gradient, gradients(two)[name]), name


def test_batch_norm_sees_both_branches() -> None:
    model = resnet()
    before = model.bn1.num_batches_tracked.item()  # type: ignore[union-attr]
    x = torch.randn(4, 3, 64, 64)
    masksub.TwoBranchStep(model, F.cross_entropy, sub=masksub.MaskSub())(x, torch.tensor([0, 1, 2, 3]))
    assert model.bn1.num_batches_tracked.item() == before + 2  # type: ignore[union-attr]


def test_accumulated_gradients_are_those_of_the_whole_batch() -> None:
    x, y, keep = batch(8)
    one = vit()
    two = copy.deepcopy(one)
    masksub.TwoBranchStep(one, F.cross_entropy, sub=masksub.MaskSub())(x, y, keep=keep)
    step = masksub.TwoBranchStep(two, F.cross_entropy, sub=masksub.MaskSub())
    for part in range(4):
        rows = slice(2 * part, 2 * part + 2)
        step(x[rows], y[rows], keep=keep[rows], backward=lambda loss: (loss / 4).backward())
    torch.testing.assert_close(gradients(two), gradients(one))


@pytest.mark.parametrize("mode", ["split", "joint"])
def test_gradient_checkpointing_computes_the_masked_blocks_again(mode: Any) -> None:
    """Blocks are run again in the backward, after the model has been put back."""
    x, y, keep = batch()
    one = vit()
    two: Any = copy.deepcopy(one)
    two.set_grad_checkpointing()
    for model in (one, two):
        masksub.TwoBranchStep(model, F.cross_entropy, sub=masksub.MaskSub(), mode=mode)(x, y, keep=keep)
    torch.testing.assert_close(gradients(two), gradients(one))


def test_gradient_scaler_scales_each_branch_and_unscales_once() -> None:
    x, y, keep = batch()
    one = vit()
    two = copy.deepcopy(one)
    masksub.TwoBranchStep(one, F.cross_entropy, sub=masksub.MaskSub())(x, y, keep=keep)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    optimizer = torch.optim.SGD(two.parameters(), lr=0.1)
    step = masksub.TwoBranchStep(two, F.cross_entropy, sub=masksub.MaskSub())
    step(x, y, keep=keep, backward=lambda loss: scaler.scale(loss).backward())
    scaler.unscale_(optimizer)
    torch.testing.assert_close(gradients(two), gradients(one))
    scaler.step(optimizer)


@pytest.mark.parametrize("mode", ["split", "joint"])
def test_autocast(mode: Any) -> None:
    """bf16 forward in both branches, losses in float32, gradients near those of float32."""
    x, y, keep = batch()
    one = vit()
    two = copy.deepcopy(one)
    masksub.TwoBranchStep(one, F.cross_entropy, sub=masksub.MaskSub(), mode=mode)(x, y, keep=keep)
    step = masksub.TwoBranchStep(two, F.cross_entropy, sub=masksub.MaskSub(), mode=mode)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = step(x, y, keep=keep)
    assert out.logits.dtype == out.sub_logits.dtype == torch.bfloat16 and out.loss.dtype == torch.float32
    for name, gradient in gradients(one).items():
        assert (gradients(two)[name] - gradient).norm() < 0.05 * gradient.norm() + 1e-4, name


@pytest.mark.parametrize("mode", ["split", "joint"])
def test_autocast_with_a_teacher_alone(mode: Any) -> None:
    """Autocast must not hand the main branch's casts of the weights, made without a graph, to the sub branch.

    If it fails (it does on torch 2.6 without a step's remedy), these weights are never trained.
    """
    x, y, keep = batch()
    model = vit()
    step = masksub.TwoBranchStep(model, F.cross_entropy, sub=masksub.MaskSub(), mode=mode, weight=1.0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        step(x, y, keep=keep)
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []


class Island(nn.Linear):
    """A head that computes in float32 on purpose."""

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", enabled=False):
            return super().forward(x.float())


@pytest.mark.parametrize("weight", [0.0, 0.5])
def test_backward_is_outside_of_autocast(weight: float) -> None:
    """Where the step is called in autocast, parts in float32 must not have their gradients computed in bf16."""
    x, y, keep = batch()
    one = vit()
    one.head = Island(one.num_features, 5)
    two = copy.deepcopy(one)
    for model, inside in ((one, True), (two, False)):
        step = masksub.TwoBranchStep(model, F.cross_entropy, sub=masksub.MaskSub(), weight=weight, mode="joint")
        with torch.autocast("cpu", dtype=torch.bfloat16):
            out = step(x, y, keep=keep) if inside else step.joint(x, y, keep=keep)
        if not inside:
            out.loss.backward()
    assert all(torch.equal(gradients(one)[name], gradient) for name, gradient in gradients(two).items())


def test_what_is_no_branch_is_told() -> None:
    with pytest.raises(TypeError, match=r"sub = 0.5: .* a branch, for example MaskSub\(0.5\)"):
        masksub.TwoBranchStep(vit(), F.cross_entropy, sub=0.5)  # type: ignore[arg-type]


@pytest.mark.parametrize("target", ["auto", "softmax", "labels"])
def test_a_step_can_be_pickled(target: Any) -> None:
    """Trainers hold it, and are sent to other processes."""
    step = masksub.TwoBranchStep(vit(), F.cross_entropy, sub=masksub.MaskSub(0.4), target=target)
    assert pickle.loads(pickle.dumps(step)).sub.ratio == 0.4


class Wrapped(nn.Module):
    """Answers as transformers' models do."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = vit()

    def forward(self, pixel_values: Tensor) -> SimpleNamespace:
        return SimpleNamespace(logits=self.inner(pixel_values))


@pytest.mark.filterwarnings("ignore:Wrapped is masked in pixels")
def test_output_with_logits_and_keyword_inputs() -> None:
    x, y, _ = batch()
    step = masksub.TwoBranchStep(Wrapped(), F.cross_entropy, sub=masksub.MaskSub(0.5, unit=8))
    out = step({"pixel_values": x}, y)
    assert out.logits.shape == out.sub_logits.shape == (6, 5)
    assert not torch.equal(out.logits, out.sub_logits)


def test_output_without_logits_is_refused() -> None:
    class Tuple(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor]:
            return (x,)

    with pytest.raises(TypeError, match=r"Tuple returned tuple; .* \.logits"):
        masksub.TwoBranchStep(Tuple(), F.cross_entropy, sub=masksub.MaskSub())(*batch()[:2])


def test_a_model_with_nothing_to_mask_is_an_error() -> None:
    mlp = nn.Sequential(nn.Flatten(), nn.Linear(8, 5))
    step = masksub.TwoBranchStep(mlp, F.cross_entropy, sub=masksub.MaskSub())
    with pytest.raises(ValueError, match=r"Sequential has nothing to mask: .* shape \(6, 8\)"):
        step(torch.randn(6, 8), torch.zeros(6, dtype=torch.long))
    with pytest.raises(ValueError, match=r"masks nothing: .* 1 x 1 units"):
        masksub.TwoBranchStep(resnet(), F.cross_entropy, sub=masksub.MaskSub())(*batch()[:2])


def test_a_forward_that_goes_around_the_masking_is_an_error() -> None:
    from timm.models.vision_transformer import VisionTransformer

    class Around(VisionTransformer):
        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.norm(self.blocks(self._pos_embed(self.patch_embed(x))))[:, 0])

    model = Around(img_size=16, patch_size=4, embed_dim=24, depth=1, num_heads=2, num_classes=5)
    with pytest.raises(RuntimeError, match=r"ran without passing .*patch_drop.*nothing was masked"):
        masksub.TwoBranchStep(model, F.cross_entropy, sub=masksub.MaskSub())(*batch()[:2])


def test_a_forward_that_is_not_the_model_s_own_and_nesting_are_errors() -> None:
    model: Any = vit()
    x = batch()[0]
    with pytest.raises(RuntimeError, match="call that very object"), masksub.MaskSub().applied(model):
        model.forward_features(x)
    with masksub.MaskSub().applied(model):
        model(x)
        with pytest.raises(RuntimeError, match="sub branch already"), masksub.MaskSub().applied(model):
            pass
    assert isinstance(model.patch_drop, nn.Identity)


def test_blanked_pixels_take_the_fill() -> None:
    seen: list[Tensor] = []

    class Spy(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            seen.append(x)
            return x.flatten(1)

    keep = torch.tensor([[True, False, False, True]])
    spy = Spy()
    with masksub.MaskSub(unit=4, fill=-3.0).applied(spy):
        spy(torch.ones(1, 1, 8, 8))
        with pytest.raises(ValueError, match="nothing is visible"):
            one_row_is_empty = torch.tensor([[True, True, False, False], [False] * 4])
            with masksub.MaskSub(unit=4).applied(spy, keep=one_row_is_empty):
                spy(torch.ones(2, 1, 8, 8))
    assert seen[0].unique().tolist() == [-3.0, 1.0] and int((seen[0] == -3.0).sum()) == 32
    with masksub.MaskSub(unit=4, fill=-3.0).applied(spy, keep=keep):
        spy(torch.ones(1, 1, 8, 8))
    assert torch.equal(seen[-1][0, 0, ::4, ::4], torch.tensor([[1.0, -3.0], [-3.0, 1.0]]))


def test_masked_unit_in_pixels_on_a_vit() -> None:
    """unit=8 on 4 px patches: squares of 2 x 2 patches are dropped together; what doesn't fit is refused."""
    model, (x, _, _) = vit().eval(), batch()
    seen: list[Tensor] = []
    masking = masksub.MaskSub(0.5, unit=8)
    with masking.applied(model):
        model.patch_drop.register_forward_pre_hook(lambda m, a: seen.append(m.choice.indices))  # type: ignore[union-attr]
        model(x)
    blocks = torch.arange(16).view(2, 2, 2, 2).permute(0, 2, 1, 3).reshape(4, 4)
    for row in seen[0].tolist():
        assert sum(set(block.tolist()) <= set(row) for block in blocks) == 2 and len(row) == 8
    with (
        pytest.raises(ValueError, match=r"unit = 6 px: this model's patches are 4 x 4 px"),
        masksub.MaskSub(unit=6).applied(model),
    ):
        model(x)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"weight": 1.5}, r"weight = 1.5: .* 0 <= weight <= 1"),
        ({"weight": -0.1}, r"weight = -0.1"),
        ({"weight": float("nan")}, r"weight = nan"),
        ({"mode": "both"}, r"mode = 'both': the step runs 'split' or 'joint'"),
        ({"target": "hard"}, r"target = 'hard'"),
    ],
)
def test_arguments_out_of_range_are_named(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        masksub.TwoBranchStep(vit(), F.cross_entropy, sub=masksub.MaskSub(), **arguments)


def test_logits_that_are_not_rows_of_classes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"logits have shape \(2, 5, 3\)"):
        masksub.relaxed_target(torch.randn(2, 5, 3), "softmax")
    with pytest.raises(ValueError, match="kind = 'hard'"):
        masksub.relaxed_target(torch.randn(2, 5), "hard")  # type: ignore[arg-type]


def test_relaxed_target_carries_no_gradient() -> None:
    z = torch.randn(3, 5, requires_grad=True)
    assert torch.equal(masksub.relaxed_target(z, "softmax"), z.detach().softmax(-1))
    assert torch.equal(masksub.relaxed_target(z, "sigmoid"), z.detach().sigmoid())
    assert not masksub.relaxed_target(z, "softmax").requires_grad


# The comparators, each against its own formula.


def run_method(name: str) -> tuple[nn.Module, nn.Module, Tensor, Tensor, Tensor, masksub.StepOutput]:
    x, y, keep = batch()
    model = vit()
    reference = copy.deepcopy(model)
    method = METHODS[name]
    ratio, weight = method.settings(0.5, 0.5)
    step = masksub.TwoBranchStep(
        model, F.cross_entropy, sub=masksub.MaskSub(ratio), weight=weight, **method.step_arguments()
    )
    return model, reference, x, y, keep, step(x, y, keep=keep if ratio else None)


def test_direct_mask_is_masking_in_plain_training_and_one_forward() -> None:
    model, reference, x, y, keep, out = run_method("direct-mask")
    with masksub.MaskSub(0.5).applied(reference, keep=keep):
        F.cross_entropy(reference(x), y).backward()
    torch.testing.assert_close(gradients(model), gradients(reference))
    assert out.logits is None and out.loss_main is None


def test_true_label_sub_learns_the_labels_in_both_branches() -> None:
    model, reference, x, y, keep, _ = run_method("true-label-sub")
    by_hand(reference, x, keep, lambda z: F.cross_entropy(z, y), lambda s, m: F.cross_entropy(s, y), 0.5)
    torch.testing.assert_close(gradients(model), gradients(reference))


def test_self_distillation_masks_nothing() -> None:
    """Without dropout both branches agree, so that the sub branch adds no gradient."""
    model, reference, x, y, _, out = run_method("self-distill")
    (0.5 * F.cross_entropy(reference(x), y)).backward()
    torch.testing.assert_close(gradients(model), gradients(reference), atol=1e-6, rtol=1e-4)
    assert torch.equal(out.logits, out.sub_logits)


def test_plain_runs_one_branch() -> None:
    model, reference, x, y, _, out = run_method("plain")
    F.cross_entropy(reference(x), y).backward()
    torch.testing.assert_close(gradients(model), gradients(reference), atol=0, rtol=0)
    assert out.loss_sub is None
