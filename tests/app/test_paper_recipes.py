"""The recipes of the paper. If these fail, a week on eight GPUs is spent on a model or on values that nobody published.

The real models are built on the meta device; a copy of each recipe with a small model really trains.
"""

from __future__ import annotations

import functools
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from masksub.app.models import create_criterion, create_model, create_optimizer
from masksub.app.progress import Reporter
from masksub.app.recipe import load_recipe, packaged_recipes
from masksub.app.runs import RunFolder
from masksub.app.settings import Recipe
from masksub.app.train import train
from masksub.core.adapter import find_adapter
from masksub.core.branches import MaskSub
from masksub.core.call import Call
from masksub.core.seeds import mix

FAMILIES = {"deit3": 11, "mae": 3, "clip": 2, "swin": 3, "resnet": 3, "transfer": 5}
NAMES = [name for name in packaged_recipes() if name.partition("/")[0] in FAMILIES]
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))

# What the papers, or their authors, give; the headers name them.
_LAMB = {"optim.name": "lamb", "loss.name": "bce", "loss.smoothing": 0.0, "augment.repeats": 3, "augment.cutmix": 1.0,
         "augment.random_erase": 0.0, "optim.warmup_epochs": 5, "train.global_batch_size": 2048}  # fmt: skip
_DEIT3 = {**_LAMB, "model.drop_path": "uniform", "model.kwargs.init_values": 1e-4, "loss.target_threshold": 0.0,
          "augment.auto_augment": "3a", "augment.color_jitter": 0.3,
          "augment.mixup": 0.8, "augment.test_crop": 1.0, "optim.warmup_lr": 1e-6, "train.ema_decay": None}  # fmt: skip
_ADAMW = {"optim.name": "adamw", "loss.name": "ce", "loss.smoothing": 0.1, "augment.repeats": 1,
          "augment.auto_augment": "rand-m9-mstd0.5-inc1"}  # fmt: skip
