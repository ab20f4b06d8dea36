"""From made-up run folders to evidence. If these fail, a report tells of other runs than those that are there."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from masksub.app.errors import InputError
from masksub.app.evidence import run_files
from masksub.app.evidence.gather import gather
from masksub.app.evidence.model import Arm, Evidence
from masksub.app.recipe import load_recipe

from .made_up_runs import recipe, write_arm, write_comparison, write_run, write_sweep

WIN, PLAIN, EQUAL = [96.0, 96.4, 96.2], [94.0, 94.5, 94.4], [94.4, 94.6, 94.9]


def arm(evidence: Evidence, key: str) -> Arm:
    found = evidence.arm(key)
    assert found is not None, f"no arm {key} among {[each.key for each in evidence.arms]}"
    return found


def test_clear_win(tmp_path: Path) -> None:
    """Three arms, told apart by facts, and the figures of each."""
    found = gather([write_comparison(tmp_path / "runs", WIN, PLAIN, EQUAL)])
    assert [each.key for each in found.arms] == ["plain", "plain-equal", "masksub"]
    assert (found.problems, found.sweep, found.classes) == ((), None, ("0", "1"))
    ours = arm(found, "masksub")
    assert ours.top1 is not None and ours.top1.mean == pytest.approx(96.2)
    assert ours.spread == pytest.approx(0.2)
    assert (ours.epochs, ours.flops, ours.seconds, ours.peak_memory_bytes) == (10, 15, 30, 2**28)
    assert set(ours.versus) == {"plain", "plain-equal"}
    assert ours.versus["plain"].differences == pytest.approx((2.0, 1.9, 1.8))
    assert ours.versus["plain"].verdict == ours.versus["plain-equal"].verdict == "better"
    assert arm(found, "plain").versus == {} and set(arm(found, "plain-equal").versus) == {"plain"}
    assert ours.changes == {"method": ("plain", "masksub")}
    assert arm(found, "plain-equal").changes == {"train.epochs": (10.0, 15.0)}
    assert ours.runs[1].path == str(tmp_path / "runs" / "masksub-s1") and ours.runs[1].best_top1 == 96.9
    assert (ours.energy_joules, ours.energy_of) == (None, None)
    assert found.recipe["method"] == "plain" and "seed" not in found.recipe
    assert found.environments[0]["runs"] == 9 and "command" not in found.environments[0]
    json.dumps(found.as_dict(), allow_nan=False)


@pytest.mark.parametrize(("values", "verdict"), [([92.0, 92.6, 92.1], "worse"), ([95.0, 93.9, 94.2], "none")])
def test_loss_and_noise(tmp_path: Path, values: list[float], verdict: str) -> None:
    found = gather([write_comparison(tmp_path, values, PLAIN, EQUAL)])
    assert arm(found, "masksub").versus["plain"].verdict == verdict


@pytest.mark.parametrize("seeds", [1, 2])
def test_one_and_two_seeds_make_no_claim(tmp_path: Path, seeds: int) -> None:
    found = gather([write_comparison(tmp_path, WIN[:seeds], PLAIN[:seeds], EQUAL[:seeds])])
    assert arm(found, "masksub").versus["plain"].verdict == "unknown"
    assert (arm(found, "masksub").spread is None) == (seeds == 1)


def test_a_failed_seed_is_counted_and_not_paired(tmp_path: Path) -> None:
    """A mean over the survivors alone, told as if it were over all, hides that a method diverges."""
    write_comparison(tmp_path, WIN, PLAIN, EQUAL)
    shutil.rmtree(tmp_path / "masksub-s1")
    write_run(tmp_path / "masksub-s1", recipe("seed=1"), status="failed")
    found = gather([tmp_path])
    ours = arm(found, "masksub")
    assert [run.status for run in ours.runs] == ["complete", "failed", "complete"]
    assert ours.failed[0].reason == "the loss of the main branch is not finite"
    assert ours.stability.failed == (1,)
    assert ours.versus["plain"].seeds == (0, 2)
    assert [(each.kind, each.values["seed"]) for each in found.problems] == [("failed", 1)]


def test_all_seeds_failed(tmp_path: Path) -> None:
    """Nothing to average, but something to tell."""
    write_arm(tmp_path, "plain", PLAIN)
    write_arm(tmp_path, "masksub", [1.0, 1.0], status="failed")
    ours = arm(gather([tmp_path]), "masksub")
    assert (ours.top1, ours.flops, ours.versus, ours.curves) == (None, None, {}, {})
    assert ours.stability.failed == (0, 1)


@pytest.mark.parametrize("missing", ["plain", "plain-equal", "masksub"])
def test_a_missing_arm(tmp_path: Path, missing: str) -> None:
    """Without MaskSub nothing says that the longer plain runs are of equal compute to it."""
    write_comparison(tmp_path, WIN, PLAIN, EQUAL)
    for folder in tmp_path.glob(f"{missing}-s*"):
        shutil.rmtree(folder)
    keys = [each.key for each in gather([tmp_path]).arms]
    expected = {
        "plain": ["plain", "masksub"],  # the only plain runs are the plain runs, however long
        "plain-equal": ["plain", "masksub"],
        "masksub": ["plain", "plain train.epochs=15.0"],
    }
    assert keys == expected[missing]


def test_equal_compute_before_any_run_is_complete(tmp_path: Path) -> None:
    """FLOPs are predicted from what the runs have taken until now."""
    write_arm(tmp_path, "plain", PLAIN)
    write_arm(tmp_path, "plain-equal", EQUAL, status="incomplete")
    write_arm(tmp_path, "masksub", WIN, status="incomplete")
    found = gather([tmp_path])
    assert [each.key for each in found.arms] == ["plain", "plain-equal", "masksub"]
    assert [each.kind for each in found.problems] == ["incomplete"] * 6
    for folder in (*tmp_path.glob("masksub-s*"), *tmp_path.glob("plain-equal-s*")):
        (folder / "metrics.jsonl").unlink()
    assert [each.key for each in gather([tmp_path]).arms] == ["plain", "plain-equal", "masksub"]


def test_twice_the_epochs_are_not_equal_compute(tmp_path: Path) -> None:
    write_comparison(tmp_path, WIN, PLAIN, EQUAL)
    for seed in range(3):
        write_run(tmp_path / f"long-s{seed}", recipe("method=plain", "train.epochs=20", f"seed={seed}"), 96.0)
    assert [each.key for each in gather([tmp_path]).arms][-1] == "plain train.epochs=20.0"
    for folder in tmp_path.glob("plain-equal-s*"):
        shutil.rmtree(folder)
    assert [each.key for each in gather([tmp_path]).arms] == ["plain", "masksub", "plain train.epochs=20.0"]


def test_what_changes_nothing_tells_no_arms_apart(tmp_path: Path) -> None:
    """Two machines, one on a GPU: the same recipe. And plain training does not read the mask ratio."""
    write_arm(tmp_path, "masksub", WIN[:1])
    write_run(tmp_path / "b", recipe("seed=1", "train.device=cpu", "data.cache=none", "train.log_every=7"), 96.0)
    write_run(tmp_path / "c", recipe("seed=0", "method=plain", "sub.ratio=0.3"), 94.0)
    write_run(tmp_path / "d", recipe("seed=1", "method=plain", "sub.ratio=0.7", "sub.bn=main", "sub.mode=joint"), 94.0)
    assert [len(each.runs) for each in gather([tmp_path]).arms] == [2, 2]


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("data.image_size=16", "data.image_size: 8 -> 16"),
        ("augment.test_crop=0.9", "augment.test_crop: 1.0 -> 0.9"),
        ("model.kwargs.depth=5", "model.kwargs.depth: 3 -> 5"),
        ("loss.smoothing=0.1", "loss.smoothing: 0.0 -> 0.1"),
    ],
)
def test_other_data_or_model_is_refused(tmp_path: Path, override: str, said: str) -> None:
    """With the keys, both values and both folders."""
    write_arm(tmp_path / "one", "plain", PLAIN)
    write_run(tmp_path / "two", recipe(override), 96.0)
    with pytest.raises(InputError, match="can't be compared") as refused:
        gather([tmp_path])
    for part in (said, str(tmp_path / "one" / "plain-s0"), str(tmp_path / "two")):
        assert part in str(refused.value)


def test_other_classes_are_refused(tmp_path: Path) -> None:
    """One path, another content: the recipes can't tell."""
    write_arm(tmp_path, "plain", PLAIN)
    write_arm(tmp_path, "masksub", WIN, classes=("cat", "dog"))
    with pytest.raises(InputError, match=r"classes: 2 .*cat"):
        gather([tmp_path])


