"""What a person sees while a command runs: a bar on a terminal, single lines elsewhere, colours on a terminal only."""

from __future__ import annotations

import sys
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.text import Text

__all__ = ["Reporter"]


class Reporter:
    """Progress on standard error. On a terminal a bar; in a log file only the lines.

    Args:
        quiet: say nothing but warnings.
        main: False on all processes of a group but one; they say nothing.
    """

    def __init__(self, *, quiet: bool = False, main: bool = True) -> None:
        self._console = Console(stderr=True, highlight=False, soft_wrap=True)
        self._silent, self._quiet = not main, quiet
        self._shows_bar = main and not quiet and sys.stderr.isatty()
        self._bar: Progress | None = None

    def __enter__(self) -> Reporter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def silent(self) -> bool:
        """Whether another process speaks for this one."""
        return self._silent

    def silence(self) -> None:
        """Say nothing from here on: another process speaks for all."""
        self.stop()
        self._silent, self._shows_bar = True, False

    def line(self, text: str) -> None:
        """One line of news."""
        if not (self._quiet or self._silent):
            self._console.print(text, markup=False)

    def warn(self, text: str) -> None:
        """One line that is shown even when quiet."""
        if not self._silent:
            self._console.print(Text.assemble(("warning", "yellow"), f": {text}"))

    def step(self, task: str, done: int, total: int, note: str = "") -> None:
        """Move the bar of ``task``; a task with another name takes its place."""
        if not self._shows_bar:
            return
        if self._bar is None or self._bar.tasks[0].description != task:
            self.stop()
            columns = (
                TextColumn("{task.description}", markup=False),
                BarColumn(bar_width=24),
                MofNCompleteColumn(),
                TimeRemainingColumn(),
                TextColumn("{task.fields[note]}", markup=False),
            )
            self._bar = Progress(*columns, console=self._console, transient=True)
            self._bar.add_task(task, total=total, note=note)
            self._bar.start()
        self._bar.update(self._bar.tasks[0].id, completed=done, total=total, note=note)

    def stop(self) -> None:
        """Take the bar away."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