_MIXED = {"augment.mixup": 0.8, "augment.cutmix": 1.0}
PUBLISHED: dict[str, dict[str, Any]] = {
    "deit3 scratch": _DEIT3,
    "deit3 finetune": {**_ADAMW, **_MIXED, "model.drop_path": "uniform",
                       "optim.lr": 1e-5, "optim.weight_decay": 0.1, "train.epochs": 20,
                       "data.image_size": 224, "train.global_batch_size": 512, "augment.random_erase": 0.0,
                       "augment.test_crop": 1.0, "optim.warmup_epochs": 5, "optim.layer_decay": None},
    "mae": {**_ADAMW, **_MIXED, "optim.weight_decay": 0.05, "train.global_batch_size": 1024, "data.image_size": 224,
            "augment.random_erase": 0.25, "optim.warmup_epochs": 5},
    "clip": {**_ADAMW, "augment.mixup": 0.0, "augment.cutmix": 0.0, "optim.weight_decay": 0.05, "data.image_size": 224,
             "train.global_batch_size": 2048, "train.ema_decay": 0.9998, "augment.random_erase": 0.25},
    "swin": {**_ADAMW, **_MIXED, "optim.lr": 1e-3, "optim.weight_decay": 0.05, "optim.warmup_epochs": 20,
             "optim.clip_norm": 5.0, "train.epochs": 300, "train.global_batch_size": 1024, "data.image_size": 224,
             "augment.random_erase": 0.25, "sub.unit": 32},
    "resnet": {**_LAMB, "optim.lr": 5e-3, "optim.weight_decay": 0.02, "train.epochs": 300, "data.image_size": 224,
               "loss.target_threshold": 0.2, "augment.auto_augment": "rand-m7-mstd0.5-inc1", "augment.mixup": 0.1,
               "augment.test_crop": 0.95, "sub.unit": 32, "sub.bn": "shared"},
    "transfer": {**_ADAMW, **_MIXED, "augment.repeats": 3, "train.global_batch_size": 768, "data.image_size": 224,
                 "optim.warmup_epochs": 5, "optim.name": None},
}  # fmt: skip
_SCRATCH = ("optim.lr", "optim.weight_decay", "model.kwargs.drop_path_rate", "train.epochs", "data.image_size")
_TUNED = ("optim.lr", "optim.layer_decay", "model.kwargs.drop_path_rate", "train.epochs")
_TRANSFER = ("optim.name", "optim.lr", "optim.weight_decay", "train.epochs", "model.kwargs.drop_path_rate")
EACH: dict[str, dict[str, Any]] = {
    **{f"deit3/vit_{size}_{epochs}": dict(zip(_SCRATCH, (lr, decay, drop, epochs, pixels)))
       for size, lr, pixels, drops in (("small", 4e-3, 224, (0.0, 0.05)), ("base", 3e-3, 192, (0.1, 0.2)),
                                       ("large", 3e-3, 192, (0.4, 0.45)), ("huge", 3e-3, 160, (0.5, 0.6)))
       for epochs, decay, drop in zip((400, 800), (0.03, 0.05), drops)},
    **{f"deit3/vit_{size}_finetune": {"model.kwargs.drop_path_rate": drop}
       for size, drop in (("base", 0.2), ("large", 0.45), ("huge", 0.55))},
    # the base rate for 256 images, times 4 for 1,024
    "mae/vit_base_mae": dict(zip(_TUNED, (5e-4 * 4, 0.65, 0.1, 100))),
    "mae/vit_large_mae": dict(zip(_TUNED, (1e-3 * 4, 0.75, 0.2, 50))),
    "mae/vit_huge_mae": dict(zip(_TUNED, (1e-3 * 4, 0.75, 0.3, 50))),
    "clip/vit_base_clip": dict(zip(_TUNED, (6e-4, 0.6, 0.0, 50))),
    "clip/vit_large_clip": dict(zip(_TUNED, (4e-4, 0.65, 0.0, 30))),
    **{f"swin/swin_{size}": {"model.kwargs.drop_path_rate": drop}
       for size, drop in (("tiny", 0.2), ("small", 0.3), ("base", 0.5))},
    **{f"resnet/resnet{depth}": {"model.kwargs.drop_path_rate": 0.05} for depth in (50, 101, 152)},
    "transfer/cifar10": dict(zip(_TRANSFER, ("adamw", 7.5e-6, 0.05, 1000, 0.1))),
    "transfer/cifar100": dict(zip(_TRANSFER, ("adamw", 5e-6, 0.05, 1000, 0.1))),
    "transfer/flowers": dict(zip(_TRANSFER, ("sgd", 0.01, 1e-4, 1000, 0.0))),
    "transfer/cars": dict(zip(_TRANSFER, ("sgd", 0.01, 1e-4, 1000, 0.0))),
    "transfer/inaturalist": dict(zip(_TRANSFER, ("adamw", 7.5e-5, 0.05, 360, 0.1))),
}  # fmt: skip
MILLIONS = {
    "deit3_small": 22.1, "deit3_base": 86.6, "deit3_large": 304.4, "deit3_huge": 632.1, "vit_base": 86.6,
    "vit_large": 304.3, "vit_huge": 632.1, "swin_tiny": 28.3, "swin_small": 49.6, "swin_base": 87.8,
    "resnet50": 25.6, "resnet101": 44.5, "resnet152": 60.2,
}  # fmt: skip
"""Parameters with 1,000 classes at 224 px, as the papers of the models give them."""


def family(name: str) -> str:
    first = name.partition("/")[0]
    return first if first != "deit3" else "deit3 finetune" if name.endswith("finetune") else "deit3 scratch"


def value(recipe: Recipe, path: str) -> Any:
    found: Any = recipe.model_dump()
    for key in path.split("."):
        found = found[key]
    return found


def test_no_recipe_is_missing() -> None:
    found = {each: sum(name.startswith(f"{each}/") for name in NAMES) for each in FAMILIES}
    assert found == FAMILIES
    assert set(EACH) == set(NAMES)
    stems = [Path(name).name for name in NAMES]
    assert len(set(stems)) == len(stems), "run folders are named by the last part: two would share one"


@pytest.mark.parametrize("name", NAMES)
def test_the_published_values_are_in_the_recipe(name: str) -> None:
    recipe = load_recipe(name)
    expected = {**PUBLISHED[family(name)], **EACH[name]}
    assert {path: value(recipe, path) for path in expected} == {path: pytest.approx(expected[path]) if isinstance(
        expected[path], float) else expected[path] for path in expected}  # fmt: skip
    assert (recipe.method, recipe.sub.ratio, recipe.sub.weight) == ("masksub", 0.5, 0.5)
    assert (recipe.data.mean, recipe.data.std) == IMAGENET or name.startswith("clip/")


@pytest.mark.parametrize("name", NAMES)
def test_what_the_header_proposes_where_memory_is_short_is_possible(name: str) -> None:
    """Blocks with batch norm can't be run again; a header that says so would send its reader into an error."""
    header = packaged_recipes()[name].read_text(encoding="utf-8").partition("\n\n")[0]
    proposed = re.findall(r"train\.(?:batch_size|recompute)=\w+", header)
    assert proposed, "nothing is proposed"
    recipe = load_recipe(name, ["model.weights=null", *proposed])
    with torch.device("meta"):
        create_model(recipe, 1000)
    recipe.train.parts(8)


