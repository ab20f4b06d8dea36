"""The command in this process, with stand-ins for what it calls, so that no test here waits for torch."""

from __future__ import annotations

import os
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import pytest

from masksub.cli import main

SCRIPT = Path(sys.executable).with_name("masksub")


def stand_in(monkeypatch: pytest.MonkeyPatch, module: str, **contents: Any) -> None:
    """Have a command import this in place of a module of ``masksub.app``."""
    fake = types.ModuleType(module)
    vars(fake).update(contents)
    monkeypatch.setitem(sys.modules, module, fake)


def run_here(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    """Exit code of the command, run in this process."""
    monkeypatch.setattr(sys, "argv", ["masksub", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    return int(ended.value.code or 0)


def environment(**more: str) -> dict[str, str]:
    """Of a process: this interpreter's ``masksub`` first, and nothing that would ask for colours."""
    mine = {key: value for key, value in os.environ.items() if key not in ("NO_COLOR", "FORCE_COLOR", "COLUMNS")}
    return {**mine, "PATH": f"{SCRIPT.parent}{os.pathsep}{os.environ['PATH']}", "OMP_NUM_THREADS": "1", **more}


def run(*arguments: str, **more: Any) -> subprocess.CompletedProcess[str]:
    """The command as a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "masksub", *arguments],
        env=environment(**more), capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
