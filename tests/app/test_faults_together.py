"""Several processes whose views differ, and faults on top of faults. If these fail, processes train different weights
side by side, or a fault that comes at a bad time leaves a run that nobody can go on with.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from masksub.app import checkpoint
from masksub.app.runs import RunFolder
from tests.app.faults_made_up import (
    RECIPE,
    SMALL,
    UPDATES,
    AtUpdate,
    Commands,
    Fault,
    Send,
    Started,
    all_end_well,
    assert_same_end,
    environment_of,
    newest,
)

TWO = ("train.batch_size=8", "train.timeout_seconds=60")


def together(commands: Commands, run: str, *overrides: str, **faults: Fault) -> list[Started]:
    return commands.two(run, *TWO, *overrides, **faults)


@dataclass(frozen=True)
class Elsewhere:
    """The process is on a machine that does not have the run folder."""

    folder: Path

    def install(self) -> None:
        os.chdir(self.folder)


def test_a_process_that_does_not_see_the_run_folder_is_noticed(commands: Commands, tmp_path: Path) -> None:
    """It would begin at update 0 while the others go on, and their gradients be averaged."""
    (tmp_path / "other").mkdir()
    for rank in together(commands, "run", rank0=AtUpdate(12, Send()), rank1=AtUpdate(12, Send())):
        rank.wait()
    before = {path.name for path in (tmp_path / "run" / "checkpoints").iterdir()}
    ranks = commands.ranks(
        "train", RECIPE, *SMALL, *TWO, "--out", "run", "--resume", faults={1: Elsewhere(tmp_path / "other")}
    )
    for rank in ranks:
        done = rank.wait()
        assert done.code == 2, done.stderr
        assert "process(es) 0 of 2 find a run to go on with" in done.stderr, done.stderr
    assert {path.name for path in (tmp_path / "run" / "checkpoints").iterdir()} == before
    all_end_well(together(commands, "run"))


def test_an_approximate_continuation_that_is_killed_goes_on_the_same_way(commands: Commands, tmp_path: Path) -> None:
    """Two processes, then one that dies before its first checkpoint, then one again, then two."""
    for rank in together(commands, "run", rank0=AtUpdate(11, Send()), rank1=AtUpdate(11, Send())):
        rank.wait()
    one = ("--approximate",)
    assert commands.resume("run", *one, faults=[AtUpdate(11, Send())]).code < 0
    refused = commands.resume("run")
    assert refused.code == 2 and "--resume --approximate" in refused.stderr, refused.stderr
    assert commands.resume("run", *one, faults=[AtUpdate(18, Send())]).code < 0
    assert newest(tmp_path / "run").update == 16
    all_end_well(commands.ranks("train", "run", "--resume", "--approximate"))
    entries = environment_of(tmp_path / "run")["resumed"]
    assert [(each["update"], each["processes"], each["exact"]) for each in entries] == [
        (8, 1, False), (8, 1, False), (16, 2, False)
    ]  # fmt: skip
    summary = RunFolder(tmp_path / "run").summary()
    assert summary is not None and summary["images"] == UPDATES * 16


def test_refused_checkpoints_do_not_push_out_whole_ones(commands: Commands, tmp_path: Path) -> None:
    """Of 8, 16 and 24 the newest two are damaged; what is written again must count as the newest, not they."""
    whole = commands.train("whole", "train.keep_checkpoints=3")
    assert whole.code == 0, whole.stderr
    done = commands.train("run", "train.keep_checkpoints=3", faults=[AtUpdate(24, Send(), task="")])
    assert done.code < 0
    folder = tmp_path / "run" / "checkpoints"
    checkpoint.save(folder, 24, {"model": {}}, {}, keep=3)
    for name in ("update-00000016", "update-00000024"):
        (folder / name / "model.safetensors").write_bytes(b"cut")
    done = commands.resume("run", "train.keep_checkpoints=2")
    assert done.code == 0, done.stderr
    assert "going on from update 8" in done.stderr
    assert sorted(path.name for path in folder.iterdir()) == [
        "refused-00000016", "refused-00000024", "update-00000016", "update-00000024"
    ]  # fmt: skip
    (tmp_path / "whole" / "checkpoints" / "update-00000008").rename(tmp_path / "old")  # three were kept there
    assert_same_end(tmp_path / "run", tmp_path / "whole")


SHARDED = ("train.shard=full", "train.ema_decay=0.9", "optim.clip_norm=1.0", "train.accumulate=2", "augment.mixup=0.8")
RESNET = (
    "model.name=resnet10t", "model.kwargs={stem_width: 8, channels: [8, 16, 16, 16]}", "data.image_size=32",
    "sub.unit=8",
)  # fmt: skip


@pytest.mark.parametrize(
    "model",
    [
        pytest.param(("method=pathsub", "model.kwargs.drop_path_rate=0.1"), id="pathsub", marks=pytest.mark.slow),
        pytest.param(("method=masksub",), id="masksub"),
    ],
)
def test_a_sharded_training_that_is_killed_ends_bit_equal(
    model: tuple[str, ...], commands: Commands, tmp_path: Path
) -> None:
    """FSDP2 with moving average, clipping and accumulation, on two processes."""
    settings = ("train.batch_size=4", *SHARDED, *model)
    all_end_well(together(commands, "whole", *settings))
    ranks = together(commands, "run", *settings, rank0=AtUpdate(13, Send()), rank1=AtUpdate(13, Send()))
    for rank in ranks:
        assert rank.wait().code < 0
    all_end_well(together(commands, "run", *settings))
    assert_same_end(tmp_path / "run", tmp_path / "whole")


def test_a_sharded_model_with_batch_norm_has_a_moving_average(commands: Commands, tmp_path: Path) -> None:
    """Its statistics are whole where its weights are shards."""
    plain = [each for each in SMALL if "model.kwargs" not in each]
    ranks = commands.ranks(
        "train",
        RECIPE,
        *plain,
        *TWO,
        *RESNET,
        "train.shard=full",
        "train.ema_decay=0.9",
        "train.epochs=1",
        "--out",
        "run",
    )
    all_end_well(ranks)
    assert newest(tmp_path / "run").weights.name == "ema.safetensors"


def bad_images(folder: Path, bad: int) -> None:
    """Two classes of 24 images, so many of which are no images."""
    random = np.random.RandomState(0)
    for number in range(48):
        path = folder / "ab"[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        if number < bad:
            path.write_bytes(b"no image")
        else:
            Image.fromarray(random.randint(0, 256, (8, 8), dtype=np.uint8)).save(path)


SKIPPING = (
    "data.name=folder", "data.train=images", "data.val=images", "data.cache=none", "data.workers=1",
    "data.on_error=skip", "data.train_images=null", "data.val_images=null", "train.log_every=1", "train.epochs=2",
    "train.eval_every=2", "train.checkpoint_every=1",
)  # fmt: skip


def test_what_each_process_skips_counts_once_for_all(commands: Commands, tmp_path: Path) -> None:
    """Also after a resumption; and the limit is one for all of them."""
    bad_images(tmp_path / "images", 5)
    all_end_well(together(commands, "whole", *SKIPPING))
    ranks = together(commands, "run", *SKIPPING, rank0=AtUpdate(3, Send()), rank1=AtUpdate(3, Send()))
    for rank in ranks:
        assert rank.wait().code < 0
    all_end_well(together(commands, "run", *SKIPPING))
    for run in ("whole", "run"):
        summary = RunFolder(tmp_path / run).summary()
        assert summary is not None
        assert (summary["skipped_images"], summary["skipped_validation_images"]) == (5, 5), run
    assert_same_end(tmp_path / "run", tmp_path / "whole")
    ends = [rank.wait() for rank in together(commands, "few", *SKIPPING, "data.max_skipped=4")]
    # One may come to the limit alone, between two lines of metrics; the other one then misses it.
    assert {end.code for end in ends} <= {1, 2}, ends
    assert any(re.search(r"5 images can't be decoded, more than data.max_skipped = 4", end.stderr) for end in ends), (
        ends
    )


def test_a_process_with_decoding_workers_ends_when_the_other_dies(commands: Commands, tmp_path: Path) -> None:
    """Workers ignore SIGTERM; a process that waits for them at its end would never end."""
    bad_images(tmp_path / "images", 0)
    ranks = together(commands, "run", *SKIPPING, rank1=AtUpdate(3, Send()))
    assert ranks[1].wait().code < 0
    done = ranks[0].wait(60)
    assert done.code == 1 and "another process of this training is gone" in done.stderr, done.stderr
    assert "GLHF" not in done.stderr and ".cc:" not in done.stderr


def test_data_that_have_changed_are_noticed(commands: Commands, tmp_path: Path) -> None:
    """An image more or less moves all others: the order is one of numbers."""
    bad_images(tmp_path / "images", 0)
    folder = (
        "data.name=folder",
        "data.train=images",
        "data.val=images",
        "data.train_images=null",
        "data.val_images=null",
    )
    assert commands.train("run", *folder, faults=[AtUpdate(5, Send())]).code < 0
    (tmp_path / "images" / "a" / "0.png").unlink()
    done = commands.resume("run")
    assert done.code == 2 and "48 images to train on and 48 to validate on have become 47 and 47" in done.stderr, (
        done.stderr
    )
    done = commands.resume("run", "--approximate")
    assert done.code == 0, done.stderr
    assert environment_of(tmp_path / "run")["resumed"][-1]["exact"] is False
    for number in range(1, 28):
        for label in "ab":
            (tmp_path / "images" / label / f"{number}.png").unlink(missing_ok=True)
    (tmp_path / "run" / "summary.json").unlink()
    done = commands.resume("run", "--approximate")
    assert done.code == 2 and "fewer than are done" in done.stderr, done.stderr
