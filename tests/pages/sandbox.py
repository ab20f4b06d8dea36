"""The scratch folder in which a page's blocks are run: it has what pages speak of, all of it small."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import yaml
from PIL import Image

from tests.pages.blocks import ROOT
from tests.pages.warm import LAUNCHERS, STAND_INS, client_script

SHADOWED = ("digits/vit_micro", "own/vit_tiny_64px", "own/vit_small_finetune")
"""Packaged recipes that pages train: a file of the same name, found first, has them smaller."""

SMALL_MODEL = {"patch_size": 4, "embed_dim": 8, "depth": 1, "num_heads": 1}

REPOSITORY = ("examples", "benchmarks", "tests", "src", "docs", "pyproject.toml", "Makefile", "CITATION.cff")
"""What commands that are given in a clone find there; copied where a page names it."""


def small(text: str, images: int = 32) -> str:
    """A recipe with the same keys that trains in a moment: one epoch, few images, a tiny model, on the CPU."""
    recipe: dict[str, Any] = yaml.safe_load(text)
    data, model, train = (recipe.setdefault(key, {}) for key in ("data", "model", "train"))
    if data.get("name") == "digits":
        data |= {"train_images": images, "val_images": 20}
    else:
        data |= {"image_size": 16}
        recipe["augment"] = {"crop": "resized", "flip": 0.5}
    if str(model.get("name", "")).startswith(("vit_", "deit")):
        model |= {"name": "vit_tiny_patch16_224", "kwargs": SMALL_MODEL}
    for pretrained in ("weights", "pretrained"):
        model.pop(pretrained, None)
    batch = 4 if data.get("name") == "digits" else 16  # 32 images make an update of eight processes, too
    train |= {"epochs": 1, "batch_size": batch, "precision": "fp32", "device": "cpu", "compile": False}
    train.pop("global_batch_size", None)
    optim = recipe.setdefault("optim", {})
    optim["warmup_epochs"] = 0
    optim.pop("layer_decay", None)
    return yaml.safe_dump(recipe, sort_keys=False)


RECIPE = """\
method: masksub
data: {name: digits, image_size: 8, channels: 1, mean: [0.5], std: [0.5]}
augment: {crop: none, flip: 0.0}
model: {name: vit_tiny_patch16_224}
optim: {lr: 1.0e-3}
"""


class Sandbox:
    """A folder ``work`` with recipes and images, and the environment in which commands find the stand-ins.

    Args:
        folder: an empty folder.
        warm: the socket of ``tests.pages.warm``.
        whole: carry out what takes minutes, too.
    """

    def __init__(self, folder: Path, warm: Path | None = None, *, whole: bool = False) -> None:
        self.work, self.commands = folder / "work", folder / "bin"
        self.work.mkdir()
        self.commands.mkdir()
        for name in STAND_INS:
            if not (whole and name in LAUNCHERS):
                script = self.commands / name
                script.write_text(client_script())
                script.chmod(0o755)
        binaries = Path(sys.executable).parent
        self.environment = {
            **{key: value for key, value in os.environ.items() if not key.startswith(("PYTEST", "COV", "MAKE"))},
            "PATH": f"{self.commands}:{binaries}:{os.environ['PATH']}",
            "MASKSUB_WARM": str(warm),
            "MASKSUB_SCRATCH": str(folder),
            "MASKSUB_PAGES": "whole" if whole else "",
            "OMP_NUM_THREADS": "1",
            "CUDA_VISIBLE_DEVICES": "",
            "COLUMNS": "120",
            **NO_NETWORK,
        }
        self._fill()

    def write(self, name: str, text: str) -> Path:
        """Write a file of the page; the folders above it are made."""
        path = self.work / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        return path

    def copy_repository(self, text: str) -> None:
        """Copy what a page's commands name of a clone."""
        leave = shutil.ignore_patterns("__pycache__", "results", "*.png", "*.svg")
        for name in REPOSITORY:
            source = ROOT / name
            named = rf"(?<![\w/.]){re.escape(name)}{'[/.]' if source.is_dir() else ''}"
            if re.search(named, text) and not (self.work / name).exists():
                if source.is_dir():
                    shutil.copytree(source, self.work / name, ignore=leave)
                elif source.exists():
                    shutil.copy(source, self.work / name)

    def make_runs(self, text: str) -> None:
        """Train the runs that a page speaks of without having made them: ``runs/NAME`` and ``RUN``."""
        for name in ("runs/NAME", "RUN"):
            if re.search(rf"(?<![\w/]){name}(?![\w/])", text) and not (self.work / name).exists():
                command = [str(self.commands / "masksub"), "train", "recipe.yaml", "--out", name, "--quiet"]
                subprocess.run(command, cwd=self.work, env=self.environment, check=True, stdout=subprocess.DEVNULL)

    def _fill(self) -> None:
        from masksub.app.recipe import packaged_recipes

        self.write("recipe.yaml", small(RECIPE))
        self.write("RECIPE", small(RECIPE, images=256))  # an update of 64 GPUs
        for name in SHADOWED:
            if name in packaged_recipes():
                self.write(name, small(packaged_recipes()[name].read_text(encoding="utf-8")))
        train, val = self.work / "images" / "train", self.work / "images" / "val"
        for folder, count in ((train, 10), (val, 4)):
            for label, level in (("cats", 60), ("dogs", 190)):
                (folder / label).mkdir(parents=True)
                for number in range(count):
                    Image.new("RGB", (20, 20), (level + number, level, 120)).save(folder / label / f"{number}.png")
        shutil.copytree(train, self.work / "FOLDER")
        for name in ("image.png", "cat.png"):
            shutil.copy(train / "cats" / "0.png", self.work / name)
        shutil.make_archive(str(val), "zip", val)


NO_NETWORK = {
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    **{f"{scheme}_proxy": "http://127.0.0.1:9" for scheme in ("http", "https")},
    **{f"{scheme}_PROXY": "http://127.0.0.1:9" for scheme in ("HTTP", "HTTPS")},
}
"""Nothing listens there: what would download fails at once."""


@contextmanager
def warm_process(folder: Path) -> Iterator[Path]:
    """A running ``tests.pages.warm``; gives its socket, which is there once the process answers."""
    path = folder / "warm"
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", **NO_NETWORK}
    command = [sys.executable, "-m", "tests.pages.warm", str(path)]
    with subprocess.Popen(command, cwd=ROOT, env=environment, start_new_session=True) as process:
        try:
            while not path.exists():
                if process.poll() is not None:
                    raise RuntimeError(f"{' '.join(command)} ended with {process.returncode}")
                time.sleep(0.05)
            yield path
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
