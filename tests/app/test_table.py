"""What the terminal says. If these fail, a sentence says more than the figures, or a figure is missing."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from masksub.app.evidence.gather import gather
from masksub.app.evidence.table import WIDTH, sweep_table, text_table

from .made_up_runs import recipe, write_arm, write_comparison, write_run, write_sweep

WIN, PLAIN, EQUAL = [96.0, 96.4, 96.2], [94.0, 94.5, 94.4], [94.4, 94.6, 94.9]


def row(text: str, name: str, table: int = 0) -> list[str]:
    """Cells of the row of an arm, in its nth table."""
    rows = [line for line in text.splitlines() if line.startswith(f"{name}  ")]
    return rows[table].removeprefix(name).split()


def tables_fit(text: str) -> bool:
    """No line above a rule, or of the tables' rows, is too wide; sentences may be."""
    return max(len(line) for line in text.splitlines() if "  " in line.strip() or line.startswith("---")) <= WIDTH


def test_clear_win(tmp_path: Path) -> None:
    """Each figure in its place; MaskSub took 15 FLOPs in place of 10."""
    text = text_table(gather([write_comparison(tmp_path, WIN, PLAIN, EQUAL)]))
    assert row(text, "MaskSub") == ["3", "10", "1.50", "x", "96.20", "+-", "0.20", "30", "500", "256", "MiB"]
    assert row(text, "plain, equal compute")[:4] == ["3", "15", "1.50", "x"]
    # Differences 2.0, 1.9, 1.8: mean 1.9, t(0.975, 2) = 4.3027 times 0.1 / sqrt(3) = 0.25.
    assert row(text, "MaskSub", 1)[:4] == ["+1.90", "[+1.65,", "+2.15]", "<0.001"]
    assert "At equal epochs and 1.50 times the compute, MaskSub is better than plain training (+1.90 points" in text
    assert "At equal compute, MaskSub is better than plain training (+1.57 points" in text
    assert "paired over seeds: paired t" in text
    # 94.2 at 11.25 FLOPs, 96.2 at 15: 94.3 a twentieth of the way, at 11.44 of plain's 10.
    assert "MaskSub reaches plain training's final accuracy (94.30 %) with 1.14 times" in text
    assert "no claim" not in text and "energy" not in text.lower()
    assert tables_fit(text)


def test_clear_loss(tmp_path: Path) -> None:
    text = text_table(gather([write_comparison(tmp_path, [90.0, 90.3, 90.1], PLAIN, EQUAL)]))
    assert "At equal compute, MaskSub is worse than plain training" in text
    assert "MaskSub does not reach plain training's final accuracy" in text
    assert "better" not in text


def test_noise_is_no_difference(tmp_path: Path) -> None:
    text = text_table(gather([write_comparison(tmp_path, [95.5, 93.9, 94.2], PLAIN, EQUAL)]))
    assert text.count("no difference from plain training seen") == 2
    assert "better" not in text.lower() and "worse" not in text.lower()


@pytest.mark.parametrize("seeds", [1, 2])
def test_too_few_seeds_make_no_claim(tmp_path: Path, seeds: int) -> None:
    text = text_table(gather([write_comparison(tmp_path, WIN[:seeds], PLAIN[:seeds], EQUAL[:seeds])]))
    assert "no claim about noise can be made" in text
    assert "better" not in text and "difference seen" not in text
    assert f"ended {1.95 if seeds == 2 else 2.0:+.2f} points from plain training, over {seeds} seed" in text


def test_failed_seeds_are_counted_and_named(tmp_path: Path) -> None:
    write_comparison(tmp_path, WIN, PLAIN, EQUAL)
    shutil.rmtree(tmp_path / "masksub-s2")
    write_run(tmp_path / "masksub-s2", recipe("seed=2"), status="failed")
    write_run(tmp_path / "plain-s3", recipe("method=plain", "seed=3"), status="incomplete")
    text = text_table(gather([tmp_path]))
    assert row(text, "MaskSub")[:3] == ["2,", "1", "failed"] and row(text, "plain")[:3] == ["3,", "1", "open"]
    assert row(text, "MaskSub", 2)[-2:] == ["seed", "2"] and row(text, "plain", 1)[-1] == "-"  # of stability
    assert "MaskSub, seed 2 failed: the loss of the main branch is not finite" in text
    assert "plain, not complete: seed 3." in text
    assert "MaskSub: fewer than three paired seeds, so no claim about noise can be made" in text
    assert "MaskSub: its figures are those of the seeds that did not fail." in text


def test_a_failed_seed_0_does_not_read_as_no_failure(tmp_path: Path) -> None:
    write_comparison(tmp_path, WIN, PLAIN, EQUAL)
    for seed in (0, 2):
        shutil.rmtree(tmp_path / f"masksub-s{seed}")
        write_run(tmp_path / f"masksub-s{seed}", recipe(f"seed={seed}"), status="failed")
    assert row(text_table(gather([tmp_path])), "MaskSub", 2)[-3:] == ["seeds", "0,", "2"]


def test_a_missing_arm_is_not_made_up(tmp_path: Path) -> None:
    """Without plain there is nothing to be relative to; without MaskSub nothing to tell of it."""
    write_arm(tmp_path / "a", "masksub", WIN)
    text = text_table(gather([tmp_path / "a"]))
    assert "15 FLOP" in text and "plain" not in text and "better" not in text
    write_arm(tmp_path / "b", "plain", PLAIN)
    text = text_table(gather([tmp_path / "b"]))
    assert "MaskSub" not in text and tables_fit(text)


