"""The demonstration: a comparison whose table and picture come from run folders. If these fail, make demo misleads."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from masksub.app.demo import run_demo
from masksub.app.progress import Reporter
from masksub.app.runs import RunFolder

SMALL = (
    "data.train_images=128", "data.val_images=60", "train.epochs=2", "train.batch_size=32", "optim.warmup_epochs=0",
    "model.kwargs.embed_dim=24", "model.kwargs.depth=1",
)  # fmt: skip


def test_runs_table_and_picture(tmp_path: Path) -> None:
    folder = tmp_path / "demo"
    said = run_demo(folder, seeds=2, reporter=Reporter(quiet=True), overrides=SMALL)
    result = json.loads((folder / "comparison.json").read_text())
    assert [arm["key"] for arm in result["arms"]] == ["plain", "plain-equal", "masksub", "direct-mask"]
    for arm in result["arms"]:
        for run in arm["runs"]:
            summary = RunFolder(run["path"]).summary()
            assert summary is not None and summary["final"]["top1"] == run["top1"]
    flops = {arm["key"]: arm["flops"] for arm in result["arms"]}
    assert flops["plain-equal"] == pytest.approx(flops["masksub"], rel=0.13), "but for whole updates of a training of 8"
    assert flops["direct-mask"] < flops["plain"] < flops["masksub"]
    assert "MaskSub" in said and str(folder / "demo.png") in said
    with Image.open(folder / "demo.png") as picture:
        assert picture.size[0] > 1000
    before = {path: path.stat().st_mtime_ns for path in folder.glob("*/checkpoints/*/*")}
    assert run_demo(folder, seeds=2, reporter=Reporter(quiet=True), overrides=SMALL)
    assert before == {path: path.stat().st_mtime_ns for path in folder.glob("*/checkpoints/*/*")}


@pytest.mark.slow
def test_in_the_whole_demonstration_the_plain_arm_levels_off(tmp_path: Path) -> None:
    """As make demo runs it."""
    said = run_demo(tmp_path / "demo", seeds=3, reporter=Reporter(quiet=True))
    assert "MaskSub" in said
    for folder in (tmp_path / "demo").glob("plain-s*"):
        curve = [r["top1"] for r in RunFolder(folder).metrics() if r["kind"] == "eval"]
        assert max(curve[-3:]) - min(curve[-3:]) < 1.0