@pytest.mark.parametrize("name", NAMES)
def test_the_header_tells_how_to_start_it_and_of_what_an_update_is_made(name: str) -> None:
    header = re.match(r"(#.*\n)+", packaged_recipes()[name].read_text(encoding="utf-8"))
    assert header
    run = re.search(rf"^# Run: +torchrun --nproc-per-node (\d+) --module masksub train {name}$", header[0], re.M)
    made = re.search(r"^# Hardware: +(\d+) GPUs x (\d+) images(?: x (\d+) accumulated)?$", header[0], re.M)
    assert run and made and run[1] == made[1]
    recipe, (gpus, images, parts) = load_recipe(name), (int(each or 1) for each in made.groups())
    assert images == recipe.train.batch_size
    assert recipe.train.global_batch_size == gpus * images * parts
    assert (recipe.train.parts(gpus), recipe.train.parts(1)) == (parts, gpus * parts)
    for word in ("One GPU", "Against it", "Data", "Paper", "Measured", "We differ"):
        assert re.search(rf"^# {word}: +\S", header[0], re.M), word
    assert ("Weights:" in header[0]) == (recipe.model.weights is not None)


@functools.cache
def on_meta(name: str, image_size: int, pool: str | None) -> nn.Module:
    """The real model of a recipe, without memory for its weights; recipes of one architecture share it."""
    for each in NAMES:
        recipe = load_recipe(each).changed("model", weights=None)
        if (recipe.model.name, recipe.data.image_size, recipe.model.kwargs.get("global_pool")) == (
            name, image_size, pool,
        ):  # fmt: skip
            with torch.device("meta"):
                return create_model(recipe, 1000)
    raise AssertionError(name)


def real_model(recipe: Recipe) -> nn.Module:
    return on_meta(recipe.model.name, recipe.data.image_size, recipe.model.kwargs.get("global_pool"))


@functools.cache
def masked_share(name: str, image_size: int, pool: str | None, unit: int | None) -> tuple[str, int, float]:
    """How the real model is masked, its units, and operations of a masked forward / of a whole one, from shapes."""
    model, counts = on_meta(name, image_size, pool), []
    x = torch.empty(1, 3, image_size, image_size, device="meta")
    branch = MaskSub(0.5, unit=unit)
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        for masked in (False, True):
            with FlopCounterMode(display=False) as counter:
                if masked:
                    with branch.applied(model):
                        assert model(x).shape == (1, 1000)
                else:
                    model(x)
            counts.append(counter.get_total_flops())
    adapter = find_adapter(model)
    return adapter.how, adapter.grid(model, Call((x,)), unit).units, counts[1] / counts[0]


