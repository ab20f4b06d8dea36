"""The application, the arguments that several commands share, and how a result is printed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

app = typer.Typer(
    help="Strong masking inside supervised training: train, compare, decide.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

RecipeArgument = Annotated[str, typer.Argument(help="A YAML file, a packaged recipe's name, or a run folder.")]
RunArgument = Annotated[Path, typer.Argument(help="A run folder.")]
OverridesArgument = Annotated[
    list[str] | None, typer.Argument(help="Changes to the recipe: key=value.", metavar="[KEY=VALUE]...")
]
QuietOption = Annotated[bool, typer.Option("--quiet", "-q", help="Say nothing but warnings and results.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]


@app.callback(invoke_without_command=True)
def _options(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    if version:
        from masksub import __version__

        typer.echo(__version__)
        raise typer.Exit
    context.obj = {"debug": debug}


def print_result(result: Any, as_json: bool, text: str) -> None:
    """Print a result for people, or as JSON for programs."""
    typer.echo(json.dumps(result, indent=2) if as_json else text)


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
