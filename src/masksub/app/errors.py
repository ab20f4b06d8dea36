"""Errors that are told to the user in one message, without a traceback."""

from __future__ import annotations

__all__ = ["DivergedError", "InputError", "RunBusy", "StoppedError", "UsageMistake"]


class InputError(ValueError):
    """The user's input is wrong: exit code 2. The message names the value, its place and what is accepted."""


class UsageMistake(InputError):
    """Wrong words on the command line: a traceback would not help anybody."""


class StoppedError(RuntimeError):
    """The run can't go on, through no mistake in the input: exit code 1."""


class DivergedError(StoppedError):
    """A loss or a gradient that is not finite: the same recipe and seed will end here again.

    Args:
        message: what, and where.
        update: number of the update that it belongs to, from 1; None: the one that was being made.
    """

    def __init__(self, message: str, update: int | None = None) -> None:
        super().__init__(message)
        self.update = update


class RunBusy(StoppedError):
    """Another process is training this run."""
