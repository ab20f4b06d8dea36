"""Masking step by step. If these fail, a team raises the ratio although it loses, or is told more than was seen."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from masksub.app.errors import InputError
from masksub.app.experiment.cells import Cell
from masksub.app.progress import Reporter
from masksub.app.recipe import load_recipe
from masksub.app.runs import RunFolder
from masksub.app.sweep import staged
from masksub.app.sweep.staged import run_staged
from tests.app.test_train import SMALL

NOISE = (0.0, 0.3, -0.3, 0.1)


class MadeUp:
    """Stands in for the training of cells: top-1 by ratio, with noise of the seed alone."""

    def __init__(self, top1: dict[float, float], diverges: float | None = None) -> None:
        self.top1, self.diverges = top1, diverges
        self.trained: list[str] = []

    def __call__(self, cells: Sequence[Cell], *, jobs: int, reporter: Reporter) -> None:
        for cell in cells:
            if cell.state != "missing":
                continue
            self.trained.append(cell.folder.name)
            run, recipe = RunFolder(cell.folder), cell.recipe
            run.create(recipe, ["a", "b"], [])
            ratio = 0.0 if recipe.method == "plain" else recipe.sub.ratio_schedule(0.0)
            if ratio == self.diverges and recipe.seed == 1:
                run.write_failure({"update": 1, "epoch": 0.1, "reason": "the loss is not finite"})
                continue
            top1 = self.top1[ratio] + NOISE[recipe.seed] * (1 + ratio)
            run.write_summary({"final": {"top1": top1}, "flops": 1e9 * (2 - ratio)})


def staged_in(folder: Path, monkeypatch: pytest.MonkeyPatch, fake: MadeUp, **changes: Any) -> tuple[Any, str]:
    monkeypatch.setattr(staged, "train_cells", fake)
    arguments: dict[str, Any] = {"seeds": 3, "tolerance": 1.0, **changes}
    return run_staged(load_recipe("digits/vit_micro"), folder, reporter=Reporter(quiet=True), **arguments)


def test_stops_where_more_is_lost_than_allowed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = MadeUp({0.0: 90.0, 0.1: 90.2, 0.25: 91.5, 0.5: 88.5, 0.75: 95.0})
    result, text = staged_in(tmp_path, monkeypatch, fake)
    assert [(step["ratio"], step["accepted"]) for step in result["steps"]] == [
        (0.0, True), (0.1, True), (0.25, True), (0.5, False),
    ]  # fmt: skip
    assert (result["recommended"], result["not_tried"]) == (0.25, [0.75])
    assert "1.50 points below plain training, more than the tolerance of 1" in result["stopped"]
    assert result["steps"][3]["versus_before"]["mean"] == pytest.approx(-3.0)
    assert "ratio-0.75-s0" not in fake.trained, "what comes after the stop is not trained"
    assert "Ratio to use: 0.25" in text and "It is better than plain training: +1.50 points" in text
    assert json.loads((tmp_path / "staged.json").read_text())["recommended"] == 0.25
    assert [Path(run).is_dir() for run in result["steps"][3]["runs"]] == [True] * 3

    again = MadeUp(fake.top1)
    result, _ = staged_in(tmp_path, monkeypatch, again, tolerance=2.0)
    assert again.trained == [f"ratio-0.75-s{seed}" for seed in range(3)], "goes on from where it stopped"
    assert (result["recommended"], result["stopped"]) == (0.75, None)


def test_never_says_more_than_the_figures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flat = MadeUp({0.0: 90.0, 0.1: 90.01, 0.25: 90.0, 0.5: 90.0, 0.75: 90.0})
    assert "No difference from plain training is seen" in staged_in(tmp_path / "noise", monkeypatch, flat)[1]
    clear = MadeUp({0.0: 90.0, 0.1: 95.0, 0.25: 95.0, 0.5: 95.0, 0.75: 95.0})
    assert "too few to say anything about noise" in staged_in(tmp_path / "two", monkeypatch, clear, seeds=2)[1]
    worse = MadeUp({0.0: 90.0, 0.1: 89.2, 0.25: 80.0})
    assert "It is worse than plain training" in staged_in(tmp_path / "worse", monkeypatch, worse)[1]


@pytest.mark.parametrize("at, said", [(0.1, "Ratio to use: none"), (0.0, "Plain training itself fails")])
def test_a_seed_that_diverges_stops_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: float, said: str) -> None:
    fake = MadeUp({0.0: 90.0, 0.1: 95.0}, diverges=at)
    result, text = staged_in(tmp_path, monkeypatch, fake)
    assert result["recommended"] is None and said in text
    assert "seed 1 of" in result["stopped"] and "the loss is not finite" in result["stopped"]


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"ratios": [0.5, 0.1]}, "must rise"),
        ({"ratios": [0.0, 0.5]}, "above 0 and below 1"),
        ({"tolerance": -1.0}, "--tolerance -1"),
        ({"statistics": "guess"}, "must be t or bootstrap"),
    ],
)
def test_bad_input_writes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], said: str
) -> None:
    with pytest.raises(InputError, match=said):
        staged_in(tmp_path / "runs", monkeypatch, MadeUp({}), **changes)
    with pytest.raises(InputError, match="no ratio to raise"):
        run_staged(
            load_recipe("digits/vit_micro", ["method=plain"]), tmp_path / "runs", seeds=1, reporter=Reporter(quiet=True)
        )
    assert list(tmp_path.iterdir()) == []


def test_with_real_training(tmp_path: Path) -> None:
    recipe = load_recipe("digits/vit_micro", [*SMALL, "train.epochs=1"])
    result, text = run_staged(
        recipe, tmp_path, ratios=[0.25], seeds=1, tolerance=99, jobs=1, reporter=Reporter(quiet=True)
    )
    assert result["recommended"] == 0.25 and "All steps are within the tolerance" in text
    assert RunFolder(tmp_path / "ratio-0.25-s0").summary() and RunFolder(tmp_path / "plain-s0").summary()
