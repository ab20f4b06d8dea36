"""Kill and resume one training on a CPU many times at random moments; at the end it must equal an unbroken one.

    python -m benchmarks.soak --kills 50 --seed 0 --out benchmarks/results/soak.json
    python -m benchmarks.soak --kills 3 --others 0 --seed 1          # a first look, a minute

A small ViT on images that worker processes decode and augment, with dropout, drop path, mixup, cutmix, a moving average
and checkpoints written in the background. Each round trains one recipe twice, in processes of their own: unbroken, with
all checkpoints kept, and broken, with SIGKILL at a random moment: while it trains, writes a checkpoint, evaluates, or
starts; also with SIGTERM or SIGINT, which don't count as kills. After each of them the newest checkpoint and the
metrics up to it must equal the unbroken run's, bit for bit, at the end the weights, the moving average, the optimizer,
all metrics and the summary, but for what a clock says. The first round is masksub; then come shorter ones of dropsub,
pathsub and plain.

``--folder`` keeps all state: a soak that is interrupted goes on with the same command.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import psutil
from PIL import Image
from sklearn.datasets import load_digits

from benchmarks.soak_attempts import BLOCK, Pace, attempt, draw, end_group, wait_for_group
from benchmarks.soak_compare import checkpoints_of, differences, metrics_before, of_metrics, unequal_checkpoint
from masksub.app.environment import environment
from masksub.app.recipe import load_recipe
from masksub.app.runs import write_text_atomically

METHODS = ("masksub", "dropsub", "pathsub", "plain")
UPDATES_PER_EPOCH = 40
CHECKPOINT_EVERY = 10
RECIPE = """\
data: {{name: folder, train: {train}, val: {val}, image_size: 32, channels: 1, cache: none, workers: 2}}
augment: {{crop: resized, crop_scale: [0.5, 1.0], color_jitter: 0.2, mixup: 0.2, cutmix: 0.5}}
model:
  name: vit_tiny_patch16_224
  kwargs: {{patch_size: 8, embed_dim: 64, depth: 3, num_heads: 2, drop_path_rate: 0.1, proj_drop_rate: 0.1}}
sub: {{p: 0.2}}
loss: {{smoothing: 0.1}}
optim: {{lr: 1e-3, clip_norm: 1.0, warmup_epochs: 0.5}}
train:
  {{epochs: 1, batch_size: 16, ema_decay: 0.99, device: cpu, log_every: 2, eval_every: 1, eval_batch_size: 20,
  checkpoint_every: {checkpoint_every}, checkpoint_in_background: true, tensorboard: false}}
