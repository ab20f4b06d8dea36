"""What tests of whole commands share."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import forked
from tests.app.faults_made_up import Commands


@pytest.fixture
def commands(tmp_path: Path) -> Iterator[Commands]:
    """Starts the command in processes that are all ended with the test."""
    with Commands(tmp_path) as commands:
        yield commands


@pytest.fixture
def spawned() -> None:
    """For a test whose workers are started anew, as those of users are; others save the seconds that this takes."""


@pytest.fixture(autouse=True)
def _forked_workers(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if "spawned" not in request.fixturenames:
        monkeypatch.setattr(multiprocessing, "get_context", forked.in_place_of_spawn)
