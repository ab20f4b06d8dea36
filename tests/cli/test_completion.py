"""What TAB offers, in a real shell and where there is much to look at."""

from __future__ import annotations

import os
import pty
import select
import shutil
import subprocess
import time
from pathlib import Path

import pytest
import typer

from masksub.cli import app, completion
from masksub.cli.completion import (
    complete_recipe,
    complete_recipe_or_run,
    complete_run,
    complete_runs,
    several_of,
)

from .made_up import environment


def make_run(path: Path) -> None:
    path.mkdir(parents=True)
    for name in ("recipe.yaml", "classes.json"):
        (path / name).touch()


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    make_run(tmp_path / "runs" / "one-s0")
    make_run(tmp_path / "runs" / "r-compare" / "masksub-s0")
    make_run(tmp_path / ".hidden" / "run")
    (tmp_path / "images" / "cat").mkdir(parents=True)
    (tmp_path / "digits.yaml").touch()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_what_is_offered(folder: Path) -> None:
    """Else a recipe or run that is there must be typed out, or one is offered that is none."""
    assert complete_run("") == ["runs/one-s0", "runs/r-compare/masksub-s0"]
    assert complete_run("./runs/o") == ["./runs/one-s0"]
    assert complete_run(f"{folder}/runs/o") == [f"{folder}/runs/one-s0"]
    assert complete_run("images") == [] and complete_run("absent/") == []
    assert complete_runs("runs/r") == ["runs/r-compare", "runs/r-compare/masksub-s0"]
    recipes = complete_recipe("digits")
    assert {"digits.yaml", "digits/vit_micro"} <= set(recipes) and all(each.startswith("digits") for each in recipes)
    assert complete_recipe_or_run("ru") == ["runs/one-s0", "runs/r-compare/masksub-s0"]
    assert several_of("plain", "plain-equal", "masksub")("plain,p") == ["plain,plain-equal"]


def test_a_folder_of_very_many_files_does_not_hold_it_up(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else TAB hangs beside a data set."""
    monkeypatch.setattr(completion, "LOOKED_AT", 50)
    for number in range(200):
        (folder / "images" / "cat" / f"{number}.png").touch()
    looked_at: list[str] = []
    entries = completion._entries

    def counted(incomplete: str):  # type: ignore[no-untyped-def]
        for entry in entries(incomplete):
            looked_at.append(entry[0])
            yield entry

    monkeypatch.setattr(completion, "_entries", counted)
    complete_run("")
    assert 10 < len(looked_at) <= 51


class Shell:
    """An interactive bash on a terminal."""

    def __init__(self, home: Path) -> None:
        with (home / ".bashrc").open("a") as file:
            file.write("\nPS1='$ '; bind 'set enable-bracketed-paste off'; echo READY\n")
        self.process, self.terminal = pty.fork()
        if self.process == 0:  # the new process
            os.chdir(home)
            os.execvpe("bash", ["bash", "--noprofile", "-i"], environment(HOME=str(home), TERM="dumb"))
        self.read_until("READY")

    def type(self, text: str) -> None:
        os.write(self.terminal, text.encode())

    def read_until(self, wanted: str, seconds: float = 60) -> None:
        said, end = "", time.monotonic() + seconds
        while wanted not in said.replace("\r", ""):
            assert time.monotonic() < end, f"{wanted!r} never came, but {said!r}"
            if select.select([self.terminal], [], [], 0.2)[0]:
                said += os.read(self.terminal, 4096).decode(errors="replace")

    def close(self) -> None:
        os.close(self.terminal)  # bash is told that its terminal is gone
        os.waitpid(self.process, 0)


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_tab_in_a_real_bash(tmp_path: Path) -> None:
    """Else ``masksub --install-completion`` says it is done, and TAB does nothing."""
    make_run(tmp_path / "runs" / "mine-s0")
    installed = subprocess.run(
        ["bash", "-c", "masksub --install-completion; echo ended $?"],  # it finds out itself which shell this is
        env=environment(HOME=str(tmp_path)), capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert "bash completion installed" in installed.stdout and "ended 0" in installed.stdout, installed
    shell = Shell(tmp_path)
    try:
        for typed, wanted in (
            ("masksub tr\t", "masksub train "),
            ("masksub train digits/\t", "masksub train digits/vit_micro "),
            ("masksub eval ru\t", "masksub eval runs/mine-s0 "),
            ("masksub compare x --retry\t", "masksub compare x --retry-failed "),
        ):
            shell.type(typed)
            shell.read_until(wanted)
            shell.type("\x15")  # take the line away
    finally:
        shell.close()


def test_words_and_recipes_are_those_of_the_app() -> None:
    """Else TAB offers what the command then refuses, or leaves out what it takes."""
    from masksub.app.experiment.arms import ARMS
    from masksub.app.inspect import VARIANTS
    from masksub.app.plan.hardware import DEVICES
    from masksub.app.report import FORMATS, LANGUAGES
    from masksub.app.sweep.run import PRUNERS, SAMPLERS

    group = typer.main.get_command(app)
    words = {
        ("inspect", "--variant"): VARIANTS,
        ("plan", "--device"): DEVICES,
        ("report", "--format"): FORMATS,
        ("report", "--lang"): LANGUAGES,
        ("sweep", "--sampler"): SAMPLERS,
        ("sweep", "--pruner"): PRUNERS,
        ("compare", "--arms"): ("all", *ARMS),
        ("compare", "--statistics"): ("t", "bootstrap"),
    }
    for (name, option), accepted in words.items():
        [parameter] = [p for p in group.commands[name].params if option in p.opts]  # type: ignore[attr-defined]
        context = group.make_context("masksub", [], resilient_parsing=True)
        assert [item.value for item in parameter.shell_complete(context, "")] == [*accepted], (name, option)
