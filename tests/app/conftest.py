"""What tests of whole commands share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.app.faults_made_up import Commands


@pytest.fixture
def commands(tmp_path: Path) -> Iterator[Commands]:
    """Starts the command in processes that are all ended with the test."""
    with Commands(tmp_path) as commands:
        yield commands
