"""The application, the options that several commands share, and how a result is printed.

What means the same is called the same in all commands: ``--out``, ``--quiet``, ``--json``, ``--seeds``, ``--jobs``,
``--ratio``. Names of before still work, hidden.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from .completion import complete_recipe, complete_recipe_or_run, complete_run, one_of

__all__ = [
    "DryRunOption",
    "JobsOption",
    "JsonOption",
    "OverridesArgument",
    "QuietOption",
    "RecipeArgument",
    "RecipeOrRunArgument",
    "RetryOption",
    "RunArgument",
    "RunsArgument",
    "StatisticsOption",
    "VersionsOption",
    "app",
    "numbers",
    "print_result",
    "renamed",
    "stop_if_none_complete",
]


_UsageError: Any = typer.BadParameter.__base__
"""Of Click, which newer versions of Typer bring within themselves."""


@contextlib.contextmanager
def _told_as_other_errors() -> Iterator[None]:
    """In one line, where Click would print four; the help for want of a command stays."""
    try:
        yield
    except _UsageError as error:
        if type(error).__name__ == "NoArgsIsHelpError":
            raise
        from masksub.app.errors import UsageMistake

        said = " ".join(error.format_message().split()).rstrip(".")
        command = error.ctx.command_path if error.ctx else "masksub"
        raise UsageMistake(f"{said[:1].lower()}{said[1:]} ({command} --help lists what is accepted)") from None


class _Commands(TyperGroup):
    """The group of all commands."""

    def make_context(self, *arguments: Any, **more: Any) -> Any:
        """Read the options that come before the command."""
        with _told_as_other_errors():
            return super().make_context(*arguments, **more)

    def get_params(self, ctx: Any) -> Any:
        """The options. Those for completion come from Typer, and are put in the words of the others."""
        found: list[Any] = [*super().get_params(ctx)]
        for parameter in found:
            if parameter.name == "install_completion":
                parameter.help = "Have this shell complete names on TAB."
            if parameter.name == "show_completion":
                parameter.hidden = True
        return _without_pydantic(found)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """A command by its name."""
        command = super().get_command(ctx, cmd_name)
        if command is not None:
            _without_pydantic(command.get_params(ctx), look=not ctx.resilient_parsing)
        return command

    def invoke(self, ctx: Any) -> Any:
        """Run a command. What Typer would swallow without a word is raised as what ``masksub.cli.main`` tells."""
        try:
            with _told_as_other_errors():
                return super().invoke(ctx)
        except KeyboardInterrupt as interrupt:
            from masksub.app.interrupt import InterruptedRun

            raise InterruptedRun(signal.SIGINT, "interrupted") from interrupt
        except BrokenPipeError as error:
            if not _reader_is_gone():
                raise RuntimeError(f"a connection to another process broke: {error}") from error
            # As of ``masksub recipes | head -1``. Python would complain once more at its end.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(128 + signal.SIGPIPE) from None


def _reader_is_gone() -> bool:
    """Whether nobody reads standard output any more."""
    poll = select.poll()
    try:
        poll.register(sys.stdout.fileno(), select.POLLOUT)
    except OSError:  # not a file, where a program has put its own in place
        return False
    return any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0))


def _without_pydantic(parameters: list[Any], look: bool = True) -> list[Any]:
    """Parameters that need no pydantic where it can be done without: newer versions of Typer check values by it.

    Args:
        parameters: of a command.
        look: False on TAB, when the values don't matter.
    """
    for parameter in parameters:
        if getattr(parameter, "is_flag", False) and parameter.default is None:
            parameter.default = False
        if not look:
            parameter.process_value = lambda ctx, value: value
    return parameters


app = typer.Typer(
    cls=_Commands,
    help="Strong masking inside supervised training. Example: masksub demo",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"max_content_width": 100, "help_option_names": ["-h", "--help"]},
)

RecipeArgument = Annotated[
    str, typer.Argument(metavar="RECIPE", help="A YAML file or a packaged recipe.", autocompletion=complete_recipe)
]
RecipeOrRunArgument = Annotated[
    str,
    typer.Argument(
        metavar="RECIPE",
        help="A YAML file, a packaged recipe, or a run folder.",
        autocompletion=complete_recipe_or_run,
    ),
]
RunArgument = Annotated[Path, typer.Argument(metavar="RUN", help="A run folder.", autocompletion=complete_run)]
RunsArgument = Annotated[list[Path], typer.Argument(metavar="RUN", help="Run folders.", autocompletion=complete_run)]
OverridesArgument = Annotated[
    list[str] | None, typer.Argument(metavar="KEY=VALUE", help="Changes to the recipe.", show_default=False)
]
JobsOption = Annotated[
    int | None, typer.Option("--jobs", min=1, metavar="N", help="Processes at a time; one a GPU, or up to 4.")
]
StatisticsOption = Annotated[
    str,
    typer.Option(
        "--statistics", metavar="NAME", help="Interval: t or bootstrap.", autocompletion=one_of("t", "bootstrap")
    ),
]
VersionsOption = Annotated[
    bool, typer.Option("--mixed-versions", help="Use runs of other versions, too, not only name them.")
]
DryRunOption = Annotated[bool, typer.Option("--dry-run", help="Plan, FLOPs and time; writes nothing.")]
RetryOption = Annotated[bool, typer.Option("--retry-failed", help="Train diverged runs again, as after an update.")]
QuietOption = Annotated[bool, typer.Option("--quiet", "-q", help="Say nothing but warnings and results.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print the result as JSON, and nothing else.")]


@app.callback(invoke_without_command=True)
def _options(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
    as_json: Annotated[bool, typer.Option("--json", hidden=True)] = False,
    debug: Annotated[
        bool, typer.Option("--debug", help="Show the traceback of an error; after a command, too.")
    ] = False,
) -> None:
    from masksub.app.errors import InputError

    if version:
        print_result(_versions(), as_json, _versions()["masksub"])
        raise typer.Exit
    if as_json:
        raise InputError("--json comes after the command: masksub COMMAND --json")
    if context.invoked_subcommand is None:
        raise InputError("a command is missing: masksub --help lists them")


def _versions() -> dict[str, str]:
    import platform
    from importlib import metadata

    from masksub import __version__

    found = {"masksub": __version__, "python": platform.python_version()}
    for name in ("torch", "timm", "transformers", "accelerate", "lightning"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def print_result(result: Any, as_json: bool, text: str) -> None:
    """Print a result for people, or as JSON for programs."""
    typer.echo(json.dumps(result, indent=2) if as_json else text)


def stop_if_none_complete(complete: list[bool], what: str) -> None:
    """After the result is told: a script must not take it for one.

    Args:
        complete: of each run, setting or step: whether anything of it is complete.
        what: they are.

    Raises:
        StoppedError: there are some, and not one is complete.
    """
    from masksub.app.errors import StoppedError

    if complete and not any(complete):
        raise StoppedError(f"not one of the {len(complete)} {what} was completed: there is nothing to compare")


def renamed(old: str, old_value: Any, new: str, new_value: Any) -> Any:
    """The value of an option that had another name before.

    Raises:
        InputError: both names are given.
    """
    from masksub.app.errors import InputError

    if old_value is not None and new_value is not None:
        raise InputError(f"{old} is the former name of {new}: give one of them")
    return new_value if old_value is None else old_value


def numbers(option: str, text: str) -> tuple[float, ...]:
    """The numbers of an option.

    Raises:
        InputError: something that is no number.
    """
    from masksub.app.errors import InputError

    try:
        return tuple(float(each) for each in text.split(","))
    except ValueError:
        raise InputError(f"{option} {text}: must be numbers with commas, such as 0.25,0.5") from None
