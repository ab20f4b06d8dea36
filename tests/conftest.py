"""Shared by all tests: where the outside data is, small models, one thread a process."""

from __future__ import annotations

import os
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


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)
