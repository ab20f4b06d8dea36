"""Errors that are told to the user in one message, without a traceback."""

from __future__ import annotations

__all__ = ["InputError", "StoppedError"]


class InputError(ValueError):
    """The user's input is wrong: exit code 2. The message names the value, its place and what is accepted."""


class StoppedError(RuntimeError):
    """The run can't go on, through no mistake in the input: exit code 1."""
