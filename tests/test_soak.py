"""The soak kills and resumes, and would see what went wrong. If these fail, its "50 of 50" means nothing."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from benchmarks.soak import METHODS, Soak
from benchmarks.soak_attempts import BLOCK, draw
from benchmarks.soak_compare import differences, unequal_checkpoint

SHORT: dict[str, Any] = {"seed": 2, "kinds": ("step", "checkpoint", "evaluation"), "most_updates": 20, "allowance": 20}


@pytest.fixture(scope="module")
def soaked(tmp_path_factory: pytest.TempPathFactory) -> Soak:
    """A training that is killed three times and its unbroken twin."""
    soak = Soak(tmp_path_factory.mktemp("soak"), **SHORT, tell=lambda line: None)
    soak.run("masksub", 3)
    return soak


def test_a_training_that_is_killed_three_times_ends_bit_equal(soaked: Soak) -> None:
    result = soaked.result()
    assert result["kills"] == result["equal_after_kill"] == 3, result
    assert result["rounds"] == result["equal_at_the_end"] >= 1, result
    assert sum(result["kills_during"].values()) == 3
    assert all(each["code"] == -9 for each in result["each_interruption"])


def test_a_soak_that_is_complete_is_not_made_again_and_another_is_refused(soaked: Soak) -> None:
    again = Soak(soaked.folder, **SHORT, tell=lambda line: pytest.fail(line))
    again.run("masksub", 3)
    assert again.result() == soaked.result()
    with pytest.raises(SystemExit, match="holds another soak"):
        Soak(soaked.folder, **{**SHORT, "seed": 1})


def test_one_changed_bit_is_seen(soaked: Soak, tmp_path: Path) -> None:
    """In the weights, the moving average, and the optimizer's state."""
    unbroken, broken = soaked.folder / "masksub-0-unbroken", tmp_path / "broken"
    for name in ("model.safetensors", "ema.safetensors", "training.pt"):
        shutil.copytree(soaked.folder / "masksub-0-broken", broken, dirs_exist_ok=True)
        assert differences(broken, unbroken) == []
        file = max((broken / "checkpoints").glob("update-*")) / name
        if name == "training.pt":
            state = torch.load(file, weights_only=True)
            flip_a_bit(state["optimizer"]["state"][0]["exp_avg"])
            torch.save(state, file)
        else:
            state = load_file(file)
            flip_a_bit(next(iter(state.values())))
            save_file(state, file)
        assert [name in each for each in differences(broken, unbroken)] == [True], name


def flip_a_bit(tensor: torch.Tensor) -> None:
    tensor.flatten().view(torch.uint8)[0] ^= 1


def made_up_run(path: Path, *, updates: tuple[int, ...] = (2, 4), seconds: float = 1.0) -> Path:
    checkpoint = path / "checkpoints" / "update-00000004"
    checkpoint.mkdir(parents=True)
    save_file({"weight": torch.tensor([0.0, float("nan")])}, checkpoint / "model.safetensors")
    torch.save({"optimizer": {"step": torch.tensor(4.0)}, "spent": {"seconds": seconds}}, checkpoint / "training.pt")
    (checkpoint / "manifest.json").write_text("{}")
    records: list[dict[str, Any]] = [{"kind": "train", "update": u, "loss": 0.5, "seconds": seconds} for u in updates]
    (path / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    (path / "summary.json").write_text(json.dumps({"top1": 50.0, "images_per_second": 1 / seconds}))
    return path


def test_clocks_differ_and_nothing_else_may(tmp_path: Path) -> None:
    one = made_up_run(tmp_path / "one")
    assert differences(made_up_run(tmp_path / "slower", seconds=2.0), one) == []
    assert "3 and 2 entries" in differences(made_up_run(tmp_path / "double", updates=(2, 2, 4)), one)[0]
    assert "1 and 2 entries" in differences(made_up_run(tmp_path / "gap", updates=(4,)), one)[0]
    left = made_up_run(tmp_path / "left")
    (left / "checkpoints" / ".writing-00000004").mkdir()
    assert differences(left, one) == ["left over: .writing-00000004"]


def test_minus_zero_is_not_zero_and_a_missing_file_is_told(tmp_path: Path) -> None:
    one, two = made_up_run(tmp_path / "one"), made_up_run(tmp_path / "two")
    ends = [each / "checkpoints" / "update-00000004" for each in (one, two)]
    assert unequal_checkpoint(*ends) is None
    save_file({"weight": torch.tensor([-0.0, float("nan")])}, ends[1] / "model.safetensors")
    assert unequal_checkpoint(*ends) == "model.safetensors/weight: other values"
    (ends[1] / "model.safetensors").unlink()
    assert unequal_checkpoint(*ends) == "model.safetensors is in one of them only"


def test_moments_follow_from_the_seed_and_have_every_kind_in_a_block() -> None:
    moments = [draw(0, number, 60) for number in range(110)]
    assert moments == [draw(0, number, 60) for number in range(110)]
    assert moments != [draw(1, number, 60) for number in range(110)]
    for block in range(10):
        assert sorted(m.kind for m in moments[11 * block : 11 * block + 11]) == sorted(BLOCK)
    killed = [moment for moment in moments if moment.kind != "stop"]
    assert len(killed) == 100 and {moment.signum for moment in killed} == {9}
    assert {moment.group for moment in killed} == {True, False}
    assert all(1 <= moment.updates <= 60 and 0 <= moment.share < 1 for moment in moments)


@pytest.mark.slow
def test_twelve_kills_of_every_kind_and_method(tmp_path: Path) -> None:
    soak = Soak(tmp_path / "soak", seed=1)
    for method in METHODS:
        soak.run(method, 3)
    result = soak.result()
    assert result["kills"] == result["equal_after_kill"] == 12, result
    assert result["stops"] == result["right_after_stop"], result
    assert result["rounds"] == result["equal_at_the_end"] >= 4, result
