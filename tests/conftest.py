"""Shared by all tests: where the outside data is, small models, one thread a process."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

SHARED = Path(os.environ.get("MASKSUB_SHARED", Path(__file__).resolve().parents[2] / "shared"))


def shared(path: str) -> Path:
    """A file of the shared data, or skip with the reason."""
    found = SHARED / path
    if not found.exists():
        pytest.skip(f"{path} is not there: it is looked for in {SHARED} (set MASKSUB_SHARED)")
    return found


@pytest.fixture(scope="session")
def warm() -> Iterator[Path]:
    """The socket of a process that has imported all that the command needs and forks for each call."""
    from tests.pages.sandbox import warm_process

    # Not in pytest's folder: the path of a socket may have some 100 characters.
    with tempfile.TemporaryDirectory() as folder, warm_process(Path(folder)) as path:
        yield path


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)