@pytest.mark.parametrize("name", NAMES)
def test_the_real_model_is_the_published_one_and_can_be_masked(name: str) -> None:
    recipe = load_recipe(name)
    millions = sum(p.numel() for p in real_model(recipe).parameters()) / 1e6
    architecture = next(each for each in sorted(MILLIONS, key=len, reverse=True) if recipe.model.name.startswith(each))
    assert millions == pytest.approx(MILLIONS[architecture], rel=0.003)
    kwargs, size = recipe.model.kwargs, recipe.data.image_size
    how, units, share = masked_share(recipe.model.name, size, kwargs.get("global_pool"), recipe.sub.unit)
    if architecture.startswith(("swin", "resnet")):
        assert (how, units, share) == ("fill" if architecture.startswith("swin") else "pixels", 49, 1.0)
    else:  # half of the tokens, the class token not counted
        side = 14 if "patch14" in recipe.model.name else 16
        assert (how, units) == ("drop", (size // side) ** 2)
        assert 0.48 < share < 0.51


@pytest.mark.parametrize("name", NAMES)
def test_what_takes_no_weight_decay_and_how_fast_each_layer_learns(name: str) -> None:
    """Biases, norms, position embeddings, class tokens and position tables do not decay."""
    recipe = load_recipe(name)
    model = real_model(recipe)
    optimizer = create_optimizer(recipe, model)
    names = {id(p): key for key, p in model.named_parameters()}
    free = ("pos_embed", "cls_token", "relative_position_bias_table")
    depth, seen = len(getattr(model, "blocks", ())), 0
    for group in optimizer.param_groups:
        for p in group["params"]:
            key, seen = names[id(p)], seen + 1
            decays = p.ndim > 1 and not key.endswith(free)
            assert group["weight_decay"] == (recipe.optim.weight_decay if decays else 0.0), key
            if recipe.optim.layer_decay is not None:
                block = re.match(r"blocks\.(\d+)\.", key)
                stem = key.startswith(("cls_token", "pos_embed", "patch_embed", "norm_pre"))
                layer = int(block[1]) + 1 if block else 0 if stem else depth + 1
                assert group["lr_scale"] == pytest.approx(recipe.optim.layer_decay ** (depth + 1 - layer)), key
            else:
                assert group.get("lr_scale", 1.0) == 1.0
    assert seen == len(names)
    if recipe.optim.name == "lamb":
        assert optimizer.defaults["max_grad_norm"] == 1.0, "the gradient is clipped in LAMB"


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """train/ and val/ with 4 classes, 8 and 2 images each, of several sizes and formats."""
    folder, draws = tmp_path_factory.mktemp("images"), np.random.RandomState(0)
    for part, count in (("train", 8), ("val", 2)):
        for label in range(4):
            (folder / part / f"class{label}").mkdir(parents=True)
            for number in range(count):
                sides = draws.randint(40, 90, 2)
                pixels = draws.randint(0, 256, (*sides, 3)).astype(np.uint8) // (label + 1)
                Image.fromarray(pixels).save(folder / part / f"class{label}" / f"{number}.{'png' if number else 'jpg'}")
    return folder


def shrunk(name: str, images: Path) -> Recipe:
    """The recipe with few and narrow layers, small images and few updates; all else is as it is written."""
    recipe = load_recipe(name)
    side = 14 if "patch14" in recipe.model.name else 16
    if recipe.model.name.startswith("swin"):
        size, kwargs = 64, {"depths": [1, 1, 2, 1], "embed_dim": 8, "num_heads": [1, 1, 2, 2]}
    elif recipe.model.name.startswith("resnet"):
        size, kwargs = 64, {"layers": [1, 1, 1, 1], "base_width": 8}
    else:
        size, kwargs = 3 * side, {"depth": 2, "embed_dim": 16, "num_heads": 2}
    return load_recipe(
        name,
        (
            f"data.train={images / 'train'}", f"data.val={images / 'val'}", f"data.image_size={size}",
            "data.workers=0", "model.weights=null", *(f"model.kwargs.{k}={v}" for k, v in kwargs.items()),
            "train.epochs=1", "train.batch_size=4", "train.global_batch_size=8", "train.precision=fp32",
            "train.device=cpu", "train.tensorboard=false", "train.log_every=1", "optim.warmup_epochs=0.25",
        ),
    )  # fmt: skip


def unmoved(before: dict[str, Tensor], after: dict[str, Tensor]) -> list[str]:
    """Weights, not norms: behind a layer scale of 1e-4 the gradient of a norm is lost beside its 1."""
    assert before.keys() == after.keys()
    return [key for key, old in before.items() if old.ndim > 1 and torch.equal(old, after[key])]


@pytest.mark.parametrize("name", NAMES)
def test_a_shrunken_copy_takes_real_optimizer_steps(name: str, images: Path, tmp_path: Path) -> None:
    recipe = shrunk(name, images)
    summary = train(recipe, tmp_path / "run", reporter=Reporter(quiet=True))
    assert summary["final"]["images"] == 8 and math.isfinite(summary["final"]["loss"])
    records = [record for record in RunFolder(tmp_path / "run").metrics() if record["kind"] == "train"]
    assert len(records) >= 2
    assert all(math.isfinite(record[key]) for record in records for key in ("loss", "loss_main", "loss_sub"))
    assert all(record["mask_ratio"] == 0.5 and record["gradient_norm"] > 0 for record in records)
    torch.manual_seed(mix(recipe.seed, "weights"))
    before = create_model(recipe, 4).state_dict()
    last = sorted((tmp_path / "run" / "checkpoints").glob("*/model.safetensors"))[-1]
    assert unmoved(before, load_file(last)) == []


@pytest.mark.parametrize("name, threshold", [("deit3/vit_base_400", 0.0), ("resnet/resnet50", 0.2)])
def test_a_class_that_is_mixed_in_counts_as_one(name: str, threshold: float) -> None:
    """Binary targets with mixup: any share above the threshold is 1, so the loss asks for both classes."""
    criterion = create_criterion(load_recipe(name))
    logits = torch.randn(2, 5)
    shares = torch.tensor([[0.85, 0.15, 0, 0, 0], [0.3, 0, 0, 0, 0.7]])
    expected = nn.functional.binary_cross_entropy_with_logits(logits, (shares > threshold).float())
    torch.testing.assert_close(criterion(logits, shares), expected)
