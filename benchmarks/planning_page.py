"""``docs/planning.md``: the plan of a training that nobody here has the machines for.

``--count`` counts the shapes and measures the memory of some real steps on a CPU into ``results/planning.json`` (a few
minutes); ``--render`` writes the page from that file. The first without the second changes no page.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import timm
import torch

from masksub.app.models import create_criterion, create_model
from masksub.app.plan import Plan, create_machine, make_plan, plan_text
from masksub.app.plan.activations import Held, held_by
from masksub.app.plan.shapes import Shapes, count_shapes, meta_model, step_of
from masksub.app.plan.text import scaling_rows
from masksub.app.recipe import load_recipe
from masksub.core.measurement import peak_memory

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "planning.md"
RESULTS = ROOT / "benchmarks" / "results" / "planning.json"

RECIPE = "deit3/vit_huge_400"
IMAGES, CLASSES, GPUS = 14_197_122, 21_841, 64
CHANGES = ("data.image_size=224", "train.epochs=90", "optim.warmup_epochs=5")
FIXED = (*CHANGES, "train.batch_size=32")
GROWING = (*CHANGES, "train.batch_size=64", "train.global_batch_size=null")
SHARDED = (*GROWING, "train.shard=full")
CHECKED = ("vit_small_patch16_224", "resnet50", "swin_tiny_patch4_window7_224")


def count() -> dict[str, Any]:
    """What the page rests on: counted shapes, and measured peaks beside their estimates."""
    rows = [
        _checked(name, precision, method)
        for name in CHECKED
        for precision in ("fp32", "bf16")
        for method in ("plain", "masksub")
    ]
    return {
        "recipe": RECIPE,
        "changes": GROWING,
        "versions": {"torch": torch.__version__.partition("+")[0], "timm": timm.__version__},
        "shapes": asdict(count_shapes(load_recipe(RECIPE, GROWING), CLASSES)),
        "memory": rows,
    }


def _checked(name: str, precision: str, method: str) -> dict[str, Any]:
    """Peak memory of a real step on a CPU, and its estimate."""
    recipe = load_recipe(
        "own/vit_small_finetune",
        [
            f"model.name={name}",
            "model.weights=null",
            f"train.precision={precision}",
            "train.batch_size=8",
            f"method={method}",
        ],
    )
    criterion, shape = create_criterion(recipe), (8, 3, 224, 224)
    step = step_of(recipe, criterion, 1000, 0.5, 0.5 if method == "masksub" else 0.0)
    held = held_by(meta_model(recipe, 1000), step, shape, precision=precision, device="cpu")
    torch.manual_seed(0)
    model, x = create_model(recipe, 1000).train(), torch.randn(shape)
    if precision == "bf16":
        model.forward = torch.autocast("cpu", torch.bfloat16)(model.forward)  # as Accelerate does

    def run() -> None:
        model.zero_grad()
        step(model, x, torch.Tensor.backward)

    step(model, x, torch.Tensor.backward)
    model.zero_grad()
    peak = peak_memory(run, torch.device("cpu"))
    return {
        "model": name,
        "precision": precision,
        "method": method,
        "measured": peak,
        "forward": max(held.kept) - x.nbytes + held.copies + 2 * held.widest,
        "gradients": sum(parameter.nbytes for parameter in model.parameters()),
    }


def plan_of(results: dict[str, Any], changes: tuple[str, ...], *, network: float = 400.0) -> Plan:
    """A plan of the page, from counts that were made before."""
    shapes = Shapes(
        **{
            **results["shapes"],
            "held": Held(**{**results["shapes"]["held"], "kept": tuple(results["shapes"]["held"]["kept"])}),
        }
    )
    recipe = load_recipe(results["recipe"], changes)
    machine = create_machine("h100-80gb", recipe.train.precision, per_node=8, utilisation=0.4, network=network)
    return make_plan(recipe, machine, gpus=GPUS, images=IMAGES, classes=CLASSES, shapes=shapes)


def command(changes: tuple[str, ...], more: str = "") -> str:
    """The command line of a plan."""
    lines = [" ".join(changes[first : first + 3]) for first in range(0, len(changes), 3)]
    lines.append(f"--gpus {GPUS} --images {IMAGES} --classes {CLASSES}{more}")
    return f"masksub plan {RECIPE} " + " \\\n    ".join(lines)


def table(plan: Plan) -> str:
    """A Markdown table over numbers of GPUs."""
    head, *rows = scaling_rows(plan)
    lines = [head, tuple("---:" for _ in head), *rows]
    return "\n".join("| " + " | ".join(row) + " |" for row in lines)


def render(results: dict[str, Any]) -> str:
    """The page."""
    fixed = plan_of(results, FIXED)
    fast = plan_of(results, FIXED, network=3200)
    growing = plan_of(results, GROWING)
    update, shapes = fixed.updates["masksub"], fixed.shapes
    gradients = shapes.gradients / 1e9
    sums = {
        "plain": f"{shapes.plain / 1e9:,.1f}",
        "both": f"{(shapes.main + shapes.sub) / 1e9:,.1f}",
        "rate": f"{fixed.rates.method / 1e12:,.1f}",
        "compute": f"{update.compute:.3f}",
        "batch": str(update.batch),
        "gradients": f"{gradients:.2f}",
        "slow": f"{fixed.machine.bandwidth(GPUS) / 1e9:.0f}",
        "reduce": f"{update.communication:.3f}",
        "hidden": f"{shapes.sub * 2 / 3 * update.batch / fixed.rates.method:.3f}",
        "seconds": f"{update.seconds:.3f}",
        "ratio": f"{(shapes.main + shapes.sub) / shapes.plain:.3f}",
        "plain_hours": f"{fixed.totals['plain'].hours:,.0f}",
        "hours": f"{fixed.totals['masksub'].hours:,.0f}",
        "exposed": f"{update.exposed:.3f}",
        "plain_exposed": f"{fixed.updates['plain'].exposed:.3f}",
        "growing_ideal": f"{growing.updates['masksub'].efficiency:.0%}",
        "growing_plain_ideal": f"{growing.updates['plain'].efficiency:.0%}",
        "fast_plain_hours": f"{fast.totals['plain'].hours:,.0f}",
        "fast_hours": f"{fast.totals['masksub'].hours:,.0f}",
    }
    text = (ROOT / "benchmarks" / "planning_page.md").read_text(encoding="utf-8")
    parts = {
        "VERSIONS": ", ".join(f"{name} {version}" for name, version in results["versions"].items()),
        "COMMAND": command(FIXED),
        "PLAN": plan_text(fixed),
        "FAST_COMMAND": command(FIXED, " --network 3200"),
        "FAST": table(fast),
        "GROWING_COMMAND": command(GROWING),
        "GROWING": table(growing),
        "SHARDED_COMMAND": command(SHARDED),
        "SHARDED": table(plan_of(results, SHARDED)),
        "CHECKED": _memory_table(results["memory"]),
        **{key.upper(): value for key, value in sums.items()},
    }
    for key, value in parts.items():
        text = text.replace(f"<{key}>", value)
    return text


def _memory_table(rows: list[dict[str, Any]]) -> str:
    lines = [
        "| model | precision | method | measured, MiB | forward, MiB | with gradients, MiB | measured / estimate |"
    ]
    lines.append("|---|---|---|---:|---:|---:|---:|")
    for row in rows:
        whole = row["forward"] + row["gradients"]
        lines.append(
            f"| {row['model']} | {row['precision']} | {row['method']} | {row['measured'] / 2**20:,.0f} | "
            f"{row['forward'] / 2**20:,.0f} | {whole / 2**20:,.0f} | {row['measured'] / whole:.2f} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", action="store_true", help="count and measure anew")
    parser.add_argument("--render", action="store_true", help="write the page")
    wanted = parser.parse_args()
    if wanted.count:
        RESULTS.write_text(json.dumps(count(), indent=1) + "\n", encoding="utf-8")
    if wanted.render:
        PAGE.write_text(render(json.loads(RESULTS.read_text(encoding="utf-8"))), encoding="utf-8")


if __name__ == "__main__":
    main()
