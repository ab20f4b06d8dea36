"""``docs/recipes.md`` from the headers and the values of the packaged recipes: ``python -m benchmarks.recipe_page``."""

from __future__ import annotations

import re
from pathlib import Path

from masksub.app.recipe import load_recipe, packaged_recipes
from masksub.app.settings import Recipe

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "recipes.md"

FAMILIES = {
    "deit3": ("DeiT III", "[arXiv 2204.07118](https://arxiv.org/abs/2204.07118)"),
    "mae": ("MAE, finetuned", "[arXiv 2111.06377](https://arxiv.org/abs/2111.06377)"),
    "clip": ("CLIP, finetuned", "[arXiv 2212.06138](https://arxiv.org/abs/2212.06138)"),
    "swin": ("Swin", "[arXiv 2103.14030](https://arxiv.org/abs/2103.14030)"),
    "resnet": ("ResNet", "ResNet strikes back, procedure A2, [arXiv 2110.00476](https://arxiv.org/abs/2110.00476)"),
    "transfer": ("Transfer", "published by the authors of DeiT and DINO for each data set, as each header says"),
}

HEAD = """# Recipes of the paper

Generated from the recipes by `python -m benchmarks.recipe_page`. Not to be edited by hand.

The experiments of the paper (Heo et al., "Masking meets Supervision: A Strong Learning Alliance", CVPR 2025,
[arXiv 2306.11339](https://arxiv.org/abs/2306.11339)) as recipes. The columns under "paper" are its figures, top-1 on
the validation images, not ours; "measured" is what we ran. Where the figures of the paper are not repeated, the recipe
says so. Ratio and weight of the sub branch are 0.5 everywhere. Each recipe is one YAML with every value; its header
says what is published, and where we differ.

## How to start

On one machine with 8 GPUs, and then at 224 px from its weights:

<!-- not run: needs eight GPUs -->
```console
$ torchrun --nproc-per-node 8 --module masksub train deit3/vit_base_400 data.train=PATH data.val=PATH
$ torchrun --nproc-per-node 8 --module masksub train deit3/vit_base_finetune data.train=PATH data.val=PATH
```

Shards are read where they lie, on disks that all machines see, image by image, in an order that depends on the seed
alone: a run goes on exactly where it stopped. Streams from an address have no such order and are not accepted.

The comparison is the same command with `method=plain`. A run that was stopped goes on with `--resume`.

| you have | add |
|---|---|
| another number of GPUs | only another `--nproc-per-node`: an update stays as large, what is missing is accumulated |
| less memory | `train.batch_size=64`, or `train.recompute=true`, which models with batch norm can't have |
| class folders, `.zip` or `.tar` of them | `data.train=PATH data.val=PATH` |
| tar shards of webdataset | `data.name=shards 'data.train=PATH/imagenet1k-train-{0000..1023}.tar' data.val=...` |
| a Hugging Face data set | `data.name=hfds/ILSVRC/imagenet-1k`, and `pip install 'masksub[datasets]'` |
| other columns in it | `data.image_key=img data.label_key=fine_label` |
| weights to start from | `model.weights=FILE`, a run folder, `hf-hub:OWNER/NAME` or an address |

`masksub recipes` lists every recipe with its file; `masksub plan RECIPE --gpus 8` says what a run takes.
"""

COLUMNS = (
    "recipe", "model", "epochs", "px", "optimizer", "lr", "weight decay", "layer decay", "drop path",
    "GPUs x images (x parts)", "paper: plain", "paper: MaskSub", "measured",
)  # fmt: skip


def header(path: Path) -> dict[str, str]:
    """The fields of a recipe's header, lines joined; the title under "".

    Raises:
        ValueError: the file does not begin with a header.
    """
    found = re.match(r"(#.*\n)+", path.read_text(encoding="utf-8"))
    if found is None:
        raise ValueError(f"{path} does not begin with a header of comment lines")
    fields, key = {"": ""}, ""
    for line in found[0].splitlines():
        start = re.match(r"# ([A-Z][\w ]*): +", line)
        if start:
            key = start[1]
        text = line[start.end() :] if start else line[1:].strip()
        fields[key] = f"{fields.get(key, '')} {text}".strip()
    return fields


def render() -> str:
    """The page."""
    parts = [HEAD]
    for family, (title, source) in FAMILIES.items():
        lines = [f"| {' | '.join(COLUMNS)} |", "|" + "---|" * len(COLUMNS)]
        for name, path in packaged_recipes().items():
            if name.startswith(f"{family}/"):
                lines += _rows(name, header(path), load_recipe(name))
        parts.append(f"## {title}\n\nValues: {source}.\n\n" + "\n".join(lines) + "\n")
    return "\n".join(parts)


def _rows(name: str, fields: dict[str, str], recipe: Recipe) -> list[str]:
    """A row for each pair of figures that the header gives."""
    figures = re.findall(r"(\d+\.\d) -> (\d+\.\d) %(?: (after \d+ epochs))?", fields["Paper"])
    hardware = fields["Hardware"].replace(" GPUs", "").replace(" images", "").replace(" accumulated", "")
    rows = []
    for plain, masksub, after in figures or [("not repeated", "not repeated", "")]:
        cells = (
            f"[`{name}`](../src/masksub/recipes/{name}.yaml)" + (f", {after}" if after else ""),
            recipe.model.name,
            f"{recipe.train.epochs:g}",
            str(recipe.data.image_size),
            recipe.optim.name,
            f"{recipe.optim.lr:g}",
            f"{recipe.optim.weight_decay:g}",
            "" if recipe.optim.layer_decay is None else f"{recipe.optim.layer_decay:g}",
            f"{recipe.model.kwargs.get('drop_path_rate', 0):g}",
            hardware,
            plain,
            masksub,
            fields["Measured"],
        )
        rows.append(f"| {' | '.join(cells)} |")
    return rows


if __name__ == "__main__":
    PAGE.write_text(render(), encoding="utf-8")
