"""Validation images, and the same as the sub branch sees them."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from masksub.app.data import Source, normalise, open_source, prepare
from masksub.app.evidence.model import Arm, Evidence
from masksub.app.models import create_model
from masksub.app.runs import RunFolder
from masksub.app.settings import Recipe
from masksub.core.adapter import Grid, find_adapter
from masksub.core.call import Call
from masksub.core.masking import sample_keep_blocks
from masksub.core.removal import spread

from .language import Language
from .statements import chosen_arm

__all__ = ["Inputs", "Pair", "draw_inputs"]

COUNT = 6
SIDE = 192
"""Smallest side of a drawn image in pixels: smaller images are enlarged by whole factors."""
MASKED = (232, 185, 138)
"""Colour of what is masked."""
MASKING = ("masksub", "true-label-sub", "direct-mask")


@dataclass(frozen=True)
class Pair:
    """One image: the whole and the masked one as data URIs, what they show, and the class's name."""

    whole: str
    masked: str
    alt: str
    alt_masked: str
    name: str


@dataclass(frozen=True)
class Inputs:
    """The images, and a sentence that says what they are or why there are none."""

    pairs: tuple[Pair, ...]
    note: str


def draw_inputs(evidence: Evidence, language: Language) -> Inputs:
    """Images of the first complete run that masks, by its own recipe.

    The choice of units is drawn as in training, from a fixed seed. Whatever keeps the images from being opened (a
    report is often made on another machine) is told in the note.
    """
    who = chosen_arm(evidence)
    arm = _masking_arm(evidence, who)
    if arm is None:
        whole = who is not None and who.method not in MASKING
        return Inputs((), language.say("inputs.whole", who=who.key) if whole and who else language.say("inputs.no-run"))
    run = arm.complete[0]
    try:
        folder = RunFolder.existing(run.path)
        recipe, classes = folder.recipe(), folder.classes()
        source = open_source(recipe.data, "val", recipe.seed)
        if not len(source) or list(source.classes) != classes:
            return Inputs((), language.say("inputs.changed"))
        return _draw(source, recipe, classes, run.path, language)
    except Exception as error:  # the data may be anything by now, and a page without its pictures is still a page
        reason = next(iter(str(error).splitlines()), "") or type(error).__name__
        return Inputs((), language.say("inputs.error", reason=reason))


def _masking_arm(evidence: Evidence, who: Arm | None) -> Arm | None:
    arms = ([who] if who else []) + list(evidence.arms)
    return next((arm for arm in arms if arm.method in MASKING and arm.complete), None)


def _draw(source: Source, recipe: Recipe, classes: list[str], path: str, language: Language) -> Inputs:
    data = recipe.data
    chosen = np.linspace(0, len(source) - 1, min(COUNT, len(source))).round().astype(int).tolist()
    pixels = torch.stack(
        [prepare(source.read(at), data.image_size, recipe.augment.test_crop, data.channels) for at in chosen]
    )  # (B, C, S, S), uint8
    grid, blanked = _grid(recipe, normalise(pixels, data), len(classes))
    ratio = recipe.sub.ratio_schedule(1.0)
    generator = torch.Generator().manual_seed(0)
    keep = sample_keep_blocks(len(pixels), (grid.rows, grid.cols), ratio, block=grid.block, generator=generator)
    size = (pixels.shape[-2], pixels.shape[-1])
    visible = spread(keep, (grid.rows, grid.cols), size, blanked)  # (B, 1, S, S)
    pairs = []
    for number, (image, shown, kept) in enumerate(zip(pixels, visible, keep), 1):
        name = classes[int(source.labels[chosen[number - 1]])]
        color = image.expand(3, -1, -1)
        masked = torch.where(shown, color, torch.tensor(MASKED, dtype=torch.uint8).view(3, 1, 1))
        alt = language.say("inputs.alt", n=number, name=name)
        alt_masked = language.say("inputs.alt-masked", kept=int(kept.sum()), units=grid.units)
        pairs.append(Pair(_data_uri(color), _data_uri(masked), alt, alt_masked, name))
    side = {"height": size[0] / grid.rows * grid.block, "width": size[1] / grid.cols * grid.block}
    side = dict.fromkeys(side, blanked) if blanked else side
    return Inputs(tuple(pairs), language.say("inputs.note", ratio=ratio, run=path, **side))


def _grid(recipe: Recipe, x: Tensor, classes: int) -> tuple[Grid, int | None]:
    """The units of these inputs; for blanked pixels also their side, as the last ones may be cut off by the edge."""
    with torch.random.fork_rng(devices=[]):  # making a model draws its weights
        model = create_model(recipe.changed("model", weights=None), classes)
    adapter = find_adapter(model)
    grid = adapter.grid(model, Call((x,)), recipe.sub.unit)
    if adapter.how != "pixels":
        return grid, None
    from masksub.adapters.pixels import DEFAULT_UNIT

    return grid, recipe.sub.unit or DEFAULT_UNIT


def _data_uri(pixels: Tensor) -> str:
    """PNG of (3, H, W) bytes."""
    image = Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy())
    factor = max(1, -(-SIDE // min(image.size)))
    image = image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)
    file = io.BytesIO()
    image.save(file, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode("ascii")
