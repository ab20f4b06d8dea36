"""The demonstration: its table comes from run folders, and its sentence says no more than the figures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from masksub.app.demo import ARMS, run_demo, sentence, table
from masksub.app.progress import Reporter
from masksub.app.runs import RunFolder

SMALL = (
    "data.train_images=128", "data.val_images=60", "train.epochs=2", "train.batch_size=32", "optim.warmup_epochs=0",
    "model.kwargs.embed_dim=24", "model.kwargs.depth=1",
)  # fmt: skip


def rows(**top1: list[float]) -> list[dict[str, Any]]:
    """Made-up figures in the order of the arms: plain, equal, direct, masksub."""
    return [
        {"arm": arm.name, "epochs": 10.0, "top1": values, "mean": sum(values) / len(values), "spread": 1.0,
         "flops": 2.0, "seconds": 3.0}
        for arm, values in zip(ARMS, (top1["plain"], top1["equal"], top1["direct"], top1["sub"]))
    ]  # fmt: skip


def test_runs_table_and_picture(tmp_path: Path) -> None:
    said = run_demo(tmp_path / "demo", seeds=2, reporter=Reporter(quiet=True), overrides=SMALL)
    result = json.loads((tmp_path / "demo" / "demo.json").read_text())
    assert [row["arm"] for row in result["rows"]] == [arm.name for arm in ARMS]
    for row in result["rows"]:
        assert row["arm"] in said
        for path, top1 in zip(row["runs"], row["top1"], strict=True):
            summary = RunFolder(path).summary()
            assert summary is not None and summary["final"]["top1"] == top1
    plain, equal, direct, sub = (row["flops"] for row in result["rows"])
    assert equal == pytest.approx(sub, rel=0.13), "equal compute, but for whole updates of a training of 8"
    assert direct < plain < sub
    with Image.open(tmp_path / "demo" / "demo.png") as picture:
        assert picture.size[0] > 1000
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "demo").glob("*/checkpoints/*/*")}
    assert run_demo(tmp_path / "demo", seeds=2, reporter=Reporter(quiet=True), overrides=SMALL)
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "demo").glob("*/checkpoints/*/*")}


def test_a_clear_win_and_a_clear_loss_are_called_so() -> None:
    said = sentence(
        rows(plain=[90, 91, 92], equal=[90, 91, 92], direct=[50, 51, 52.2], sub=[95, 96, 97.1])
    ).splitlines()
    assert said[0].startswith("At equal compute, MaskSub is better than plain training (+5.0 points")
    assert said[2].startswith("Masking inside plain training is worse than plain training (-39.9 points")


def test_an_interval_with_zero_in_it_is_no_difference() -> None:
    said = sentence(rows(plain=[90, 91, 92], equal=[93, 91, 92], direct=[90, 91, 92], sub=[94, 91, 93]))
    first, _, third, _ = said.splitlines()
    assert (
        first
        == "At equal compute, MaskSub: no difference from plain training seen (+0.7 points, interval -0.8 to +2.1)."
    )
    assert third.startswith("Masking inside plain training: no difference from plain training seen (+0.0")


@pytest.mark.parametrize("seeds", [1, 2])
def test_fewer_than_three_seeds_make_no_claim(seeds: int) -> None:
    values = [90.0, 91.0][:seeds]
    said = sentence(rows(plain=values, equal=values, direct=values, sub=[99.0, 99.0][:seeds]))
    assert "too few to say anything about noise" in said and "better" not in said


def test_table_is_aligned() -> None:
    lines = table(rows(plain=[90, 91], equal=[90, 91], direct=[5, 6], sub=[100, 100])).splitlines()
    assert len({len(line) for line in lines[:6]}) == 1


@pytest.mark.slow
def test_in_the_whole_demonstration_the_plain_arm_levels_off(tmp_path: Path) -> None:
    """As make demo runs it."""
    said = run_demo(tmp_path / "demo", seeds=3, reporter=Reporter(quiet=True))
    assert "MaskSub" in said
    for folder in (tmp_path / "demo").glob("plain-s*"):
        curve = [r["top1"] for r in RunFolder(folder).metrics() if r["kind"] == "eval"]
        assert max(curve[-3:]) - min(curve[-3:]) < 1.0
