"""The command as a person or a scheduler meets it: real processes, exit codes, messages."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from masksub.app.runs import RunFolder
from tests.app.faults_made_up import Commands, ForkedWorkers

SMALL = (
    "data.train_images=128", "data.val_images=60", "train.batch_size=16", "model.kwargs.embed_dim=24",
    "model.kwargs.depth=2", "model.kwargs.num_heads=2", "optim.warmup_epochs=0", "train.tensorboard=false",
    "train.device=cpu",
)  # fmt: skip


def environment(**more: str) -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "default", **more}


def masksub(*arguments: str, cwd: Path, **more: str) -> subprocess.CompletedProcess[str]:
    """The command in a process of its own, which is forked."""
    with tempfile.TemporaryDirectory() as said, Commands(cwd, Path(said)) as commands:
        done = commands.start(*arguments, faults=[ForkedWorkers()], **more).wait()
    return subprocess.CompletedProcess(arguments, done.code, done.stdout, done.written)


def fresh(*arguments: str, cwd: Path, **more: str) -> subprocess.CompletedProcess[str]:
    """The command as from a shell: all is imported anew, which takes seconds."""
    command = [sys.executable, "-m", "masksub", *arguments]
    return subprocess.run(
        command, cwd=cwd, env=environment(**more), capture_output=True, text=True, timeout=300, check=False
    )


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(sorted((run / "checkpoints").glob("update-*"))[-1] / "model.safetensors")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of five epochs, made by the command."""
    folder = tmp_path_factory.mktemp("finished")
    done = fresh("train", "digits/vit_micro", *SMALL, "train.epochs=5", "--out", "r", "--json", cwd=folder)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["images"] == 640
    return folder / "r"


def test_help_version_and_lists(tmp_path: Path) -> None:
    helped = fresh("--help", cwd=tmp_path)
    assert helped.returncode == 0
    for command in ("demo", "train", "eval", "predict", "schema", "recipes"):
        assert command in helped.stdout
    assert fresh("--version", cwd=tmp_path).stdout.strip()
    assert "digits/vit_micro" in fresh("recipes", cwd=tmp_path).stdout
    assert json.loads(fresh("schema", cwd=tmp_path).stdout)["properties"]["method"]["enum"]


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_writes_a_checkpoint_and_the_run_goes_on(
    signum: signal.Signals, code: int, tmp_path: Path, commands: Commands, finished: Path
) -> None:
    arguments = ("train", "digits/vit_micro", *SMALL, "train.epochs=5", "--out", "r")
    process = commands.start(*arguments)
    process.wait_for(tmp_path / "r" / "checkpoints" / "update-*")
    process.send(signum)
    done = process.wait()
    assert done.code == code, done.stderr
    assert "checkpoint written, go on with: masksub train r --resume" in done.written
    assert "Traceback" not in done.stderr
    resumed = masksub("train", "r", "--resume", cwd=tmp_path)
    assert resumed.returncode == 0, resumed.stderr
    for key, value in weights(finished).items():
        assert torch.equal(weights(tmp_path / "r")[key], value), key


def test_kill_9_and_resume_is_bit_equal(tmp_path: Path, commands: Commands, finished: Path) -> None:
    arguments = ("train", "digits/vit_micro", *SMALL, "train.epochs=5", "--out", "r")
    for _ in range(2):
        process = commands.start(*arguments, *(("--resume",) if (tmp_path / "r").exists() else ()))
        process.wait_for(tmp_path / "r" / "checkpoints" / "update-*")
        time.sleep(0.1)
        process.send(signal.SIGKILL)
        process.wait()
    assert masksub(*arguments, "--resume", cwd=tmp_path).returncode == 0
    for key, value in weights(finished).items():
        assert torch.equal(weights(tmp_path / "r")[key], value), key
    records = [r["update"] for r in RunFolder(tmp_path / "r").metrics() if r["kind"] == "eval"]
    assert records == [8, 16, 24, 32, 40]


