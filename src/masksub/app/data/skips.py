"""What could not be read of a data set, counted once each, up to a limit."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from masksub.app.errors import InputError
from masksub.app.settings import Data

__all__ = ["Skips"]

SHOWN = 10
"""Messages that are kept for the end of the run."""


class Skips:
    """Counts the images that could not be decoded; ends the run where the recipe says so.

    Args:
        data: ``on_error`` and ``max_skipped``.
        problems: what was found when the images were listed and has no index: damaged ends of shards, missing labels.

    Raises:
        InputError: as ``add``.
    """

    def __init__(self, data: Data, problems: Iterable[str] = ()) -> None:
        self._data = data
        self._found: dict[int, str] = {}
        for number, message in enumerate(problems):
            self.add(-1 - number, message)

    def __len__(self) -> int:
        return len(self._found)

    @property
    def first(self) -> list[str]:
        """What was wrong with the first ten, each with its file."""
        return [message for message in self._found.values() if message][:SHOWN]

    def add(self, index: int, message: str) -> None:
        """Take note of a damaged image; one that is met again counts once.

        Raises:
            InputError: damaged images stop the run, or there are more than ``data.max_skipped``.
        """
        if self._data.on_error == "stop":
            raise InputError(f"{message}. Repair or remove it, or set data.on_error=skip")
        if index in self._found:
            return
        self._found[index] = message if len(self) < SHOWN else ""
        self._check()

    def _check(self) -> None:
        if len(self) > self._data.max_skipped:
            listed = "; ".join(self.first[:3])
            raise InputError(
                f"{len(self)} images can't be decoded, more than data.max_skipped = {self._data.max_skipped}: {listed}"
                f"{'; ...' if len(self) > 3 else ''}"
            )

    def state_dict(self) -> dict[str, Any]:
        """What was found so far, to be written as JSON: index of each image as text, and message of the first ten."""
        return {str(index): message for index, message in self._found.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Add what was found by another process or before a resumption; nothing counts twice.

        Raises:
            InputError: together there are more than ``data.max_skipped``.
        """
        for index, message in state.items():
            if int(index) not in self._found:
                self._found[int(index)] = str(message)
        self._check()
