"""The command: arguments in, a call into ``app``, an exit code out.

Exit codes: 0 done, 2 wrong input, 1 failure, 130 or 143 stopped by a signal with a checkpoint written.
"""

from __future__ import annotations

import os
import sys

try:
    from . import planning, runs, studies
    from .options import app
except ImportError as error:
    if error.name != "typer":
        raise
    sys.exit("the masksub command needs more than the library: pip install 'masksub[app]'")

__all__ = ["app", "main", "planning", "runs", "studies"]


def main() -> None:
    """Run the command and exit with its code."""
    debug = "--debug" in sys.argv[1:]
    try:
        app()
    except Exception as error:
        if debug:
            raise
        sys.exit(_code(error))


def _code(error: Exception) -> int:
    """Tell an error in one message; the exit code that goes with it."""
    from masksub.app.errors import InputError
    from masksub.app.interrupt import InterruptedRun

    if isinstance(error, InterruptedRun):
        print(error, file=sys.stderr)  # noqa: T201
        return 128 + error.signum
    if isinstance(error, ImportError) and error.name and not error.name.startswith("masksub"):
        extra = _EXTRAS.get(error.name.split(".")[0], "app")
        print(f"error: {error.name} is not installed: pip install 'masksub[{extra}]'", file=sys.stderr)  # noqa: T201
        return 1
    hint = "" if isinstance(error, (InputError, RuntimeError, OSError)) else " (masksub --debug ... shows where)"
    rank = os.environ.get("RANK", "0")
    whose = "" if rank == "0" else f" in process {rank}"
    print(f"error{whose}: {error or type(error).__name__}{hint}", file=sys.stderr)  # noqa: T201
    return 2 if isinstance(error, InputError) else 1


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