def test_quiet_when_not_a_terminal(tmp_path: Path) -> None:
    done = masksub("train", "digits/vit_micro", *SMALL, "train.epochs=1", "--out", "r", cwd=tmp_path)
    assert "\r" not in done.stderr and "\x1b" not in done.stderr
    assert done.stderr.count("\n") < 6
    silent = masksub("train", "digits/vit_micro", *SMALL, "train.epochs=1", "--out", "q", "--quiet", cwd=tmp_path)
    assert silent.stderr == ""


def test_two_processes_by_torchrun(tmp_path: Path) -> None:
    """Half the batch on each of two: the same images an update, nearly the same weights, one run folder."""
    common = [*SMALL, "train.epochs=2", "method=plain", "augment.crop=none", "model.attention=fused"]
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "masksub"]
    command = [*launch, "train", "digits/vit_micro", *common, "train.batch_size=8", "--out", "two"]
    done = subprocess.run(
        command, cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    alone = masksub("train", "digits/vit_micro", *common, "--out", "one", cwd=tmp_path)
    assert alone.returncode == 0, alone.stderr
    one, two = RunFolder(tmp_path / "one").summary(), RunFolder(tmp_path / "two").summary()
    assert one is not None and two is not None
    assert two["images"] == one["images"] == 256 and two["final"]["images"] == 60
    for key, value in weights(tmp_path / "one").items():
        torch.testing.assert_close(weights(tmp_path / "two")[key], value, atol=1e-4, rtol=1e-3)
    assert len(list(RunFolder(tmp_path / "two").metrics())) == len(list(RunFolder(tmp_path / "one").metrics()))


def digit_folder(path: Path, names: tuple[str, ...] = ("3", "7")) -> Path:
    generator = np.random.default_rng(0)
    for name in names:
        (path / name).mkdir(parents=True)
        for number in range(3):
            pixels = generator.integers(0, 255, (8, 8), dtype=np.uint8)
            Image.fromarray(pixels).save(path / name / f"{number}.png")
    return path


def test_eval_of_the_run_s_data_and_of_other_data(finished: Path, tmp_path: Path) -> None:
    own = masksub("eval", str(finished), "--json", cwd=tmp_path)
    final = RunFolder(finished).summary()
    assert own.returncode == 0 and final is not None
    assert json.loads(own.stdout) == pytest.approx(final["final"], rel=1e-4)
    other = masksub("eval", str(finished), "--data", str(digit_folder(tmp_path / "d")), cwd=tmp_path)
    assert other.returncode == 0 and "on 6 images" in other.stdout and "calibration error" in other.stdout
    unknown = masksub("eval", str(finished), "--data", str(digit_folder(tmp_path / "e", ("3", "cat"))), cwd=tmp_path)
    assert unknown.returncode == 2 and "cat" in unknown.stderr


def test_predict(finished: Path, tmp_path: Path) -> None:
    folder = digit_folder(tmp_path / "d")
    done = masksub("predict", str(finished), str(folder / "3" / "0.png"), "--json", "--top", "10", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    [answer] = json.loads(done.stdout)
    assert sum(label["probability"] for label in answer["labels"]) == pytest.approx(1, abs=1e-4)
    assert {label["label"] for label in answer["labels"]} == set("0123456789")
    (tmp_path / "bad.png").write_bytes(b"no image")
    broken = masksub("predict", str(finished), str(tmp_path / "bad.png"), cwd=tmp_path)
    assert broken.returncode == 2 and "bad.png" in broken.stderr and "Traceback" not in broken.stderr
    missing = masksub("predict", str(finished), "absent.png", cwd=tmp_path)
    assert missing.returncode == 2 and "absent.png" in missing.stderr


WRONG = {
    "misspelt key": (("train", "digits/vit_micro", "optim.lrr=1"), 2, "did you mean optim.lr"),
    "ratio of 1": (("train", "digits/vit_micro", "sub.ratio=1.0"), 2, "sub.ratio"),
    "negative ratio": (("train", "digits/vit_micro", "sub.ratio=-0.5"), 2, "sub.ratio"),
    "no such recipe": (("train", "digits/vit_mikro"), 2, "digits/vit_micro"),
    "no such run": (("eval", "absent"), 2, "absent: there is no such run folder"),
    "not a run": (("eval", "."), 2, "is not a run folder"),
    "folder without resume": (("train", "."), 2, "--resume"),
    "no such option": (("train", "digits/vit_micro", "--fast"), 2, "--fast"),
    "missing data": (("train", "cifar10/vit_tiny", "data.train=absent.zip", "data.val=absent.zip"), 2, "absent.zip"),
    "unknown model": (("train", "digits/vit_micro", "model.name=vit_tiny_patch16_2244"), 2, "did you mean"),
}


@pytest.mark.parametrize("name", WRONG)
def test_mistakes_end_with_code_2_one_message_and_nothing_written(name: str, tmp_path: Path) -> None:
    arguments, code, message = WRONG[name]
    done = masksub(*arguments, cwd=tmp_path)
    assert done.returncode == code, done.stderr
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_failure_ends_with_code_1(tmp_path: Path) -> None:
    done = masksub("train", "digits/vit_micro", *SMALL, "train.epochs=1", "optim.lr=1e30", "--out", "r", cwd=tmp_path)
    assert done.returncode == 1, done.stderr
    assert "loss of the main branch is not finite at update" in done.stderr and "Traceback" not in done.stderr
    assert "Try a lower optim.lr, or optim.clip_norm; train.on_nan" in done.stderr, "bf16 is no help against fp32"


def test_a_comparison_in_which_all_runs_failed_is_told_and_ends_with_code_1(tmp_path: Path) -> None:
    """Else a script takes a comparison of nothing for a result."""
    wild = ("train.epochs=1", "optim.lr=1e30", "--arms", "plain", "--seeds", "1", "--jobs", "1", "--out", "c", "--json")
    done = masksub("compare", "digits/vit_micro", *SMALL, *wild, cwd=tmp_path)
    assert done.returncode == 1, done.stderr
    assert "error: not one of the 1 runs was completed" in done.stderr and "Traceback" not in done.stderr
    [run] = json.loads(done.stdout)["arms"][0]["runs"]
    assert run["status"] == "failed" and "not finite" in run["reason"]
    assert json.loads((tmp_path / "c" / "comparison.json").read_text(encoding="utf-8")) == json.loads(done.stdout)


def test_a_plan_of_a_comparison_as_json(tmp_path: Path) -> None:
    """Else who asks first what a comparison takes, as the docs say, gets an error, or a program no JSON."""
    few = ("train.epochs=1", "--arms", "plain,masksub", "--seeds", "2", "--jobs", "1", "--dry-run", "--json")
    done = masksub("compare", "digits/vit_micro", *SMALL, *few, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    arms = json.loads(done.stdout)["arms"]
    assert [(arm["name"], arm["runs"], arm["left"]) for arm in arms] == [("plain", 2, 2), ("masksub", 2, 2)]
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_run_and_hostile_weights_are_refused(finished: Path, tmp_path: Path) -> None:
    torch.save({"weight": Path("x")}, tmp_path / "w.pth")
    done = masksub("eval", str(finished), "--weights", "w.pth", cwd=tmp_path)
    assert done.returncode == 2 and "pickle that holds more than weights" in done.stderr


def test_debug_shows_the_traceback(tmp_path: Path) -> None:
    done = masksub("--debug", "eval", "absent", cwd=tmp_path)
    assert done.returncode != 0 and "Traceback" in done.stderr


@pytest.mark.parametrize("absent", ["typer", "timm", "accelerate", "pydantic"])
def test_a_missing_library_names_the_install_command(absent: str, tmp_path: Path) -> None:
    """The library alone needs torch; the command says what else it needs."""
    code = f"import sys; sys.modules[{absent!r}] = None; sys.argv = ['masksub', 'train', 'digits/vit_micro']\n"
    code += "import masksub\nfrom masksub.cli import main\nmain()"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment(), capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "pip install 'masksub[app]'" in done.stderr and "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []
