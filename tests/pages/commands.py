"""Whether the command would accept a command line of a page: options, recipe, keys and values. Nothing is run."""

from __future__ import annotations

import contextlib
import re
import shlex
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from tests.pages.blocks import ROOT

OWN = {
    "recipe.yaml": "method: masksub\ndata: {name: digits}\nmodel: {name: vit_tiny_patch16_224}\ntrain: {epochs: 1}\n",
    "folder.yaml": "data: {name: folder, train: PATH, val_share: 0.2, image_size: 64}\n"
    "model: {name: vit_tiny_patch16_224}\ntrain: {epochs: 1}\n",
}
"""Stand for a recipe of the reader's: what is changed on the command line must go with one of them."""

STAND_IN = re.compile(r"[A-Z][A-Z_]*(/[A-Z]+)*|runs/.*|.*\.ya?ml")
"""What a page calls a recipe or a run of the reader's."""

ELLIPSIS = ("...", "key=value", "KEY=VALUE")


def masksub_commands(code: str) -> Iterator[tuple[int, list[str]]]:
    """The ``masksub`` commands of a shell script, also behind ``-m``: line from 0, and the words after the name."""
    for line, words in _commands(code):
        for at, word in enumerate(words):
            named = at == 0 or words[at - 1] in ("-m", "--module") or all("=" in each for each in words[:at])
            if word == "masksub" and named:
                yield line, words[at + 1 :]
                break


def check_command(words: Sequence[str], folder: Path = ROOT) -> None:
    """Parse ``masksub WORDS`` as the command does, and check what it says of a recipe.

    Args:
        words: the arguments.
        folder: where recipes are looked for that are neither packaged nor the reader's own.

    Raises:
        ValueError: the command would refuse it.
    """
    name, rest = _subcommand(words)
    if name is None:
        return
    try:
        values = _command().commands[name].make_context(name, list(rest)).params
    except Exception as error:
        if type(error).__name__ == "Exit":  # --help
            return
        raise ValueError(getattr(error, "message", None) or str(error)) from error
    if "recipe" in values:
        # Of what a sweep varies, the first value.
        varied = [re.split(r"[,:]", item.replace("=log:", "="))[0] for item in values.get("space") or ()]
        _check_recipe(str(values["recipe"]), [*(values.get("overrides") or ()), *varied], folder)
    if name == "sweep":
        from masksub.app.sweep.space import space_items

        keys = {key: values[key] for key in ("ratio", "weight")}
        space_items(**keys, stages=values["stages"] or [], space=values["space"] or [])
    if name == "compare" and values["arms"] not in (None, "all"):
        from masksub.app.experiment.arms import chosen_arms

        chosen_arms(values["arms"].split(","))
    if name == "inspect" and ":" not in values["model"] and not STAND_IN.fullmatch(values["model"]):
        import timm

        if not timm.is_model(values["model"]):
            raise ValueError(f"timm has no model {values['model']}")


def check_mention(words: Sequence[str]) -> None:
    """Check ``masksub WORDS`` in a sentence, where arguments may be left out: subcommand and names of options.

    Raises:
        ValueError: there is no such command or option.
    """
    name, rest = _subcommand(words)
    if name is None:
        return
    known = {option for each in _command().commands[name].params for option in [*each.opts, *each.secondary_opts]}
    for word in rest:
        if word.startswith("-") and word.partition("=")[0] not in known | {"--help"}:
            raise ValueError(f"masksub {name} has no option {word}")


def _command() -> Any:
    import typer.main

    from masksub.cli import app

    return typer.main.get_command(app)


def _subcommand(words: Sequence[str]) -> tuple[str | None, Sequence[str]]:
    """Name of the subcommand and what follows it; None where there is none, as in ``masksub --help``."""
    group = _command()
    known = {option for each in group.params for option in each.opts} | {"--help"}
    for at, word in enumerate(words):
        if not word.startswith("-"):
            if word not in group.commands:
                raise ValueError(f"masksub has no command {word}; it has {', '.join(sorted(group.commands))}")
            return word, words[at + 1 :]
        if word not in known:
            raise ValueError(f"masksub has no option {word} before the command")
    return None, ()


def _check_recipe(source: str, overrides: Sequence[str], folder: Path) -> None:
    """Raise what the recipe and the changes to it would raise."""
    from masksub.app.errors import InputError
    from masksub.app.recipe import load_recipe, packaged_recipes

    changes = [each for each in overrides if each not in ELLIPSIS]
    if source in packaged_recipes():
        load_recipe(source, changes)
    elif (folder / source).is_file():
        load_recipe(folder / source, changes)
    elif not STAND_IN.fullmatch(source):
        raise ValueError(f"{source} is no packaged recipe, no file of the repository, and no name for one's own")
    else:
        refused = []
        for name, text in OWN.items():
            with tempfile.TemporaryDirectory() as scratch:
                Path(scratch, name).write_text(text)
                try:
                    load_recipe(Path(scratch, name), changes)
                except InputError as error:
                    refused.append(error)
        if len(refused) == len(OWN):
            raise refused[0]


def _commands(code: str) -> Iterator[tuple[int, list[str]]]:
    """The simple commands of a script as words, redirections left out, each with its line from 0."""
    at = 0
    for line in code.replace("\\\n", "\f").split("\n"):  # a form feed stands for the end of a line that goes on
        text = re.sub(r"(^|\s)#.*", r"\1", line)
        tokens = shlex.shlex(text, posix=True, punctuation_chars="();<>|&")
        tokens.whitespace_split, tokens.commenters = True, ""
        tokens.whitespace += "\f"
        with contextlib.suppress(ValueError):  # a quote that goes on in the next line: none of what is looked for
            yield from ((at, words) for words in _simple(tokens))
        at += 1 + line.count("\f")


def _simple(tokens: Iterable[str]) -> Iterator[list[str]]:
    words: list[str] = []
    file_follows = False
    for token in tokens:
        if set(token) & set("<>") and set(token) <= set("<>&"):
            file_follows = True
        elif token and set(token) <= set("();|&"):
            yield words
            words = []
        elif file_follows:
            file_follows = False
        else:
            words.append(token)
    yield words
