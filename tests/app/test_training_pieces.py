"""The pieces that the recipes name, each by what it does. If these fail, a recipe trains otherwise than it says."""

from __future__ import annotations

import copy
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn

import masksub
from masksub.app.data.augment import Mixing, image_transform, seeded
from masksub.app.errors import InputError
from masksub.app.models import create_criterion, create_model, create_optimizer, create_schedule
from masksub.app.progress import Reporter
from masksub.app.recipe import load_recipe
from masksub.app.settings import Recipe
from masksub.app.train import train
from masksub.core.checkpointing import recomputes
from masksub.core.methods import METHODS

FAMILIES: dict[str, dict[str, Any]] = {
    "vit_tiny_patch16_224": {"patch_size": 8, "embed_dim": 32, "depth": 3, "num_heads": 2, "init_values": 1e-4},
    "deit_tiny_distilled_patch16_224": {"patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2},
    "vit_small_patch14_reg4_dinov2": {"patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2},
    "swin_tiny_patch4_window7_224": {
        "patch_size": 2, "window_size": 4, "embed_dim": 16, "depths": [1, 2], "num_heads": [2, 2],
    },
    "resnet10t": {},
}  # fmt: skip
VIT = "vit_tiny_patch16_224"


def recipe(name: str = VIT, method: str = "masksub", **sections: dict[str, Any]) -> Recipe:
    given = {
        "method": method,
        "data": {"name": "digits", "image_size": 32, **sections.pop("data", {})},
        "model": {"name": name, "kwargs": FAMILIES.get(name, {}), **sections.pop("model", {})},
        "train": {"epochs": 10, "batch_size": 8, **sections.pop("train", {})},
    }
    return Recipe.model_validate({**given, **sections})


def names_of(model: nn.Module) -> dict[Tensor, str]:
    return {parameter: name for name, parameter in model.named_parameters()}


# --- LAMB (You et al., 2020, arXiv 1904.00962, algorithm 2) with the choices of the published recipes' implementation:
# gradients clipped to norm 1 all together, no trust ratio where there is no weight decay.


def lamb_by_hand(
    weights: dict[str, Tensor], gradients: list[dict[str, Tensor]], decays: dict[str, float], lr: float
) -> dict[str, Tensor]:
    beta1, beta2, eps = 0.9, 0.999, 1e-6
    first, second = ({name: torch.zeros_like(w) for name, w in weights.items()} for _ in range(2))
    for step, gradient in enumerate(gradients, 1):
        norm = math.sqrt(sum(float(g.square().sum()) for g in gradient.values()))
        for name in weights:
            g = gradient[name] / max(1.0, norm)
            first[name] = beta1 * first[name] + (1 - beta1) * g
            second[name] = beta2 * second[name] + (1 - beta2) * g * g
            update = first[name] / (1 - beta1**step) / ((second[name] / (1 - beta2**step)).sqrt() + eps)
            if decays[name]:
                update = update + decays[name] * weights[name]
                update = update * weights[name].norm() / update.norm()
            weights[name] = weights[name] - lr * update
    return weights


@pytest.mark.parametrize("size", [0.001, 1.0])  # below the clipping, and above
def test_lamb(size: float) -> None:
    given = recipe(optim={"name": "lamb", "lr": 4e-3, "weight_decay": 0.03})
    model = create_model(given, 5).double()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.1 * torch.randn_like(p))
    optimizer = create_optimizer(given, model)
    weights = {name: p.detach().clone() for name, p in model.named_parameters()}
    decays = {names_of(model)[p]: g["weight_decay"] for g in optimizer.param_groups for p in g["params"]}
    assert set(decays.values()) == {0.0, 0.03}
    gradients = [{name: size * torch.randn_like(w) for name, w in weights.items()} for _ in range(3)]
    for at, gradient in enumerate(gradients):
        if at == 1:  # brought back from a checkpoint, with the number of steps that bias correction needs
            state = copy.deepcopy(optimizer.state_dict())
            optimizer = create_optimizer(given, model)
            optimizer.load_state_dict(state)
        for name, p in model.named_parameters():
            p.grad = gradient[name].clone()
        optimizer.step()
    expected = lamb_by_hand(dict(weights), gradients, decays, 4e-3)
    for name, p in model.named_parameters():
        torch.testing.assert_close(p.detach(), expected[name], msg=lambda text, name=name: f"{name}: {text}")


def test_fused_lamb_is_not_replaced_in_silence() -> None:
    given = recipe(optim={"name": "fusedlamb"})
    with pytest.raises(InputError, match=r"optim\.name = 'fusedlamb'.*'lamb' is the same formula and needs no apex"):
        create_optimizer(given, create_model(given, 5))


# --- Layer decay


def scales(given: Recipe) -> tuple[dict[str, float], dict[str, float]]:
    """The factor of each weight's learning rate by name, and the learning rate that the schedule then gives it."""
    model = create_model(given, 5)
    optimizer = create_optimizer(given, model)
    create_schedule(given, optimizer, 100, 10).step_update(50)
    groups = [(names_of(model)[p], g) for g in optimizer.param_groups for p in g["params"]]
    assert len(groups) == len(list(model.parameters())), "each weight is in one group"
    return {name: g["lr_scale"] for name, g in groups}, {name: g["lr"] for name, g in groups}


@pytest.mark.parametrize("pool", ["token", "avg"])
def test_layer_decay_of_a_vit(pool: str) -> None:
    """As in BEiT and MAE: decay ** (depth + 1 - layer), embeddings layer 0, blocks 1 to depth, the rest depth + 1.

    One difference: timm counts the last norm before the class token's head as part of the last block. MAE's finetuning
    has its norm after the mean, in layer depth + 1, as published.
    """
    depth, decay = 3, 0.65
    kwargs = {**FAMILIES[VIT], "global_pool": pool}
    optim = {"lr": 1e-3, "layer_decay": decay, "schedule": "constant"}
    found, rates = scales(recipe(model={"kwargs": kwargs}, optim=optim))
    for name, scale in found.items():
        block = re.match(r"blocks\.(\d+)\.", name)
        layer = int(block[1]) + 1 if block else depth if name.startswith("norm.") else depth + 1
        if name in ("cls_token", "pos_embed") or name.startswith("patch_embed."):
            layer = 0
        assert scale == pytest.approx(decay ** (depth + 1 - layer)), name
        assert rates[name] == pytest.approx(1e-3 * scale), name
    assert found["head.weight"] == 1.0
    assert ("fc_norm.weight" in found) is (pool == "avg")


@pytest.mark.parametrize(
    ("name", "order"),
    [
        ("swin_tiny_patch4_window7_224", ("patch_embed", "layers.0.blocks.0", "layers.1.blocks.1", "head")),
        ("resnet10t", ("conv1", "layer1", "layer2", "layer3", "layer4", "fc")),
    ],
)
def test_layer_decay_rises_from_the_input_to_the_head(name: str, order: tuple[str, ...]) -> None:
    found, rates = scales(recipe(name, optim={"lr": 1e-3, "layer_decay": 0.5, "schedule": "cosine"}))
    by_part = [{scale for key, scale in found.items() if key.startswith(f"{part}.")} for part in order]
    assert all(len(each) == 1 for each in by_part), "one factor for all of a layer"
    values = [each.pop() for each in by_part]
    assert values == sorted(set(values)) and values[-1] == 1.0
    assert len({round(rates[key] / found[key], 12) for key in found}) == 1, "all follow one schedule"


# --- Weight decay


@pytest.mark.parametrize("layer_decay", [None, 0.75])
@pytest.mark.parametrize("name", FAMILIES)
def test_what_decays_and_what_does_not(name: str, layer_decay: float | None) -> None:
    """A step with gradients of zero: matrices shrink by the decay; biases, norms, tokens and positions stay."""
    optim = {"name": "adamw", "lr": 0.1, "weight_decay": 0.5, "layer_decay": layer_decay}
    given = recipe(name, optim=optim)
    model = create_model(given, 5)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(1.0)
    optimizer = create_optimizer(given, model)
    group_of = {names_of(model)[p]: group for group in optimizer.param_groups for p in group["params"]}
    before = {key: p.detach().clone() for key, p in model.named_parameters()}
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step()
    spared = ("cls_token", "pos_embed", "dist_token", "reg_token", "relative_position_bias_table", "ls1.gamma", ".bias")
    seen = set()
    for key, p in model.named_parameters():
        module = model.get_submodule(key.rpartition(".")[0])
        is_norm = isinstance(module, (nn.LayerNorm, nn.BatchNorm2d)) or "norm" in key or ".bn" in key
        is_token = "." not in key  # what belongs to no layer: tokens and position embeddings
        stays = is_norm or is_token or key.endswith((*spared, "gamma"))
        seen.update(each for each in (*spared, "weight") if key.endswith(each))
        if stays:
            assert group_of[key]["weight_decay"] == 0.0, key
            assert torch.equal(p, before[key]), key
        else:
            assert group_of[key]["weight_decay"] == 0.5, key
            torch.testing.assert_close(p.detach(), before[key] * (1 - 0.1 * 0.5), msg=key)
    expected = {
        VIT: {"cls_token", "pos_embed", "ls1.gamma"},
        "deit_tiny_distilled_patch16_224": {"dist_token"},
        "vit_small_patch14_reg4_dinov2": {"reg_token"},
        "swin_tiny_patch4_window7_224": {"relative_position_bias_table"},
        "resnet10t": set(),
    }[name]
    assert seen >= {*expected, ".bias", "weight"}, "the test saw what it is about"


# --- Mixup, binary cross-entropy, smoothing


def bce_by_hand(logits: Tensor, target: Tensor) -> Tensor:
    probability = 1 / (1 + (-logits).exp())
    return -(target * probability.log() + (1 - target) * (1 - probability).log()).mean()


def mixed_batch(given: Recipe, classes: int = 5) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Images before and after mixing, labels before and after."""
    x, y = torch.rand(4, 3, 8, 8), torch.tensor([0, 1, 2, 2])
    mixed, soft = Mixing(given.augment, classes, given.loss.smoothing)(x.clone(), y, seed=3)
    return x, mixed, y, soft


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_mixup_makes_soft_labels_of_the_images_shares(smoothing: float) -> None:
    given = recipe(augment={"mixup": 0.8}, loss={"name": "bce", "smoothing": smoothing})
    x, mixed, y, soft = mixed_batch(given)
    share = float(((mixed - x.flip(0)) / (x - x.flip(0))).median())
    assert 0.01 < share < 0.99
    torch.testing.assert_close(mixed, share * x + (1 - share) * x.flip(0))
    smooth = F.one_hot(y, 5) * (1 - smoothing) + smoothing / 5
    torch.testing.assert_close(soft, share * smooth + (1 - share) * smooth.flip(0))


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("name", ["bce", "ce"])
def test_smoothing_is_applied_once(name: str, smoothing: float) -> None:
    """With mixup it is in the labels already; without, the criterion does it."""
    logits = torch.randn(4, 5)
    given = recipe(augment={"mixup": 0.8, "cutmix": 1.0}, loss={"name": name, "smoothing": smoothing})
    *_, y, soft = mixed_batch(given)
    smooth = F.one_hot(y, 5) * (1 - smoothing) + smoothing / 5
    plain = recipe(loss={"name": name, "smoothing": smoothing})
    for settings, labels, target in ((given, soft, soft), (plain, y, smooth)):
        expected = bce_by_hand(logits, target) if name == "bce" else -(target * logits.log_softmax(1)).sum(1).mean()
        torch.testing.assert_close(create_criterion(settings)(logits, labels), expected)


@pytest.mark.parametrize("threshold", [0.0, 0.2])
def test_a_threshold_makes_targets_of_0_and_1(threshold: float) -> None:
    """0.0: each image of the mix counts in full (DeiT-III); 0.2: the lesser one only where it has that share (RSB)."""
    given = recipe(augment={"mixup": 0.8}, loss={"name": "bce", "target_threshold": threshold})
    logits = torch.randn(3, 4)
    soft = torch.tensor([[0.9, 0.1, 0.0, 0.0], [0.5, 0.0, 0.5, 0.0], [0.0, 0.0, 0.0, 1.0]])
    hard = torch.tensor([[1.0, 1.0, 0.0, 0.0], [1.0, 0.0, 1.0, 0.0], [0.0, 0.0, 0.0, 1.0]])
    hard[0, 1] = 1.0 if threshold == 0 else 0.0
    torch.testing.assert_close(create_criterion(given)(logits, soft), bce_by_hand(logits, hard))


def test_the_sub_branch_learns_the_sigmoid_of_the_main_logits() -> None:
    """Neither threshold, nor smoothing, nor mixing touches the relaxed target (paper, section 3.2)."""
    loss = {"name": "bce", "smoothing": 0.1, "target_threshold": 0.2}
    given = recipe(augment={"mixup": 0.8}, loss=loss)
    model, criterion = create_model(given, 5), create_criterion(given)
    step = masksub.TwoBranchStep(model, criterion, sub=masksub.MaskSub(0.5))
    x, y = torch.randn(4, 3, 32, 32), torch.rand(4, 5).softmax(1)
    out = step(x, y, generator=torch.Generator().manual_seed(0))
    assert out.logits is not None and out.sub_logits is not None and out.loss_sub is not None
    torch.testing.assert_close(out.loss_sub, bce_by_hand(out.sub_logits, out.logits.sigmoid()))
    torch.testing.assert_close(out.loss_main, bce_by_hand(out.logits, (y > 0.2).float()))
    assert not torch.equal(out.logits, out.sub_logits)


# --- 3-Augment


def photograph() -> Image.Image:
    """32 x 32, smooth and coloured, with an edge that a blur is seen at."""
    across = torch.linspace(0, 1, 32)
    red, green = across.expand(32, 32), across.unsqueeze(1).expand(32, 32)
    edge = ((across > 0.45) & (across < 0.6)).float().expand(32, 32)
    pixels = torch.stack((red, green, edge), 2).mul(255).byte()
    return Image.fromarray(pixels.numpy())


def test_three_augment_is_one_of_three_and_jitter() -> None:
    """DeiT-III: grey, solarised or blurred, each for a third of the images, and colour jitter for all."""
    augment = {"crop": "none", "auto_augment": "3a", "color_jitter": 0.3}
    given = recipe(augment=augment)
    transform: Any = image_transform(given.data, given.augment)
    names = [type(step).__name__ for step in transform.transforms]
    assert names.count("AutoAugment") == names.count("ColorJitter") == 1
    assert names.index("AutoAugment") < names.index("ColorJitter")
    jitter = transform.transforms[names.index("ColorJitter")]
    assert jitter.brightness == jitter.contrast == jitter.saturation == (0.7, 1.3) and jitter.hue is None

    without = recipe(augment={**augment, "color_jitter": 0.0})
    alone: Any = image_transform(without.data, without.augment)
    jitters = [step for step in alone.transforms if type(step).__name__ == "ColorJitter"]
    assert all(step.brightness is step.contrast is step.saturation is None for step in jitters), "of strength 0"
    image = photograph()
    original = torch.from_numpy(np.asarray(image).copy()).long()
    counted = {"grey": 0, "solarised": 0, "blurred": 0}
    brightness = []
    for seed in range(300):
        with seeded(seed):
            made = alone(image).permute(1, 2, 0).long()
        with seeded(seed):
            brightness.append(float(transform(image).float().mean() / made.float().mean()))
        if bool((made == made[..., :1]).all()):
            counted["grey"] += 1
        elif bool((made == torch.where(original < 128, original, 255 - original)).all()):
            counted["solarised"] += 1
        else:
            counted["blurred"] += 1
            assert float((made - original).abs().float().mean()) < 40
            sharpness = [float(pixels[..., 2].diff(dim=1).abs().max()) for pixels in (original, made)]
            assert sharpness[1] <= sharpness[0]
    assert sum(counted.values()) == 300
    assert all(75 <= number <= 125 for number in counted.values()), counted  # 100 expected, 8 standard deviation
    assert sum(abs(ratio - 1) > 0.01 for ratio in brightness) > 200, "jitter acts on nearly every image"


# --- Moving average


class _StoppedError(Exception):
    pass


def test_the_moving_average_is_what_the_formula_says_also_after_resuming(tmp_path: Path) -> None:
    """decay(t) = min(1 - t ** (-2/3), decay) after update t, the first update a copy; t goes on after resuming."""
    run, stopped = tmp_path / "run", 3
    given = load_recipe(
        "digits/vit_micro",
        ("data.train_images=64", "data.val_images=20", "train.batch_size=16", "train.epochs=2", "train.ema_decay=0.7",
         "model.kwargs.embed_dim=16", "model.kwargs.depth=1", "model.kwargs.num_heads=1", "optim.warmup_epochs=0",
         "train.checkpoint_every=1", "train.keep_checkpoints=20", "train.checkpoint_in_background=false",
         "train.eval_every=0.75", "train.tensorboard=false", "train.device=cpu"),
    )  # fmt: skip

    def stop(_: dict[str, Any]) -> None:
        raise _StoppedError

    with pytest.raises(_StoppedError):
        train(given, run, reporter=Reporter(quiet=True), on_eval=stop)
    assert len(list((run / "checkpoints").glob("update-*"))) in (stopped - 1, stopped)
    train(given, run, reporter=Reporter(quiet=True), resume=True)
    folders = sorted((run / "checkpoints").glob("update-*"))
    assert len(folders) == 8
    average: dict[str, Tensor] = {}
    decays = []
    for update, folder in enumerate(folders, 1):
        weights = load_file(folder / "model.safetensors")
        decay = 0.0 if update == 1 else min(1 - update ** (-2 / 3), 0.7)
        decays.append(decay)
        average = {key: decay * average.get(key, w) + (1 - decay) * w for key, w in weights.items()}
        torch.testing.assert_close(load_file(folder / "ema.safetensors"), average)
    assert decays[1] < decays[stopped + 1] < 0.7 == decays[-1], "the warm-up covers the stop, and ends"


# --- Recomputation


def gradients(given: Recipe, images: Tensor) -> dict[str, Tensor]:
    torch.manual_seed(0)
    model = create_model(given, 5)
    assert recomputes(model) is given.train.recompute
    method, wanted = METHODS[given.method], given.sub
    sub = method.branch(0.5, unit=wanted.unit, p=0.3, bn=wanted.bn)
    step = masksub.TwoBranchStep(model, create_criterion(given), sub=sub, mode=wanted.mode, **method.step_arguments())
    runs = 0

    def count(*_: Any) -> None:
        nonlocal runs
        runs += 1

    blocks = getattr(model, "blocks", None)
    if blocks is not None:
        blocks[0].register_forward_pre_hook(count)
    torch.manual_seed(1)
    step(images, torch.arange(len(images)) % 5, generator=torch.Generator().manual_seed(0))
    if blocks is not None:
        assert runs == (4 if given.train.recompute else 2), "twice a branch, or the test is of nothing"
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


RECOMPUTED: list[tuple[str, str, dict[str, Any], dict[str, Any]]] = [
    (VIT, "masksub", {"drop_path_rate": 0.3, "proj_drop_rate": 0.1}, {}),
    (VIT, "masksub", {"drop_path_rate": 0.3}, {"mode": "joint"}),
    (VIT, "dropsub", {}, {}),
    (VIT, "pathsub", {}, {}),
    ("swin_tiny_patch4_window7_224", "masksub", {"drop_path_rate": 0.3}, {"unit": 8}),
]


@pytest.mark.parametrize(("name", "method", "kwargs", "sub"), RECOMPUTED)
def test_recomputation_changes_no_gradient(name: str, method: str, kwargs: dict[str, Any], sub: dict[str, Any]) -> None:
    """Both branches, with what is drawn at random inside of blocks drawn alike the second time."""
    images = torch.randn(4, 3, 32, 32)
    model = {"kwargs": {**FAMILIES[name], **kwargs}}
    plain, again = (
        gradients(recipe(name, method, model=model, sub=sub, train={"recompute": on}), images) for on in (False, True)
    )
    assert plain.keys() == again.keys()
    for key, gradient in plain.items():
        assert bool(gradient.abs().sum() > 0) or "bias" in key, key
        torch.testing.assert_close(again[key], gradient, atol=1e-7, rtol=1e-5, msg=key)


@pytest.mark.parametrize(
    ("name", "method", "sub", "message"),
    [
        (
            "resnet10t",
            "masksub",
            {},
            r"resnet10t has batch norm, whose running statistics would count each batch twice",
        ),
        (VIT, "cosub", {}, r"not with method cosub"),
        (VIT, "pathsub", {"mode": "joint"}, r'not with sub\.mode "joint".*PathSub.*use sub\.mode "split"'),
        (VIT, "masksub", {"mode": "joint", "bn": "main"}, r'not with sub\.mode "joint"'),
        ("mixer_s32_224", "plain", {}, None),
        ("convit_tiny", "plain", {}, r"timm's convit_tiny can't run its blocks again"),
    ],
)
def test_recomputation_where_it_can_t_be(name: str, method: str, sub: dict[str, Any], message: str | None) -> None:
    given = recipe(name, method, sub=sub, train={"recompute": True}, data={"image_size": 96 if name != VIT else 32})
    if message is None:
        assert recomputes(create_model(given, 5))
        return
    with pytest.raises(InputError, match=rf"train\.recompute = true: {message}"):
        create_model(given, 5)
    assert not recomputes(create_model(given.changed("train", recompute=False), 5))
