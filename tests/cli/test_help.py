"""Help that is read in one look, and options that are called the same wherever they mean the same.

One screen is 24 x 80 for the list of the commands and 40 x 80 for one of them.
"""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from masksub.cli import app

from .made_up import run_here, stand_in

GROUP: Any = typer.main.get_command(app)
COMMANDS: dict[str, Any] = dict(GROUP.commands)


def help_of(*command: str, columns: int = 80) -> list[str]:
    result = CliRunner().invoke(app, [*command, "--help"], env={"COLUMNS": str(columns), "TERMINAL_WIDTH": ""})
    assert result.exit_code == 0, result.output
    return result.output.splitlines()


def options(command: Any) -> dict[str, Any]:
    """Visible options by their long name."""
    found = [p for p in command.params if p.param_type_name == "option" and not p.hidden]
    return {name: p for p in found for name in p.opts if name.startswith("--")}


def test_the_list_of_commands_fits_a_screen() -> None:
    """Else what a user looks for has scrolled away, or a line ends in dots."""
    lines = help_of()
    assert len(COMMANDS) >= 12 and all(any(line.startswith(f"  {name} ") for line in lines) for name in COMMANDS)
    assert len(lines) <= 24 and max(map(len, lines)) <= 80
    assert not any(line.endswith("...") for line in lines[1:])
    assert sum("Example: masksub" in line for line in lines) == 1


@pytest.mark.parametrize("name", COMMANDS)
def test_the_help_of_a_command_fits_a_screen_and_has_one_example(name: str) -> None:
    """Else the options that come first, or the example, have scrolled away."""
    lines = help_of(name)
    assert len(lines) <= 40 and max(map(len, lines)) <= 80
    examples = [line.strip() for line in lines if "Example:" in line]
    assert len(examples) == 1 and examples[0].startswith(f"Example: masksub {name}")


@pytest.mark.parametrize("name", COMMANDS)
def test_the_example_can_be_typed(name: str) -> None:
    """Else the first thing that a user copies is refused."""
    [line] = [line.strip() for line in help_of(name) if "Example:" in line]
    words = shlex.split(line.removeprefix(f"Example: masksub {name}").split(">")[0])
    COMMANDS[name].make_context(name, words, resilient_parsing=False)  # raises where an option is not there


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_takes_quiet_and_json(name: str) -> None:
    """Else a script has to know which of the commands it may ask for JSON."""
    found = options(COMMANDS[name])
    assert {"--quiet", "--json"} <= found.keys()
    assert set(found["--quiet"].opts) == {"--quiet", "-q"} and found["--json"].is_flag


def test_options_are_called_the_same() -> None:
    """Else a user guesses: what is written goes to --out, and one meaning has one name, one letter and one text."""
    writing = {"demo", "train", "compare", "sweep", "report", "analyze"}
    assert {name for name in COMMANDS if "--out" in options(COMMANDS[name])} == writing
    for name in writing:
        assert set(options(COMMANDS[name])["--out"].opts) == {"--out", "-o"}, name
    others = {"--output", "--folder", "--dir", "--language", "--ratios", "--num-seeds", "--workers", "--processes",
              "--verbose", "--silent", "--fmt", "--stats"}  # fmt: skip
    for name, command in COMMANDS.items():
        assert not others & options(command).keys(), name
    for option in ("--jobs", "--statistics", "--mixed-versions", "--dry-run", "--quiet", "--json"):
        having = [options(command)[option] for command in COMMANDS.values() if option in options(command)]
        assert len(having) >= 2 and len({parameter.help for parameter in having}) == 1, option
    letters: dict[str, set[str]] = {}
    for command in COMMANDS.values():
        for long, parameter in options(command).items():
            for short in (each for each in parameter.opts if re.fullmatch("-[a-z]", each)):
                letters.setdefault(short, set()).add(long)
    assert all(len(meanings) == 1 for meanings in letters.values()), letters


@pytest.mark.parametrize(("option", "format"), [("--out", "html"), ("--output", "html"), ("-o", "html")])
def test_report_still_takes_its_former_option(option: str, format: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a script of before ends in "no such option"."""
    written: dict[str, Any] = {}
    stand_in_for_report(monkeypatch, written)
    assert run_here(monkeypatch, "report", "runs", option, "page.html") == 0
    assert written["output"] == Path("page.html") and written["format"] == format


def test_former_and_new_option_together_are_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Else one of two files is silently not written."""
    assert run_here(monkeypatch, "report", "runs", "--out", "a.html", "--output", "b.html") == 2
    assert "--output is the former name of --out" in capsys.readouterr().err


@pytest.mark.parametrize("option", ["--ratio", "--ratios"])
def test_analyze_takes_ratios_as_the_others_do_and_as_before(option: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else --ratio, that sweep takes, is refused here, or a script of before is."""
    asked: dict[str, Any] = {}
    stand_in(monkeypatch, "masksub.app.progress", Reporter=lambda **how: None)
    stand_in(
        monkeypatch, "masksub.app.analysis.analyze", RATIOS=(0.5,), text=lambda result: "said",
        analyze=lambda run, **how: asked.update(how) or {}, write_analysis=lambda result, folder: [],
    )  # fmt: skip
    assert run_here(monkeypatch, "analyze", "runs/a", option, "0,0.25") == 0
    assert asked["ratios"] == (0.0, 0.25)


def stand_in_for_report(monkeypatch: pytest.MonkeyPatch, written: dict[str, Any]) -> None:
    evidence = type("Evidence", (), {"problems": ()})()

    def write_report(evidence: Any, **how: Any) -> str:
        written.update(how)
        return '{"verdict": []}\n' if how["output"] is None else str(how["output"])

    stand_in(monkeypatch, "masksub.app.progress", Reporter=lambda **how: None)
    stand_in(monkeypatch, "masksub.app.evidence.gather", gather=lambda paths, **how: evidence)
    stand_in(monkeypatch, "masksub.app.report", write_report=write_report, find_analyses=lambda evidence: [])
