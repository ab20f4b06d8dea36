"""The command: arguments in, a call into ``app``, an exit code out.

Results go to standard output, with ``--json`` as nothing but JSON; progress, warnings and errors go to standard error.
Exit codes: 0 done, 2 wrong input, 1 failure, 130 or 143 stopped by a signal, 141 the reader of a result is gone.

Nothing heavy is imported before a command needs it: help, completion and lists come at once.
"""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .commands import app as app

__all__ = ["app", "main"]

_EXTRAS = {
    "datasets": "datasets",
    "transformers": "transformers",
    "optuna": "sweep",
    "psycopg": "sweep",
    "sqlalchemy": "sweep",
    "jinja2": "report",
    "plotly": "report",
}
"""Library -> the extra that brings it; all others come with the command itself."""

if not TYPE_CHECKING:

    def __getattr__(name: str) -> object:
        """``app``, loaded when it is asked for: an interrupt while it loads is then told in one line, too."""
        if name != "app":
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from .commands import app

        return app


def main() -> None:
    """Run the command and exit with its code. ``--debug`` counts wherever it stands among the options."""
    arguments = sys.argv[1:]
    end = arguments.index("--") if "--" in arguments else len(arguments)
    debug = "--debug" in arguments[:end]
    left = [word for word in arguments[:end] if word != "--debug"] + arguments[end:]
    code, went_well = _run(left, debug)
    if went_well and "masksub.app.devices" in sys.modules:
        from masksub.app.devices import leave_group

        leave_group()  # here, where no traceback holds what was trained
    sys.exit(code)


def _run(arguments: list[str], debug: bool) -> tuple[int | str | None, bool]:
    """The exit code, and whether all went well: done, or stopped on request with everything written."""
    try:
        from .commands import app

        app(args=arguments, prog_name="masksub")
    except SystemExit as done:
        return done.code, not done.code
    except (Exception, KeyboardInterrupt) as error:
        from masksub.app.errors import UsageMistake
        from masksub.app.interrupt import InterruptedRun

        if debug and not isinstance(error, UsageMistake):
            import traceback

            traceback.print_exception(error)
        return _tell(error), isinstance(error, InterruptedRun)
    return 0, True


def _tell(error: BaseException) -> int:
    """Tell an error in one message; the exit code that goes with it."""
    from masksub.app.errors import InputError
    from masksub.app.interrupt import InterruptedRun

    if isinstance(error, KeyboardInterrupt):
        _say("interrupted")
        return 130
    if isinstance(error, InterruptedRun):
        _say(str(error))
        return 128 + error.signum
    word = "\x1b[1;31merror\x1b[0m" if _colours() else "error"
    if isinstance(error, ImportError) and error.name and not error.name.startswith("masksub"):
        library = error.name.split(".")[0]
        whole = "the masksub command needs more than the library: " if library == "typer" else ""
        _say(f"{word}: {whole}{library} is not installed: pip install 'masksub[{_EXTRAS.get(library, 'app')}]'")
        return 1
    expected = isinstance(error, (InputError, RuntimeError, OSError))
    hint = "" if expected else " (the same command with --debug shows where)"
    rank = os.environ.get("RANK", "0")
    whose = "" if rank == "0" else f" in process {rank}"
    _say(f"{word}{whose}: {error or type(error).__name__}{hint}")
    return 2 if isinstance(error, InputError) else 1


def _say(text: str) -> None:
    print(text, file=sys.stderr)  # noqa: T201


def _colours() -> bool:
    """Whether standard error is a terminal that shows colours, and nobody asked for none (NO_COLOR)."""
    return sys.stderr.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
