"""Run folders with made-up figures, written by hand as training writes them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from masksub.app.recipe import dump_recipe, load_recipe
from masksub.app.settings import Recipe

STRETCH = 1.5
"""FLOPs of a made-up MaskSub run over those of a plain one; an epoch of plain training is one FLOP."""
COSTS = {"plain": 1.0, "masksub": STRETCH, "direct-mask": 0.5, "dropsub": 2.0}


def recipe(*overrides: str) -> Recipe:
    return load_recipe("digits/vit_micro", ("train.epochs=10", "optim.warmup_epochs=1", *overrides))


def write_run(
    folder: Path,
    made: Recipe,
    top1: float = 95.0,
    *,
    status: str = "complete",
    evaluations: list[float] | None = None,
    lines: list[dict[str, Any]] | None = None,
    summary: dict[str, Any] | None = None,
    torch: str = "2.6.0",
    classes: tuple[str, ...] = ("0", "1"),
) -> Path:
    """A run of ``made`` that ended at ``top1``; an incomplete or failed one stopped half way."""
    folder.mkdir(parents=True)
    epochs, cost = made.train.epochs, COSTS[made.method]
    (folder / "recipe.yaml").write_text(dump_recipe(made), encoding="utf-8")
    (folder / "classes.json").write_text(json.dumps(classes), encoding="utf-8")
    environment = {"versions": {"masksub": "0.1.0", "torch": torch}, "cores": 2, "command": ["masksub"]}
    (folder / "environment.json").write_text(json.dumps(environment), encoding="utf-8")
    curve = evaluations or [top1 - 10, top1 - 5, top1 - 2, top1]
    records = []
    for number, value in enumerate(curve if status == "complete" else curve[: len(curve) // 2], 1):
        epoch = epochs * number / len(curve)
        place = {"update": round(16 * epoch), "epoch": epoch, "flops": epoch * cost, "seconds": epoch}
        loss = {"loss": 1 / number, "loss_main": 1 / number, "loss_main_std": 0.1, "loss_main_max": 1.2 / number}
        norm = None if number == 1 else 2.0 / number
        records.append(
            {"kind": "train", **place, **loss, "gradient_norm": norm, **(lines[number - 1] if lines else {})}
        )
        records.append({"kind": "eval", **place, "top1": value, "loss": 1 - value / 100, "images": 500})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    if status == "complete":
        made_up = {
            "method": made.method, "seed": made.seed, "final": {"top1": top1, "loss": 0.1, "images": 500},
            "best_top1": top1 + 0.5, "updates": 160, "epochs": epochs, "images": 1024 * epochs,
            "seconds": 25.0, "train_seconds": 20.0 * cost, "flops": epochs * cost, "images_per_second": 500.0,
            "peak_memory_bytes": 2**28, **(summary or {}),
        }  # fmt: skip
        (folder / "summary.json").write_text(json.dumps(made_up), encoding="utf-8")
    elif status == "failed":
        failure = {"update": 81, "epoch": 5.0, "reason": "the loss of the main branch is not finite"}
        (folder / "failure.json").write_text(json.dumps(failure), encoding="utf-8")
    return folder


def write_arm(folder: Path, key: str, values: list[float], *overrides: str, **more: Any) -> None:
    """An arm of a comparison: one run for each seed, the first of which is 0."""
    method = "plain" if key == "plain-equal" else key
    stretched = (f"train.epochs={10 * STRETCH}", "train.eval_every=1.5") if key == "plain-equal" else ()
    for seed, value in enumerate(values):
        made = recipe(f"method={method}", f"seed={seed}", *stretched, *overrides)
        write_run(folder / f"{key}-s{seed}", made, value, **more)


def write_comparison(folder: Path, masksub: list[float], plain: list[float], equal: list[float]) -> Path:
    for key, values in (("plain", plain), ("plain-equal", equal), ("masksub", masksub)):
        write_arm(folder, key, values)
    return folder


def write_sweep(folder: Path, values: dict[tuple[float, float], list[float]]) -> Path:
    """(ratio, weight) -> final top-1 of each seed; a higher ratio is cheaper."""
    for (ratio, weight), top1 in values.items():
        for seed, value in enumerate(top1):
            made = recipe(f"sub.ratio={ratio}", f"sub.weight={weight}", f"seed={seed}")
            run = folder / f"ratio={ratio},weight={weight}-s{seed}"
            write_run(run, made, value, summary={"flops": 10 * (2 - ratio)})
    return folder