def test_equal_epochs_are_only_claimed_where_they_are(tmp_path: Path) -> None:
    write_arm(tmp_path, "plain", PLAIN)
    write_arm(tmp_path, "masksub", WIN, "train.epochs=7")
    text = text_table(gather([tmp_path]))
    assert "At equal" not in text and "At 7 epochs against 10, MaskSub is better" in text


def test_other_arms_in_a_sentence_each_verdict(tmp_path: Path) -> None:
    write_comparison(tmp_path, WIN, PLAIN, EQUAL)
    write_arm(tmp_path, "direct-mask", [80.0, 81.0, 80.3])
    text = text_table(gather([tmp_path]))
    assert "Worse than plain training, of the other arms: masking in plain training." in text


def test_interval_and_p_that_disagree_are_pointed_at(tmp_path: Path) -> None:
    """Three pairs can't give p below 2/8, yet the bootstrap's interval of them is narrow."""
    text = text_table(gather([write_comparison(tmp_path, WIN, PLAIN, EQUAL)], statistics="bootstrap"))
    assert "exact sign-flip test" in text
    assert "no difference is claimed: " in text and "MaskSub to plain;" in text and "is better than" not in text


def test_energy_where_it_was_read(tmp_path: Path) -> None:
    write_arm(tmp_path, "plain", PLAIN, summary={"energy_joules": 5000.0, "energy_of": "GPU 0 (NVML)"})
    write_arm(tmp_path, "masksub", WIN)
    text = text_table(gather([tmp_path]))
    assert row(text, "plain")[-2:] == ["5", "kJ"] and row(text, "MaskSub")[-1] == "-"
    assert "Energy: GPU 0 (NVML)." in text


def test_problems_are_listed(tmp_path: Path) -> None:
    write_arm(tmp_path / "runs", "plain", PLAIN)
    for number in range(12):
        (tmp_path / f"empty{number}").mkdir()
    text = text_table(gather([tmp_path / "runs", *(tmp_path / f"empty{number}" for number in range(12))]))
    assert "empty0: the folder is empty" in text and "... and 2 more problems" in text


GRID = {
    (0.25, 0.25): [95.0, 95.1, 95.3], (0.25, 0.5): [96.5, 96.0, 96.4], (0.5, 0.25): [94.0, 94.1, 94.4],
    (0.5, 0.5): [96.2, 96.3, 96.1], (0.75, 0.25): [92.0, 92.1, 92.5], (0.75, 0.5): [93.0, 93.3, 93.2],
}  # fmt: skip


def test_sweep_of_two_keys_is_a_grid(tmp_path: Path) -> None:
    """The highest mean is 96.30 at 0.25; 0.5 is not told apart from it and cheaper."""
    text = sweep_table(gather([write_sweep(tmp_path, GRID)]))
    lines = text.splitlines()
    assert lines[0].split() == ["sub.ratio", "\\", "sub.weight", "0.25", "0.5"]
    assert [line.split() for line in lines[2:5]] == [
        ["0.25", "95.13", "96.30^"],
        ["0.5", "94.17", "96.20*"],
        ["0.75", "92.20", "93.17"],
    ]
    assert (
        "Recommended: sub.ratio=0.5, sub.weight=0.5: top-1 96.20 %, 95 % interval 95.95 to 96.45 over 3 seeds" in text
    )
    assert "The highest mean is 96.30 % at sub.ratio=0.25, sub.weight=0.5" in text
    assert "along sub.ratio, top-1 falls by 3.03 points at most" in text
    assert "along sub.weight, top-1 falls by 2.03 points at most" in text
    front = text[text.index("no other beats") :]
    assert front.index("93.17 %  sub.ratio=0.75") < front.index("96.20 %") < front.index("96.30 %")
    assert tables_fit(text)


def test_sweep_tells_of_failed_seeds_and_of_too_few(tmp_path: Path) -> None:
    write_sweep(tmp_path, {(0.25, 0.5): [95.0, 95.2], (0.5, 0.5): [96.0]})
    write_run(tmp_path / "failed-s1", recipe("sub.ratio=0.5", "seed=1"), status="failed")
    text = sweep_table(gather([tmp_path]))
    assert "sub.ratio=0.5, seed 1 failed: the loss" in text and "1, 1 failed" in text
    assert "Fewer than three seeds: no claim about noise can be made" in text


def test_sweep_of_other_numbers_of_keys_is_a_list(tmp_path: Path) -> None:
    write_arm(tmp_path, "plain", PLAIN)
    for number, (rate, ratio, decay) in enumerate([(1e-3, 0.5, 0.1), (3e-3, 0.25, 0.05), (2e-3, 0.6, 0.2)]):
        overrides = (f"optim.lr={rate}", f"sub.ratio={ratio}", f"optim.weight_decay={decay}")
        for seed in range(3):
            write_run(tmp_path / f"{number}-s{seed}", recipe(*overrides, f"seed={seed}"), PLAIN[seed] + number)
    text = sweep_table(gather([tmp_path]))
    first = text.splitlines()[2]
    assert first.startswith("sub.ratio=0.6, optim.lr=0.002, optim.weight_") and "96.30*" in first and "+2.00" in first
    assert "against plain training, +2.00 points over 3 pairs" in text
    assert tables_fit(text)


def test_without_a_sweep_it_says_so(tmp_path: Path) -> None:
    write_arm(tmp_path, "masksub", WIN)
    assert "there is no sweep" in sweep_table(gather([tmp_path]))


def test_a_comparison_tells_that_there_is_a_sweep(tmp_path: Path) -> None:
    text = text_table(gather([write_sweep(tmp_path, GRID)]))
    assert "6 settings of sub.ratio, sub.weight were found" in text
