"""What goes where: results, progress and errors, with and without a terminal, and how the command ends."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import pytest

from masksub.app.errors import InputError

from .made_up import environment, run, run_here, stand_in
from .test_completion import make_run
from .test_help import stand_in_for_report

REPORTERS: list[dict[str, Any]] = []


@pytest.fixture(autouse=True)
def quiet_reporter(monkeypatch: pytest.MonkeyPatch) -> None:
    """Notes how a command sets up what tells its progress."""
    REPORTERS.clear()
    stand_in(monkeypatch, "masksub.app.progress", Reporter=lambda **how: REPORTERS.append(how) or reporter)


@pytest.fixture(autouse=True)
def beside_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The folder of the test holds what passes for two run folders."""
    for name in ("x", "y"):
        make_run(tmp_path / name)
    monkeypatch.chdir(tmp_path)


reporter = types.SimpleNamespace(silent=False, line=print, warn=print)


def refuse(*arguments: Any, **more: Any) -> Any:
    raise InputError("nowhere: there is no such run folder")


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--version", "--json"], "masksub"),
        (["recipes", "--json"], None),
    ],
)
def test_json_is_all_that_is_printed(arguments: list[str], expected: str | None) -> None:
    """Else a program that reads the output stumbles over a word of news."""
    done = run(*arguments)
    assert done.returncode == 0 and done.stderr == ""
    result = json.loads(done.stdout)
    if expected is None:
        micro = next(each for each in result if each["name"] == "digits/vit_micro")
        assert Path(micro["path"]).is_file() and micro["about"].startswith("A very small ViT on the embedded 8x8")
    else:
        assert expected in result


def test_recipes_are_told_in_one_line_each() -> None:
    """Else a user opens 30 files to find the recipe for them."""
    lines = run("recipes").stdout.splitlines()
    names = run("recipes", "--quiet").stdout.splitlines()
    assert len(lines) == len(names) > 20
    column = max(map(len, names)) + 2
    for name, line in zip(names, lines):
        assert line[:column].strip() == name and line[column - 1] == " " and line[column] not in " #", line


