"""What the trainer costs beside a bare loop, and checkpoints beside none: ratios within one process.

    python -m benchmarks.trainer --data cifar10 --minutes 8 --json benchmarks/results/trainer.json
    python -m benchmarks.trainer --minutes 2                     # images made up on the spot, of the same size

The CIFAR-10 recipe (cifar10/vit_tiny) with method=plain, for its updates are the shortest and what is added to them
weighs most. All that is compared takes turns in blocks of a few updates, so that what else the machine does falls on
all alike; the order changes from turn to turn.

The bare loop is what a person would write: the same model, optimizer, schedule and batches, forward, loss, backward,
step. It measures nothing and logs nothing. The trainer does what it does in a run: checks each loss, collects them,
writes a line of metrics each 50 updates.

A block with a checkpoint begins with writing one and ends when it is on disk. The time that it takes more than a block
without is what a checkpoint costs; as a share of training it is told for one each 100 updates.
"""

from __future__ import annotations

import argparse
import io
import json
import shutil
import statistics
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from masksub.app.attention import set_attention
from masksub.app.devices import create_accelerator
from masksub.app.environment import environment as surroundings
from masksub.app.interrupt import StopRequest
from masksub.app.models import create_criterion, create_model, create_optimizer, create_schedule
from masksub.app.progress import Reporter
from masksub.app.recipe import load_recipe
from masksub.app.records import Records
from masksub.app.runs import RunFolder
from masksub.app.settings import Recipe
from masksub.app.train import Trainer
from masksub.app.writer import CheckpointWriter
from masksub.core.seeds import mix

EVERY = 100
"""Updates between two checkpoints, for which their cost is told."""
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}


class Training:
    """The trainer as a thing that makes updates and writes checkpoints: the one place that knows its inside."""

    def __init__(self, recipe: Recipe, run: Path) -> None:
        folder, request = RunFolder(run), StopRequest()
        trainer = self._trainer = Trainer(recipe, folder, create_accelerator(recipe), Reporter(quiet=True), request)
        self.setup, self.device, self.checkpoints = trainer.setup, trainer.accelerator.device, folder.checkpoints
        folder.create(trainer.recipe, self.setup.classes, ["benchmark"], 1)
        self._stream = self.setup.stream(0)
        self._records = Records(folder, main=True, tensorboard=False, update=0, warn=print)
        self._writers = {
            background: CheckpointWriter(
                folder.checkpoints, keep=2, background=background, stop=True, warn=print, flush=folder.flush_metrics
            )
            for background in (True, False)
        }

    def update(self) -> None:
        """One turn of the loop, without evaluation and checkpoint."""
        trainer = self._trainer
        asked = trainer.request.signum > 0, trainer.keeper.writer.must_stop
        trainer.asked, trainer.unwritten = trainer.one_update(self._stream, *asked)
        trainer._show()
        trainer._log_where_due(self._records)
        trainer.keeper.writer.poll()
        trainer._stop_if_asked()

    def write(self, background: bool) -> None:
        """Begin a checkpoint; in the foreground it is on disk at the end."""
        self._trainer.keeper.writer = self._writers[background]
        self._trainer.keeper.save()

    def written(self) -> None:
        """Wait until the last checkpoint is on disk."""
        self._trainer.keeper.writer.wait()


class BareLoop:
    """The same training, as one would write it by hand."""

    def __init__(self, training: Training) -> None:
        setup = training.setup
        recipe, self._source = setup.recipe, setup.batches
        torch.manual_seed(mix(recipe.seed, "weights"))
        self.model = create_model(recipe, len(setup.classes)).to(training.device)
        if recipe.model.attention != "auto":
            set_attention(self.model, recipe.model.attention)  # what was chosen for the trainer
        self.criterion = create_criterion(recipe)
        self.optimizer = create_optimizer(recipe, self.model)
        self.schedule = create_schedule(recipe, self.optimizer, setup.updates, setup.updates_per_epoch)
        self._stream, self._done = self._batches(), 0

    def _batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        epoch = 0
        while True:
            yield from self._source.epoch(epoch)
            epoch += 1

    def update(self) -> None:
        """Forward, loss, backward, step."""
        x, y = next(self._stream)
        self.schedule.step_update(self._done)
        self.optimizer.zero_grad()
        self.criterion(self.model(x), y).backward()
        self.optimizer.step()
        self._done += 1


def take_turns(blocks: Sequence[Callable[[], None]], seconds: float, clock: Callable[[], float]) -> list[list[float]]:
    """Seconds of each block in each turn, for so long; the first turn is not kept. At least three turns."""
    turns: list[list[float]] = []
    end = time.perf_counter() + seconds
    for turn in range(-1, 10_000):
        if turn >= 3 and time.perf_counter() > end:
            break
        took = [0.0] * len(blocks)
        for place in range(len(blocks)):
            which = (place + turn) % len(blocks) if turn % 2 else (turn - place) % len(blocks)
            began = clock()
            blocks[which]()
            took[which] = clock() - began
        if turn >= 0:
            turns.append(took)
    return turns


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median and quartiles, and the interval for the median that the ranks give at 95 %."""
    ordered = sorted(values)
    count = len(ordered)
    low, _, high = statistics.quantiles(ordered, n=4)
    reach = round(0.98 * count**0.5)  # the binomial's 1.96 standard deviations around the middle rank
    return {
        "median": statistics.median(ordered), "quartile_low": low, "quartile_high": high,
        "low": ordered[max(0, count // 2 - reach)], "high": ordered[min(count - 1, (count - 1) // 2 + reach)],
    }  # fmt: skip


def against_a_bare_loop(training: Training, seconds: float, block: int, clock: Callable[[], float]) -> dict[str, Any]:
    """Images/s of the trainer over those of a bare loop."""
    bare = BareLoop(training)

    def several(update: Callable[[], None]) -> Callable[[], None]:
        def run() -> None:
            for _ in range(block):
                update()

        return run

    turns = take_turns((several(bare.update), several(training.update)), seconds, clock)
    images = block * training.setup.images_per_update
    return {
        "updates_of_a_block": block,
        "turns": len(turns),
        "bare_images_per_second": images / statistics.median(turn[0] for turn in turns),
        "trainer_images_per_second": images / statistics.median(turn[1] for turn in turns),
        "trainer_over_bare": spread([turn[0] / turn[1] for turn in turns]),
        "blocks_seconds": turns,
    }


def cost_of_checkpoints(training: Training, seconds: float, block: int, clock: Callable[[], float]) -> dict[str, Any]:
    """What checkpoints take, written in the background and in the foreground, of the time of training."""

    def with_checkpoint(background: bool | None) -> Callable[[], None]:
        def run() -> None:
            if background is not None:
                training.write(background)
            for _ in range(block):
                training.update()
            training.written()

        return run

    turns = take_turns([with_checkpoint(how) for how in (None, True, False)], seconds, clock)
    update = statistics.median(turn[0] for turn in turns) / block
    last = max(training.checkpoints.glob("update-*"))
    result: dict[str, Any] = {
        "updates_of_a_block": block,
        "turns": len(turns),
        "update_seconds": update,
        "bytes": sum(path.stat().st_size for path in last.iterdir()),
    }
    for which, name in ((1, "background"), (2, "foreground")):
        more = [turn[which] - turn[0] for turn in turns]
        result[name] = {
            "seconds_more": spread(more),
            f"share_at_one_each_{EVERY}": spread([each / (EVERY * update) for each in more]),
        }
    return {**result, "blocks_seconds": turns}


def make_images(path: Path, count: int, seed: int) -> None:
    """A zip of ten class folders of JPEGs of 32 x 32, made of noise."""
    noise = np.random.default_rng(seed)
    with zipfile.ZipFile(path, "w") as archive:
        for index in range(count):
            content = io.BytesIO()
            Image.fromarray(noise.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(content, "JPEG")
            archive.writestr(f"{index % 10}/{index}.jpg", content.getvalue())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder with CIFAR-10 as train.zip and val.zip; else made up")
    parser.add_argument("--minutes", type=float, default=8.0, help="of measuring, half for each question")
    parser.add_argument("--block", type=int, default=4, help="updates of a block beside the bare loop")
    parser.add_argument("--checkpoint-block", type=int, default=10, help="updates of a block with a checkpoint")
    parser.add_argument("--recipe", default="cifar10/vit_tiny")
    parser.add_argument("--change", action="append", default=[], metavar="KEY=VALUE", help="of the recipe")
    parser.add_argument("--threads", type=int, help="of the CPU; default PyTorch's")
    parser.add_argument(
        "--clock", default="wall", choices=list(CLOCKS),
        help="cpu: time that this process computed, for a CPU that others use too; needs --threads 1 and no workers; "
        "it does not see waiting, so not what a checkpoint in the foreground waits for the disk",
    )  # fmt: skip
    parser.add_argument("--json", type=Path, help="write environment and figures to this file")
    args = parser.parse_args()
    if args.clock == "cpu" and args.threads != 1:
        parser.error("--clock cpu is the time of one thread: it needs --threads 1")
    if args.threads:
        torch.set_num_threads(args.threads)
    clock, folder = CLOCKS[args.clock], Path(tempfile.mkdtemp(prefix="masksub-trainer-"))
    try:
        if args.data is None:
            make_images(folder / "train.zip", 2560, seed=0)
            make_images(folder / "val.zip", 20, seed=1)
        places = [f"data.{which}={(args.data or folder) / f'{which}.zip'}" for which in ("train", "val")]
        fixed = ["method=plain", "train.tensorboard=false", *places]
        training = Training(load_recipe(args.recipe, [*fixed, *args.change]), folder / "run")
        bare = against_a_bare_loop(training, 30 * args.minutes, args.block, clock)
        checkpoints = cost_of_checkpoints(training, 30 * args.minutes, args.checkpoint_block, clock)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    result = {
        "environment": environment(args, training.setup.recipe),
        "against_a_bare_loop": bare,
        "checkpoints": checkpoints,
    }
    print(text(result))
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def environment(args: argparse.Namespace, recipe: Recipe) -> dict[str, Any]:
    """Where the figures come from; folders of this machine are left out."""
    said = [Path(each).name if Path(each).is_absolute() else each for each in sys.argv[1:]]
    found = surroundings(recipe, ["python", "-m", "benchmarks.trainer", *said])
    kept = ("command", "versions", "processor", "cores", "threads", "gpu", "git_commit")
    return {
        **{key: found[key] for key in kept}, "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "clock": args.clock, "data": "CIFAR-10" if args.data else "made up",
    }  # fmt: skip


def text(result: dict[str, Any]) -> str:
    """The figures for the terminal, each beside what is promised."""
    bare, checkpoints = result["against_a_bare_loop"], result["checkpoints"]
    ratio = bare["trainer_over_bare"]
    lines = [
        f"trainer / bare loop, images/s: {ratio['median']:.3f} (95 %: {ratio['low']:.3f} to {ratio['high']:.3f}), "
        f"promised >= 0.97; {bare['trainer_images_per_second']:.0f} and {bare['bare_images_per_second']:.0f} images/s, "
        f"{bare['turns']} turns of {bare['updates_of_a_block']} updates",
    ]
    for name, promise in (("background", ", promised < 2 %"), ("foreground", "")):
        share, more = checkpoints[name][f"share_at_one_each_{EVERY}"], checkpoints[name]["seconds_more"]
        lines.append(
            f"one checkpoint each {EVERY} updates, in the {name}: {share['median']:.2%} of the time (95 %: "
            f"{share['low']:.2%} to {share['high']:.2%}){promise}; {1000 * more['median']:.0f} ms each"
        )
    lines.append(f"{checkpoints['turns']} turns; an update takes {1000 * checkpoints['update_seconds']:.0f} ms")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
