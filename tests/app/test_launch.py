"""How a person starts a large training. If these fail, the lines of the README and of docs/many-gpus.md do not work."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from masksub.app.progress import Reporter
from masksub.app.recipe import load_recipe
from masksub.app.runs import RunFolder
from masksub.app.train import train

SMALL = (
    "model.kwargs.depth=2", "model.kwargs.embed_dim=24", "model.kwargs.num_heads=2", "train.batch_size=4",
    "train.global_batch_size=8", "train.precision=fp32", "train.device=cpu", "train.tensorboard=false",
    "data.workers=0", "data.train=images", "data.val=images",
)  # fmt: skip


@pytest.fixture
def images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two classes of eight images in images/, below the working directory."""
    random = np.random.RandomState(0)
    for label in "ab":
        (tmp_path / "images" / label).mkdir(parents=True)
        for number in range(8):
            pixels = random.randint(0, 256, (40, 40, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "images" / label / f"{number}.png")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_from_pretraining_to_finetuning_at_a_higher_resolution(images: Path) -> None:
    """The README's way: deit3/vit_base_400, then deit3/vit_base_finetune from its run folder; shrunken."""
    first = ("train.epochs=3", "optim.warmup_epochs=1", "data.image_size=32")
    train(load_recipe("deit3/vit_base_400", (*SMALL, *first)), "runs/pretrained", reporter=Reporter(quiet=True))

    class Heard(Reporter):
        lines: list[str] = []  # noqa: RUF012

        def line(self, text: str) -> None:
            self.lines.append(text)

    second = ("train.epochs=2", "optim.warmup_epochs=1", "data.image_size=48", "model.weights=runs/pretrained")
    recipe = load_recipe("deit3/vit_base_finetune", (*SMALL, *second))
    summary = train(recipe, "runs/finetuned", reporter=Heard(quiet=True))
    assert summary["updates"] == 4 and summary["final"]["images"] == 16
    told = " ".join(Heard.lines)
    assert "runs/pretrained" in told, "nothing says where the weights came from"


@pytest.mark.parametrize("launcher", ["accelerate", "torchrun"])
def test_started_by_a_launcher_with_one_process(launcher: str, images: Path) -> None:
    commands = {
        "accelerate": ["accelerate.commands.launch", "--cpu", "--num_processes", "1", "--mixed_precision", "no"],
        "torchrun": ["torch.distributed.run", "--standalone", "--nproc-per-node", "1"],
    }
    recipe = ["digits/vit_micro", "train.epochs=1", "data.train_images=64", "data.val_images=20", "train.device=cpu"]
    more = ["optim.warmup_epochs=0", "model.kwargs.embed_dim=24", "model.kwargs.depth=1", "model.kwargs.num_heads=2"]
    command = [
        sys.executable,
        "-m",
        *commands[launcher],
        "--module",
        "masksub",
        "train",
        *recipe,
        *more,
        "--out",
        "run",
    ]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=300, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "1 process(es) on cpu, 64 images an update" in done.stderr, "a launcher that starts fewer goes unnoticed"
    summary = RunFolder("run").summary()
    assert summary is not None and summary["updates"] > 0
    assert RunFolder("run").environment()["processes"] == 1
