"""Help, version, lists and completion come at once: they load none of the heavy libraries."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from masksub.cli import app

from .made_up import environment

HEAVY = ("torch", "numpy", "pydantic", "timm", "transformers", "rich", "scipy", "optuna")
COMMANDS = sorted(typer.main.get_command(app).commands)  # type: ignore[attr-defined]

# The script that pip makes, and then what it has loaded.
WATCHED = f"""
import json, sys
sys.argv = ["masksub", *sys.argv[1:]]
from masksub.cli import main
try:
    main()
finally:
    print(json.dumps(sorted(set(sys.modules) & set({HEAVY!r}))), file=sys.stderr)
"""


def loaded(*arguments: str, cwd: Path | None = None, **more: str) -> tuple[list[str], str]:
    """The heavy libraries that a command has loaded, and what it printed."""
    done = subprocess.run(
        [sys.executable, "-c", WATCHED, *arguments],
        env=environment(**more), cwd=cwd, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert "Traceback" not in done.stderr, done.stderr
    return json.loads(done.stderr.splitlines()[-1]), done.stdout


@pytest.mark.parametrize(
    "arguments", [["--help"], ["--version"], ["recipes"], *([name, "--help"] for name in COMMANDS)]
)
def test_help_loads_nothing_heavy(arguments: list[str]) -> None:
    """Else ``masksub --help`` takes seconds. Which libraries are loaded is checked, not the time."""
    libraries, said = loaded(*arguments)
    assert said.strip() and libraries == []


def test_the_check_sees_what_is_loaded() -> None:
    """``schema`` needs pydantic; else the test above could not fail. And what it prints is JSON and nothing else."""
    libraries, said = loaded("schema", "--json")
    assert "pydantic" in libraries and "method" in json.loads(said)["properties"]


@pytest.mark.parametrize("arguments", [["eval", "nowhere"], ["predict", "nowhere", "no.png"]])
def test_a_run_that_is_not_there_is_told_at_once(arguments: list[str]) -> None:
    """Else a user waits for torch to be told of a typing error."""
    libraries, said = loaded(*arguments)
    assert said == "" and set(libraries) <= {"pydantic"}  # which Typer takes to check a value


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        ("masksub tr", ["train"]),
        ("masksub train digits/vit_mi", ["digits/vit_micro"]),
        ("masksub eval r", ["runs/a-s0"]),
        ("masksub sweep own.yaml --seeds 3 --sampler t", ["tpe"]),
        ("masksub report r", ["runs", "runs/a-s0"]),
        ("masksub train own", ["own.yaml", "own/vit_small_finetune", "own/vit_tiny_64px"]),
        ("masksub train digits/vit_micro --ov", ["--overwrite"]),
    ],
)
def test_completion_loads_nothing_heavy(words: str, offered: list[str], tmp_path: Path) -> None:
    """Else each TAB takes seconds."""
    (tmp_path / "runs" / "a-s0").mkdir(parents=True)
    (tmp_path / "own.yaml").touch()
    for name in ("recipe.yaml", "classes.json"):
        (tmp_path / "runs" / "a-s0" / name).touch()
    asked = {"COMP_WORDS": words, "COMP_CWORD": str(len(words.split()) - 1), "_MASKSUB_COMPLETE": "complete_bash"}
    libraries, said = loaded(cwd=tmp_path, **asked)
    assert said.split() == offered and libraries == []
