"""Each file in ``examples`` is run. If one fails, the first thing that a user copies does not work.

Python files run in processes forked from one that has loaded the large libraries, which are most of a run's time.
"""

from __future__ import annotations

import contextlib
import math
import os
import re
import runpy
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

from tests import forked
from tests.pages.sandbox import Sandbox

ROOT = Path(__file__).resolve().parents[1]
EXAMPLES = {path.name: path for path in sorted((ROOT / "examples").iterdir()) if path.suffix in (".py", ".sh")}
SCRIPTS = [name for name, path in EXAMPLES.items() if path.suffix == ".py"]

LOSSES = re.compile(r"\b(main|sub) (-?\d+\.\d+|nan|inf)\b")
"""As examples print them: "main 1.234, sub 2.345"."""
SECONDS = 300

ENVIRONMENT = {
    **os.environ,
    "OMP_NUM_THREADS": "1",
    "GLOO_SOCKET_IFNAME": "lo",
    "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}",
}


def in_process(path: str, arguments: list[str], folder: str) -> None:
    """Run a file as ``python -W error FILE``; what it prints goes to FOLDER/output."""
    os.chdir(folder)
    sys.argv = [path, *arguments]
    warnings.simplefilter("error")
    with Path("output").open("w", encoding="utf-8", buffering=1) as file, contextlib.redirect_stdout(file):
        runpy.run_path(path, run_name="__main__")


def run(name: str, folder: Path, *arguments: str) -> str:
    """What the example printed; fails where it did."""
    process = forked.context().Process(target=in_process, args=(str(EXAMPLES[name]), list(arguments), str(folder)))
    process.start()
    process.join(SECONDS)
    if process.is_alive():
        process.kill()
        pytest.fail(f"{name} was not done after {SECONDS} seconds")
    output = (folder / "output").read_text(encoding="utf-8")
    assert process.exitcode == 0, f"{name} ended with {process.exitcode}, see stderr; printed:\n{output}"
    return output


def launched(folder: Path, *command: str, **variables: str) -> str:
    """What a command printed that starts processes of its own."""
    environment = {**ENVIRONMENT, **variables}
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=SECONDS, check=False
    )
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def losses(output: str) -> dict[str, list[float]]:
    """Printed losses of each branch, in order; at least one, and all finite."""
    found: dict[str, list[float]] = {"main": [], "sub": []}
    for branch, value in LOSSES.findall(output):
        found[branch].append(float(value))
    assert found["main"] and found["sub"], f"no losses of both branches in:\n{output}"
    assert all(math.isfinite(value) for values in found.values() for value in values), output
    return found


def accuracy(output: str) -> float:
    """The accuracy printed last."""
    return float(re.findall(r"accuracy\D* (\d\.\d+)", output)[-1])


def test_there_are_examples_for_each_way_of_use() -> None:
    ways = {"functional.py", "bare_loop.py", "accelerate_loop.py", "timm_task.py", "proof_of_concept.sh"}
    assert ways <= EXAMPLES.keys()
    assert any(name.startswith("transformers_") for name in SCRIPTS)
    assert any(name.startswith("lightning_") for name in SCRIPTS)


def test_the_table_names_every_example() -> None:
    """Else a reader doesn't find it, or follows a link to nothing."""
    table = (ROOT / "examples" / "README.md").read_text(encoding="utf-8")
    assert set(re.findall(r"\]\((\w+\.(?:py|sh))\)", table)) == EXAMPLES.keys()


WITH_A_TEST_OF_ITS_OWN = {"accelerate_loop.py", "functional.py", "inspect_model.py", "own_model.py", "variants.py"}


@pytest.mark.parametrize("name", [name for name in SCRIPTS if name not in WITH_A_TEST_OF_ITS_OWN])
def test_example(name: str, tmp_path: Path) -> None:
    """Loss and accuracy as it prints them; of two classes or more, trained for a moment."""
    output = run(name, tmp_path)
    told = [*LOSSES.findall(output), *re.findall(r"(accuracy|top-1)\D* (\d+\.\d+|nan)", output)]
    assert told, f"it printed neither losses nor an accuracy:\n{output}"
    assert all(math.isfinite(float(value)) for _, value in told), output


def test_functional(tmp_path: Path) -> None:
    output = run("functional.py", tmp_path)
    main = losses(output)["main"]
    assert main[-1] < main[0]
    assert accuracy(output.split("accuracy on half")[0]) > 0.2  # ten classes


def test_own_model_has_its_tokens_dropped(tmp_path: Path) -> None:
    output = run("own_model.py", tmp_path)
    assert "8 of 16, and 1 prefix tokens" in output and "tokens dropped" in output
    assert losses(output)["main"][-1] < losses(output)["main"][0] and accuracy(output) > 0.2


def test_variants(tmp_path: Path) -> None:
    output = run("variants.py", tmp_path)
    assert len(losses(output)["sub"]) == 5
    assert len(set(output.splitlines())) == 5 and "MaskSub" in output and "CoSub" in output


def test_inspect_model_tells_three_ways(tmp_path: Path) -> None:
    output = run("inspect_model.py", tmp_path)
    assert re.findall(r"--- \S+: (\w+), (\d+) of (\d+)", output) == [
        ("drop", "8", "16"),
        ("fill", "2", "4"),
        ("pixels", "2", "4"),
    ]


def test_bare_loop_started_by_torchrun_on_two_processes(tmp_path: Path) -> None:
    command = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    output = launched(tmp_path, *command, str(EXAMPLES["bare_loop.py"]))
    assert "2 process(es), 64 updates" in output, "each process trained on its own"
    assert len(losses(output)["main"]) == 4 and accuracy(output) > 0.2


def test_accelerate_loop_goes_on_under_accelerate_launch_on_two_processes(tmp_path: Path) -> None:
    alone = run("accelerate_loop.py", tmp_path, "--state", "state", "--epochs", "2")
    assert "1 process(es), 32 updates" in alone and len(losses(alone)["main"]) == 2
    # Without GPUs accelerate launch starts several processes only if told that there are some; the example knows.
    launch = (sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2")
    settings = ("--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0")
    script = (str(EXAMPLES["accelerate_loop.py"]), "--state", "state", "--epochs", "3")
    output = launched(tmp_path, *launch, *settings, *script)
    assert "goes on after 32 updates" in output
    assert "2 process(es), 48 updates" in output and len(losses(output)["main"]) == 1


def test_proof_of_concept_by_the_command(tmp_path: Path, warm: Path) -> None:
    """The command it calls is forked from a process that has imported everything; the rest is as in a shell."""
    sandbox = Sandbox(tmp_path, warm)
    output = launched(
        sandbox.work, "sh", str(EXAMPLES["proof_of_concept.sh"]), "poc", EPOCHS="1", SEEDS="1", **sandbox.environment
    )
    assert re.search(r"(?m)^MaskSub .*\d", output) and "open poc/report.html" in output
    page = (sandbox.work / "poc" / "report.html").read_text(encoding="utf-8")
    assert "MaskSub" in page and len(list((sandbox.work / "poc" / "compare").glob("*/summary.json"))) == 2