"""


class Soak:
    """The state of a soak and what is done with it.

    Args:
        folder: data, runs, logs and state.json.
        seed: of the moments.
        most_updates: a process that is killed while training is so at most this many updates after its checkpoint.
        allowance: updates of a round for each of its interruptions; more than one gets done on the average.
        kinds: a block of kinds of interruptions.
        tell: gets each line of news.
    """

    def __init__(
        self,
        folder: Path,
        seed: int,
        *,
        most_updates: int = 60,
        allowance: int = 30,
        kinds: Sequence[str] = BLOCK,
        tell: Callable[[str], None] = print,
    ) -> None:
        self.folder, self.seed, self.kinds, self.tell = folder.resolve(), seed, tuple(kinds), tell
        self.most_updates, self.allowance = most_updates, allowance
        self._file, self._kept = self.folder / "state.json", time.monotonic()
        asked = {"seed": seed, "most_updates": most_updates, "allowance": allowance, "kinds": list(kinds)}
        self.state: dict[str, Any] = {
            "asked": asked,
            "interruptions": [],
            "rounds": {},
            "process": None,
            "seconds": 0.0,
        }
        if self._file.exists():
            self.state = json.loads(self._file.read_text(encoding="utf-8"))
            if self.state["asked"] != asked:
                raise SystemExit(f"{folder} holds another soak: {self.state['asked']}; this one is {asked}")
        self.folder.mkdir(parents=True, exist_ok=True)
        self._end_process()
        self.recipe = self.folder / "recipe.yaml"
        if not self.recipe.exists():
            make_images(self.folder / "images")
            places = {which: json.dumps(str(self.folder / "images" / which)) for which in ("train", "val")}
            write_text_atomically(self.recipe, RECIPE.format(**places, checkpoint_every=CHECKPOINT_EVERY))

    def run(self, method: str, kills: int) -> None:
        """Rounds of one method, one for each seed of the training, until so many processes were killed."""
        training_seed = 0
        while (left := kills - self.kills(method)) > 0 or f"{method}-{training_seed}" in self.state["rounds"]:
            self._round(method, training_seed, max(left, 1), kills)
            training_seed += 1

    def kills(self, method: str | None = None) -> int:
        """How many processes were killed by SIGKILL so far."""
        return sum(each["signal"] == "SIGKILL" for each in self.state["interruptions"]
                   if method in (None, each["method"]))  # fmt: skip

    def _round(self, method: str, training_seed: int, wanted: int, kills: int) -> None:
        name = f"{method}-{training_seed}"
        entry = self.state["rounds"].setdefault(name, {"method": method, "seed": training_seed, "updates": 0})
        if "differences" in entry:
            return
        if not entry["updates"]:
            epochs = max(2, -(-wanted * self.allowance // UPDATES_PER_EPOCH))
            entry["updates"] = epochs * UPDATES_PER_EPOCH
            self._keep()
        epochs = entry["updates"] // UPDATES_PER_EPOCH
        changes = [f"method={method}", f"seed={training_seed}", f"train.epochs={epochs}"]
        unbroken, broken = self.folder / f"{name}-unbroken", self.folder / f"{name}-broken"
        first = ["train", str(self.recipe), *changes, "--out"]
        if "pace" not in entry:
            self._unbroken(entry, [*first, str(unbroken), "train.keep_checkpoints=1000000", "--overwrite"], unbroken)
        pace = Pace(**entry["pace"])

        while not (broken / "summary.json").exists():
            begun = (broken / "recipe.yaml").exists()
            command = ["train", str(broken), "--resume"] if begun else [*first, str(broken), "--resume"]
            number = len(self.state["interruptions"])
            done = self.kills(method) >= kills
            moment = None if done else draw(self.seed, number, self.most_updates, self.kinds)
            found = attempt(command, broken, moment, pace, self.folder / f"{name}.log", self._started)
            if moment is None or found["hit"] is None:
                if found["code"]:
                    raise SystemExit(f"{name} ended by itself with exit code {found['code']}; see {name}.log")
                continue
            wrong = self._wrong_after(broken, unbroken, found, moment.signum)
            self.state["interruptions"].append({
                "number": number, "method": method, "seed": training_seed, "drawn": moment.kind, "signal":
                moment.signum.name, "to": "group" if moment.group else "main process", **found, "wrong": wrong,
            })  # fmt: skip
            self._keep()
            self.tell(
                f"{number + 1:3}  {name:10} {moment.signum.name:7} during {found['hit']:10} at update "
                f"{found['update']:5} of {entry['updates']}, checkpoint {found['checkpoint']:5}: {wrong or 'equal'}"
            )
        entry["differences"] = differences(broken, unbroken)
        self._keep()
        self.tell(f"{name}: {entry['updates']} updates, {'; '.join(entry['differences']) or 'equal at the end'}")

    def _unbroken(self, entry: dict[str, Any], command: list[str], run: Path) -> None:
        self.tell(f"{run.name}: {entry['updates']} updates")
        found = attempt(command, run, None, None, self.folder / f"{run.name}.log", self._started)
        if found["code"]:
            raise SystemExit(f"{run.name} ended with exit code {found['code']}; see {run.name}.log")
        records = of_metrics(run)
        evaluations = [b["seconds"] - a["seconds"] for a, b in itertools.pairwise(records) if b["kind"] == "eval"]
        trained = json.loads((run / "summary.json").read_text(encoding="utf-8"))["train_seconds"]
        entry["pace"] = {
            "start": found["first"], "update": trained / entry["updates"],
            "evaluation": statistics.median(evaluations), "evaluate_every": UPDATES_PER_EPOCH,
        }  # fmt: skip
        self._keep()

    def _wrong_after(self, broken: Path, unbroken: Path, found: dict[str, Any], signum: int) -> str | None:
        """What is not as it should be after an interruption."""
        if found["code"] == -signum and found["hit"] == "start":
            pass  # asked before it listened: there was nothing to save
        elif found["code"] != (expected := -9 if signum == 9 else 128 + signum):
            return f"exit code {found['code']} instead of {expected}"
        elif signum != 9 and found["checkpoint"] < found["update"]:
            return f"stopped at update {found['update']} with the checkpoint of update {found['checkpoint']}"
        twins = checkpoints_of(unbroken)
        # One written on request lies between those of the unbroken run; the next one shows whether it was right.
        both = [update for update in checkpoints_of(broken) if update in twins]
        if both and (why := unequal_checkpoint(checkpoints_of(broken)[both[-1]], twins[both[-1]])):
            return f"checkpoint {both[-1]}: {why}"
        if metrics_before(broken, found["checkpoint"]) != metrics_before(unbroken, found["checkpoint"]):
            return f"metrics before update {found['checkpoint']} differ"
        return None

    def _keep(self) -> None:
        now = time.monotonic()
        self.state["seconds"] += now - self._kept
        self._kept = now
        write_text_atomically(self._file, json.dumps(self.state, indent=1) + "\n")

    def _started(self, pid: int, created: float) -> None:
        self.state["process"] = [pid, created]
        self._keep()

    def _end_process(self) -> None:
        """End what a killed soak left running: the same process by its time of creation, not one of its number."""
        if self.state["process"] is not None:
            pid, created = self.state["process"]
            with contextlib.suppress(psutil.NoSuchProcess):
                if psutil.Process(pid).create_time() == created:
                    end_group(pid)
                    wait_for_group(pid, 30.0)

    def result(self) -> dict[str, Any]:
        """All that happened, without names of the machine's folders."""
        interruptions, rounds = self.state["interruptions"], list(self.state["rounds"].values())
        killed = [each for each in interruptions if each["signal"] == "SIGKILL"]
        return {
            "seconds": round(self.state["seconds"]),
            "kills": len(killed),
            "equal_after_kill": sum(each["wrong"] is None for each in killed),
            "stops": len(interruptions) - len(killed),
            "right_after_stop": sum(each["wrong"] is None for each in interruptions if each not in killed),
            "rounds": len(rounds),
            "equal_at_the_end": sum(each.get("differences") == [] for each in rounds),
            "kills_during": dict(sorted(Counter(each["hit"] for each in killed).items())),
            "kills_by_method": dict(Counter(each["method"] for each in killed)),
            "kills_of_the_main_process_alone": sum(each["to"] != "group" for each in killed),
            "each_round": rounds,
            "each_interruption": interruptions,
        }


def make_images(folder: Path) -> None:
    """Class folders of PNGs from the embedded digits: 640 to train on, 300 to evaluate."""
    digits = load_digits()
    for index, (pixels, label) in enumerate(zip(digits.images[:940], digits.target)):
        place = folder / ("train" if index < 640 else "val") / str(label)
        place.mkdir(parents=True, exist_ok=True)
        image = Image.fromarray((pixels * 255 / 16).astype("uint8")).resize((40, 40), Image.Resampling.BICUBIC)
        image.save(place / f"{index:04}.png")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50, help="of the training with masksub")
    parser.add_argument("--others", type=int, default=4, help="kills of each of dropsub, pathsub and plain")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--folder", type=Path, default=Path("runs/soak"), help="keeps all state")
    parser.add_argument("--out", type=Path, help="write the result to this file")
    args = parser.parse_args()
    soak = Soak(args.folder, args.seed, tell=lambda line: print(line, flush=True))
    for method in METHODS:
        soak.run(method, args.kills if method == "masksub" else args.others)
    found = environment(load_recipe(soak.recipe), [])
    said = [Path(each).name if Path(each).is_absolute() else each for each in sys.argv[1:]]  # no folders of a machine
    result = {
        "command": " ".join(["python -m benchmarks.soak", *said]),
        "environment": {key: found[key] for key in ("versions", "processor", "cores", "git_commit")},
        "seed": args.seed,
        **soak.result(),
    }  # fmt: skip
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(
        f"{result['equal_after_kill']} of {result['kills']} equal after a kill ({result['kills_during']}), "
        f"{result['right_after_stop']} of {result['stops']} stops right, {result['equal_at_the_end']} of "
        f"{result['rounds']} trainings equal at the end"
    )
    parts = (("equal_after_kill", "kills"), ("right_after_stop", "stops"), ("equal_at_the_end", "rounds"))
    sys.exit(0 if all(result[good] == result[all_of] for good, all_of in parts) else 1)


if __name__ == "__main__":
    main()