def test_demo_as_json(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """Else the first thing that is tried can't be read by a program."""

    def run_demo(folder: Path, **how: Any) -> str:
        (folder / "comparison.json").write_text('{"arms": []}')
        return "a table"

    stand_in(monkeypatch, "masksub.app.demo", run_demo=run_demo)
    assert run_here(monkeypatch, "demo", "--out", str(tmp_path), "--json") == 0
    assert json.loads(capsys.readouterr().out) == {"arms": []} and REPORTERS == [{"quiet": True}]
    assert run_here(monkeypatch, "demo", "--out", str(tmp_path)) == 0
    assert capsys.readouterr().out == "a table\n" and REPORTERS[-1] == {"quiet": False}


def test_report_as_json(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Else report alone has another way to ask for JSON."""
    written: dict[str, Any] = {}
    stand_in_for_report(monkeypatch, written)
    stand_in(monkeypatch, "masksub.app.progress", Reporter=lambda **how: reporter)
    assert run_here(monkeypatch, "report", "runs", "--json") == 0
    assert json.loads(capsys.readouterr().out) == {"verdict": []} and written["format"] == "json"
    assert run_here(monkeypatch, "report", "runs", "--json", "--format", "md") == 2
    assert "--json does not go with --format md" in capsys.readouterr().err


@pytest.mark.parametrize("more", [[], ["--json"], ["--quiet"]])
def test_an_error_is_one_line_on_standard_error(
    more: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Else a user reads a traceback for a typing error, or a program takes an error for a result."""
    assert run_here(monkeypatch, "eval", "nowhere", *more) == 2
    said = capsys.readouterr()
    assert said.out == "" and said.err == "error: nowhere: there is no such run folder\n"


@pytest.mark.parametrize("arguments", [["--debug", "eval", "x"], ["eval", "x", "--debug"], ["eval", "--debug", "x"]])
def test_debug_shows_the_traceback_wherever_it_stands(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Else one who adds --debug to a failed command is told that there is no such option."""
    stand_in(monkeypatch, "masksub.app.predict", evaluate_run=refuse)
    assert run_here(monkeypatch, *arguments) == 2
    said = capsys.readouterr().err
    assert (
        "Traceback" in said and "in refuse" in said and said.endswith("error: nowhere: there is no such run folder\n")
    )


def test_an_error_of_ours_says_how_to_see_more(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Else a report of a fault has nothing in it."""
    stand_in(monkeypatch, "masksub.app.predict", evaluate_run=lambda *a, **k: {}["top1"])
    assert run_here(monkeypatch, "eval", "x") == 1
    assert "the same command with --debug shows where" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["trian", "x"], "'train'"),
        (["reciepes"], "'recipes'"),
        (["compare", "x", "--seed", "3"], "--seeds"),
        (["report", "x", "--jsn"], "--json"),
        (["--debug", "--versoin"], "--version"),
        (["--json"], "masksub COMMAND --json"),
    ],
)
def test_a_typing_error_is_told_with_the_nearest_name(
    arguments: list[str], told: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Else a user has to read the help to find one wrong letter."""
    assert run_here(monkeypatch, *arguments) == 2
    said = capsys.readouterr()
    assert told in said.err and "Traceback" not in said.err and said.out == ""
    assert said.err.startswith("error: ") and said.err.count("\n") == 1 and "masksub " in said.err, "as all errors"


def test_all_that_is_missing_is_told_at_once(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Else a user mends the name of the image, and is then told that there is no such run."""
    assert run_here(monkeypatch, "predict", "nowhere", "no.png") == 2
    said = capsys.readouterr().err
    assert said == "error: nowhere: there is no such run folder\nthere is no such image: no.png\n"


def test_a_place_that_can_t_be_written_to_is_told_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Else it is told after seconds of loading, as a failure of the program. /proc lets nobody make a folder."""
    stand_in(monkeypatch, "masksub.app.devices")  # ImportError if it came to that
    place = "/proc/x" if Path("/proc").is_dir() else f"{tmp_path / 'file'}/x"
    (tmp_path / "file").touch()
    assert run_here(monkeypatch, "train", "absent", "--out", place) == 2
    assert capsys.readouterr().err.startswith(f"error: --out {place}: can't make a run folder")


FIGURES = {"loss": 0.5, "calibration_error": 2.0, "images": 60}


@pytest.mark.parametrize(("images", "mean"), [(60, True), (50, False)])
def test_several_runs_are_evaluated_with_mean_and_deviation(
    images: int, mean: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Else the seeds of an arm are summed up by hand; where they saw other images there is nothing to sum up."""
    results = {"x": {"top1": 90.0, **FIGURES}, "y": {"top1": 92.0, **FIGURES, "images": images}}
    stand_in(monkeypatch, "masksub.app.predict", evaluate_run=lambda run, **how: results[run.name])
    assert run_here(monkeypatch, "eval", "x", "y") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "x: top-1 90.00 %, loss 0.5000, calibration error 2.00 % on 60 images"
    # Standard deviation of a sample: |90 - 92| / sqrt(2) = 1.41.
    assert (
        lines[2:]
        == ["mean of 2 runs: top-1 91.00 +- 1.41 %, loss 0.5000 +- 0.0000, calibration error 2.00 +- 0.00 %"] * mean
    )
    assert run_here(monkeypatch, "eval", "x", "y", "--json") == 0
    assert json.loads(capsys.readouterr().out) == [{"run": name, **result} for name, result in results.items()]
    assert run_here(monkeypatch, "eval", "x", "--json") == 0
    assert json.loads(capsys.readouterr().out) == results["x"], "one run as ever"
    assert run_here(monkeypatch, "eval", "x", "y", "--weights", "w.pth") == 2
    assert "--weights w.pth: belongs to one run" in capsys.readouterr().err


def trial(*states: str) -> dict[str, Any]:
    return {"runs": [{"status": state} for state in states]}


@pytest.mark.parametrize(
    ("trials", "code"),
    [([trial("failed"), trial("failed", "failed")], 1), ([{}], 1), ([trial("failed"), trial("failed", "complete")], 0)],
)
def test_a_sweep_in_which_all_failed_ends_with_code_1(
    trials: list[dict[str, Any]], code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Else a script takes a sweep of nothing for a result. What came out is told all the same."""
    stand_in(monkeypatch, "masksub.app.recipe", load_recipe=lambda *which: None)
    stand_in(monkeypatch, "masksub.app.sweep.space", space_items=lambda **how: [])
    result = {"study": {"trials": trials}}
    stand_in(monkeypatch, "masksub.app.sweep.run", run_sweep=lambda *what, **how: (result, "all that was tried"))
    assert run_here(monkeypatch, "sweep", "r", "--json") == code
    said = capsys.readouterr()
    assert json.loads(said.out) == result
    assert (f"not one of the {len(trials)} settings was completed" in said.err) == bool(code)


@pytest.mark.parametrize("tried", [{"0": 90.0}, {}])
def test_a_staged_sweep_whose_plain_training_failed_ends_with_code_1(
    tried: dict[str, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_in(monkeypatch, "masksub.app.recipe", load_recipe=lambda *which: None)
    staged: Any = lambda *what, **how: ({"steps": [{"top1": tried}]}, "")  # noqa: E731
    stand_in(monkeypatch, "masksub.app.sweep.staged", run_staged=staged, RATIOS=())
    assert run_here(monkeypatch, "sweep", "r", "--staged") == (0 if tried else 1)


@pytest.mark.parametrize("command", ["compare", "sweep"])
@pytest.mark.parametrize("more", [[], ["--json"]])
def test_a_plan_ends_with_code_0(
    command: str, more: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its "runs" are a number. Else all who ask first what a study will take are told of an error after the plan."""
    plan = {"jobs": 1, "arms": [{"name": "plain", "runs": 3, "left": 3}]}
    stand_in(monkeypatch, "masksub.app.recipe", load_recipe=lambda *which: None)
    stand_in(monkeypatch, "masksub.app.experiment.compare", run_comparison=lambda *what, **how: (plan, "the plan"))
    stand_in(monkeypatch, "masksub.app.sweep.space", space_items=lambda **how: [])
    stand_in(monkeypatch, "masksub.app.sweep.run", run_sweep=lambda *what, **how: (plan, "the plan"))
    assert run_here(monkeypatch, command, "r", "--dry-run", *more) == 0
    said = capsys.readouterr()
    assert said.err == "" and (json.loads(said.out) == plan if more else said.out == "the plan\n")


def test_no_command_shows_the_help() -> None:
    """Else one who types ``masksub`` to see what it is sees an error. Code 2: a script has forgotten the command."""
    done = run()
    assert done.returncode == 2 and "Commands:" in done.stderr and done.stdout == ""


@pytest.mark.parametrize("when", ["a command works", "a command is imported", "the commands are imported"])
def test_ctrl_c_is_one_line(when: str) -> None:
    """Else whoever stops a command that takes too long reads a traceback."""
    stop = "os.kill(os.getpid(), signal.SIGINT); time.sleep(60)"
    code = f"""
import os, signal, sys, time, types
class Stops:
    def find_spec(self, name, path=None, target=None):
        if name == {"masksub.cli.listing" if when == "the commands are imported" else "masksub.app.predict"!r}:
            {stop}
if {when == "a command works"}:
    def evaluate_run(*arguments, **more):
        {stop}
    sys.modules["masksub.app.predict"] = types.ModuleType("predict")
    sys.modules["masksub.app.predict"].evaluate_run = evaluate_run
else:
    sys.meta_path.insert(0, Stops())
sys.argv = ["masksub", "eval", "x"]
from masksub.cli import main
main()
"""
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment(), capture_output=True, text=True, timeout=50, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (128 + signal.SIGINT, "", "interrupted\n")


@pytest.mark.parametrize(("arguments", "code"), [(["recipes"], 141), (["sweep", "--help"], 141), (["--help"], 1)])
def test_a_reader_that_goes_early_is_no_fault(arguments: list[str], code: int) -> None:
    """Else ``masksub recipes | head -1`` ends in a traceback."""
    reading, writing = os.pipe()
    os.close(reading)
    try:
        done = subprocess.run(
            [sys.executable, "-m", "masksub", *arguments],
            env=environment(), stdout=writing, stderr=subprocess.PIPE, text=True, timeout=60, check=False,
        )  # fmt: skip
    finally:
        os.close(writing)
    assert (done.returncode, done.stderr) == (code, "")


def test_a_broken_connection_elsewhere_is_told(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Else a training whose worker died ends without a word, as if its reader had gone."""

    def broken(*arguments: Any, **more: Any) -> None:
        raise BrokenPipeError(32, "Broken pipe")

    stand_in(monkeypatch, "masksub.app.predict", evaluate_run=broken)
    assert run_here(monkeypatch, "eval", "x") == 1
    assert "error: a connection to another process broke" in capsys.readouterr().err


WARNS = "from masksub.app.progress import Reporter; Reporter(quiet=True).warn('[a] careful')"


@pytest.mark.parametrize(
    ("more", "coloured"),
    [({"TERM": "xterm"}, True), ({"TERM": "xterm", "NO_COLOR": "1"}, False), ({"TERM": "dumb"}, False)],
)
@pytest.mark.parametrize("command", [["-m", "masksub", "--json"], ["-c", WARNS]])
def test_colours_on_a_terminal_only_if_wanted(command: list[str], more: dict[str, str], coloured: bool) -> None:
    """Else escape codes stand in logs, or NO_COLOR is not heeded."""
    ours, theirs = pty.openpty()
    subprocess.run([sys.executable, *command], env=environment(**more), stderr=theirs, timeout=60, check=False)
    os.close(theirs)
    said = os.read(ours, 4096).decode()
    os.close(ours)
    assert ("\x1b[" in said) == coloured
    word = "error" if "masksub" in command else "warning"
    assert word in said and (coloured or said.startswith(f"{word}: "))


@pytest.mark.parametrize("command", [["-m", "masksub", "--json"], ["-c", WARNS], ["-m", "masksub", "recipes"]])
def test_no_colours_in_a_file(command: list[str]) -> None:
    """Else escape codes stand in logs."""
    done = subprocess.run(
        [sys.executable, *command],
        env=environment(TERM="xterm"),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.stdout + done.stderr and "\x1b" not in done.stdout + done.stderr