def test_optimizer_epochs_and_augmentation_may_differ(tmp_path: Path) -> None:
    write_arm(tmp_path, "plain", PLAIN)
    write_arm(tmp_path, "masksub", WIN, "optim.lr=1e-3", "augment.flip=0.5", "augment.mixup=0.2")
    changes = arm(gather([tmp_path]), "masksub").changes
    assert changes["optim.lr"] == (0.003, 0.001) and changes["augment.flip"] == (0.0, 0.5)


def test_what_was_swept_on_purpose_may_differ(tmp_path: Path) -> None:
    for value in (0.0, 0.1):
        made = recipe(f"model.kwargs.drop_path_rate={value}")
        write_run(tmp_path / f"rate{value}-s0", made, 95 + value)
    with pytest.raises(InputError, match="drop_path_rate"):
        gather([tmp_path])
    sweep = gather([tmp_path], swept=["model.kwargs.drop_path_rate"]).sweep
    assert sweep is not None and sweep.keys == ("model.kwargs.drop_path_rate",)
    told = {"study": {"space": {"model.kwargs.drop_path_rate": "0.0,0.1"}}}
    (tmp_path / "sweep.json").write_text(json.dumps(told), encoding="utf-8")
    assert gather([tmp_path]).sweep == sweep


def test_sweep_beside_a_comparison(tmp_path: Path) -> None:
    """The arm is the run of the comparison; the settings are compared with the plain arm of the same seeds."""
    write_comparison(tmp_path / "compare", WIN, PLAIN, EQUAL)
    grid = {(r, w): [97.0, 97.2, 97.1] if r == 0.25 else [95.0, 95.5, 95.1] for r in (0.25, 0.75) for w in (0.3, 0.5)}
    write_sweep(tmp_path / "sweep", grid)
    found = gather([tmp_path / "compare", tmp_path / "sweep"])
    assert [each.key for each in found.arms] == ["plain", "plain-equal", "masksub"]
    assert arm(found, "masksub").top1 is not None and arm(found, "masksub").changes == {"method": ("plain", "masksub")}
    assert found.sweep is not None and found.sweep.keys == ("sub.ratio", "sub.weight")
    assert len(found.sweep.points) == 5
    assert found.sweep.recommended is not None
    chosen = found.sweep.points[found.sweep.recommended]
    assert chosen.settings == {"sub.ratio": 0.25, "sub.weight": 0.5}
    assert chosen.versus_plain is not None and chosen.versus_plain.differences == pytest.approx((3.0, 2.7, 2.7))


def test_a_setting_with_more_seeds_from_a_comparison_is_not_preferred_for_them(tmp_path: Path) -> None:
    """The settings of a sweep are judged on the same seeds."""
    write_comparison(tmp_path / "compare", [*WIN, 97.9, 97.8], PLAIN, EQUAL)
    write_sweep(tmp_path / "sweep", {(r, 0.5): [98.0 + r, 98.2 + r, 98.1 + r] for r in (0.25, 0.75)})
    found = gather([tmp_path / "compare", tmp_path / "sweep"])
    assert found.sweep is not None and found.sweep.recommended is not None
    assert found.sweep.points[found.sweep.recommended].settings == {"sub.ratio": 0.75}
    assert {len(point.runs) for point in found.sweep.points} == {3}
    assert len(arm(found, "masksub").runs) == 5


def test_a_sweep_alone_has_its_recommended_setting_as_arm(tmp_path: Path) -> None:
    grid = {(0.25, 0.5): [97.0, 97.2, 97.1], (0.75, 0.5): [90.0, 90.2, 90.1]}
    found = gather([write_sweep(tmp_path, grid)])
    assert [each.key for each in found.arms] == ["masksub"] and found.arms[0].runs[0].top1 == 97.0
    assert found.sweep is not None and found.sweep.keys == ("sub.ratio",)
    assert found.sweep.sensitivity == {"sub.ratio": pytest.approx(7.0)}


def test_a_schedule_is_one_value(tmp_path: Path) -> None:
    ramp = "{kind: linear, start: 0.0, end: 0.5}"
    for number, value in enumerate(("0.5", ramp)):
        write_run(tmp_path / f"{number}-s0", recipe(f"sub.ratio={value}"), 95.0)
    sweep = gather([tmp_path]).sweep
    assert sweep is not None
    assert sweep.points[1].settings == {"sub.ratio": {"kind": "linear", "start": 0.0, "end": 0.5}}


def test_groups_that_differ_in_many_keys_are_no_sweep(tmp_path: Path) -> None:
    write_run(tmp_path / "a-s0", recipe(), 95.0)
    others = ("optim.lr=1e-4", "optim.weight_decay=0.1", "train.batch_size=32", "augment.flip=0.5", "train.epochs=30")
    write_run(tmp_path / "b-s0", recipe(*others), 96.0)
    found = gather([tmp_path])
    assert found.sweep is None and len(found.arms) == 2
    assert found.arms[1].key.startswith("masksub ") and "optim.lr=0.0001" in found.arms[1].key


def test_curves_and_compute_to_plain(tmp_path: Path) -> None:
    """Plain ends at 94 on average. MaskSub's mean goes 90, 93, 95, 96 at 3.75 FLOPs each: 94 half way to the third."""
    for seed, off in enumerate((-1.0, 1.0)):
        write_run(tmp_path / f"plain-s{seed}", recipe("method=plain", f"seed={seed}"), 94 + off)
        curve = [90 + off, 93 + off, 95 + off, 96 + off]
        write_run(tmp_path / f"masksub-s{seed}", recipe(f"seed={seed}"), 96 + off, evaluations=curve)
    write_run(tmp_path / "masksub-s2", recipe("seed=2"), 10.0, status="incomplete")
    found = gather([tmp_path])
    ours = arm(found, "masksub")
    top1 = ours.curves["top1"]
    assert top1.epoch == [2.5, 5.0, 7.5, 10.0] and top1.flops == [3.75, 7.5, 11.25, 15.0]
    assert (top1.mean, top1.low, top1.high) == ([90, 93, 95, 96], [89, 92, 94, 95], [91, 94, 96, 97])
    assert ours.flops_to_plain == pytest.approx(7.5 + 3.75 / 2)
    assert arm(found, "plain").flops_to_plain == pytest.approx(10)
    assert len(ours.curves["gradient_norm"].mean) == 3  # the first line has none
    assert "loss_sub" not in ours.curves


def test_never_reaching_plain(tmp_path: Path) -> None:
    found = gather([write_comparison(tmp_path, [90.0, 90.1, 90.2], PLAIN, EQUAL)])
    assert arm(found, "masksub").flops_to_plain is None


def test_stability(tmp_path: Path) -> None:
    """Variances 0.2^2 and 0.4^2 of the second half; one spike, one rise in the warm-up, one that is too small."""
    lines: list[dict[str, Any]] = [
        {"loss_main": 2.0, "loss_main_std": 0.01, "loss_main_max": 2.1},
        {"loss_main": 1.0, "loss_main_std": 0.01, "loss_main_max": 3.0},  # the line before began in the warm-up
        {"loss_main": 1.0, "loss_main_std": 0.2, "loss_main_max": 1.5},  # 0.5 above 1.0: more than 6 x 0.01, and 0.2
        {"loss_main": 1.0, "loss_main_std": 0.4, "loss_main_max": 2.1},  # less than 6 x 0.2 above
    ]
    write_run(tmp_path / "masksub-s0", recipe(), lines=lines)
    at = gather([tmp_path]).arms[0].stability
    assert at.spikes == 1
    assert at.loss_variance == pytest.approx((0.04 + 0.16) / 2)
    assert (at.gradient_norm_mean, at.gradient_norm_max) == (pytest.approx((1 + 2 / 3 + 0.5) / 3), 1.0)
    # The same rise over a loss of 20 at the beginning is none: it undoes a fortieth of what was learnt.
    lines[0] |= {"loss_main": 20.0}
    write_run(tmp_path / "b" / "masksub-s0", recipe(), lines=lines)
    assert gather([tmp_path / "b"]).arms[0].stability.spikes == 0


def test_energy_only_if_every_run_could_read_it(tmp_path: Path) -> None:
    energy = {"energy_joules": 500.0, "energy_of": "GPU (NVML)"}
    write_arm(tmp_path, "plain", PLAIN, summary=energy)
    write_arm(tmp_path, "masksub", WIN, summary=energy)
    path = tmp_path / "masksub-s2" / "summary.json"
    path.write_text(path.read_text(encoding="utf-8").replace('"energy_joules": 500.0', '"energy_joules": null'))
    found = gather([tmp_path])
    assert (arm(found, "plain").energy_joules, arm(found, "plain").energy_of) == (500.0, "GPU (NVML)")
    assert (arm(found, "masksub").energy_joules, arm(found, "masksub").energy_of) == (None, None)


def test_statistics_are_checked_first() -> None:
    with pytest.raises(InputError, match=r"'u'.*t or bootstrap"):
        gather([], statistics="u")


def test_bootstrap_reaches_the_arms(tmp_path: Path) -> None:
    found = gather([write_comparison(tmp_path, WIN, PLAIN, EQUAL)], statistics="bootstrap")
    assert "bootstrap" in arm(found, "masksub").versus["plain"].method


def test_many_long_runs_are_read_once_and_their_curves_thinned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A recipe takes far longer to check than to read: runs that differ in the seed alone are checked once."""
    first = write_run(tmp_path / "masksub-s0", recipe(), 95.0)
    line = (first / "metrics.jsonl").read_text(encoding="utf-8").splitlines()[2]
    record = json.loads(line) | {"kind": "train"}
    lines = [json.dumps({**record, "epoch": number / 100, "update": number}) for number in range(1, 1001)]
    (first / "metrics.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    for seed in range(1, 20):
        copy = shutil.copytree(first, tmp_path / f"masksub-s{seed}")
        text = (copy / "recipe.yaml").read_text(encoding="utf-8").replace("seed: 0", f"seed: {seed}")
        (copy / "recipe.yaml").write_text(text, encoding="utf-8")
    checked: list[Path] = []
    monkeypatch.setattr(run_files, "load_recipe", lambda path: checked.append(path) or load_recipe(path))
    found = gather([tmp_path])
    assert len(checked) == 1
    assert [run.seed for run in found.arms[0].runs] == [*range(20)]
    curve = found.arms[0].curves["loss_main"]
    assert len(curve.mean) <= 400 and curve.epoch[0] == pytest.approx(0.02)  # mean of the first three lines
