"""Recipes: found, checked as a whole, and written with every value resolved.

The classes of ``masksub.app.settings`` say what is valid. This module adds what a person needs when something is not:
the line, the value, what is accepted, the nearest key, and every mistake in one message.
"""

from __future__ import annotations

import copy
import difflib
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from masksub.app import recipe_yaml
from masksub.app.errors import InputError
from masksub.app.packaged import FOLDER, packaged_recipes
from masksub.app.recipe_hints import accepted, advice, nearest, schema, schema_at, value_at
from masksub.app.recipe_yaml import Keys, RecipeText, dotted, shown
from masksub.app.settings import Recipe

__all__ = ["dump_recipe", "load_recipe", "packaged_recipes", "recipe_schema"]

_REQUIRED: dict[str, dict[str, Any]] = {
    "model": {"name": "any"},
    "train": {"epochs": 1},
}  # stand-ins while the rest is checked


def load_recipe(source: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe and check all of it.

    Args:
        source: a file, or the name of a packaged recipe ("digits/vit_micro"); a file of that name comes first.
        overrides: items ``key.path=value``, the value in YAML. Each replaces the whole value at its place; of two for
            the same place the last one counts.

    Raises:
        InputError: no such recipe, or mistakes in it: each on a line with its place and what is accepted.
    """
    file = Path(source) if Path(source).is_file() else _packaged(source)
    try:
        text = RecipeText(str(file), file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{file}: can't be read: {error}") from error
    for number, item in enumerate(overrides):
        text.override(item, number)
    for key, field in schema()["properties"].items():
        if "$ref" in field and text.data.get(key, ...) is None:
            text.data[key] = {}  # a section with all its keys commented out
    return _check(text)


def dump_recipe(recipe: Recipe) -> str:
    """YAML of a recipe with every value resolved, in the order of the classes; loads back to an equal recipe."""
    return recipe_yaml.write_yaml(recipe.model_dump(mode="json"))


def recipe_schema() -> dict[str, Any]:
    """JSON schema of a recipe, with the description of each key.

    An editor with a YAML language server completes and checks a recipe whose first line names a file with this schema:
    ``# yaml-language-server: $schema=recipe.schema.json``.
    """
    return copy.deepcopy(schema())


def _packaged(source: str | Path) -> Path:
    recipes = packaged_recipes()
    name = str(source).replace("\\", "/").removesuffix(".yaml")
    if name in recipes:
        return recipes[name]
    near = difflib.get_close_matches(name, recipes, 3, 0.5)
    nearest = f"nearest: {', '.join(near)}; " if near else ""
    looked = f"{Path(source).absolute()} is {'a folder' if Path(source).is_dir() else 'no file'}"
    raise InputError(
        f"no recipe {str(source)!r}: {looked}, and the packaged recipes in {FOLDER} have none of that name; "
        f"{nearest}`masksub recipes` lists them"
    )


def _check(text: RecipeText) -> Recipe:
    """The recipe of these values, or all mistakes.

    pydantic skips a rule about several values while one of them is wrong. So what is wrong is taken out, defaults stand
    in, and the rest is checked again until nothing new turns up. A rule's message names the values that it reads: one
    that names a value that was taken out is not told.
    """
    removed = set(text.bad)
    while True:
        try:  # as JSON: strict validation of Python values refuses a list where the settings hold a tuple
            recipe = Recipe.model_validate_json(json.dumps(_without(text.data, removed)), strict=True)
        except ValidationError as error:
            new = set(_note(error, text, removed)) - removed
            if not new:
                raise text.error() from None
            removed |= new
        else:
            if text.mistakes:
                raise text.error()
            return recipe


def _without(data: dict[Any, Any], removed: set[Keys]) -> dict[str, Any]:
    """A copy without these values, or their key where they lie deeper, and with a stand-in where one is required."""
    data = copy.deepcopy(data)
    for section, *rest in removed:
        if rest and isinstance(data.get(section), dict):
            data[section].pop(rest[0], None)
        elif not rest:
            data.pop(section, None)
    for section, needed in _REQUIRED.items():
        for key, value in needed.items():
            if {(section,), (section, key)} & removed:
                data.setdefault(section, {}).setdefault(key, value)
    return data


def _note(error: ValidationError, text: RecipeText, removed: set[Keys]) -> Iterator[Keys]:
    """Note what pydantic found, except what only follows from values that were taken out; yields the paths."""
    hidden = set(removed)
    mistakes = [_located(item, text.data) for item in error.errors()]
    for path, kind, value in sorted(mistakes, key=lambda mistake: mistake[1] != "extra_forbidden"):
        label, valid = text.label(path), schema_at(path, text.data)
        if kind == "value_error":
            for at, message in _rules(str(value), path, text.data):
                if not any(re.search(rf"(?<![\w.]){re.escape(dotted(gone))}(?!\w)", message) for gone in hidden):
                    text.note(text.place(at), message)
                    yield at
            continue
        if path in hidden or _is_outdone(path, kind, value, mistakes):
            continue
        if kind == "extra_forbidden":
            near = nearest(path, text.data)
            if len(near) == 1 and value_at(near[0], text.data) is None:
                hidden.add(near[0])  # misspelt: that the right key is now missing is no second mistake
                yield near[0]
            message = ": ".join(filter(None, (label, f"no such key; {advice(path, near, text.data)}")))
        elif kind == "missing":
            message = f"{dotted(path)} is missing: must be {accepted(valid)}"
        else:
            close = isinstance(value, str) and difflib.get_close_matches(value, map(str, valid.get("enum", ())), 1)
            hint = f"; did you mean {close[0]}?" if close else ""
            message = f"{label and f'{label} = {shown(value)}: '}must be {accepted(valid) or kind}{hint}"
        text.note(text.place(path), message)
        yield path


def _located(item: Any, data: Any) -> tuple[Keys, str, Any]:
    """Path, kind and value of an error of pydantic, whose location also names the branches of unions."""
    path: Keys = ()
    value, kind, location = data, item["type"], item["loc"]
    for number, key in enumerate(location, 1):
        if key in value if isinstance(value, dict) else isinstance(value, list) and key in range(len(value)):
            path, value = (*path, key), value[key]
        elif kind == "missing" and number == len(location):
            if isinstance(value, list):  # too short
                return path, "too_short", value
            return (*path, key), kind, None
    if kind in ("union_tag_not_found", "union_tag_invalid"):
        tag = item["ctx"]["discriminator"].strip("'")
        return ((*path, tag), "tag", value[tag]) if tag in value else ((*path, tag), "missing", None)
    return path, kind, item["ctx"]["error"] if kind == "value_error" else value


def _is_outdone(path: Keys, kind: str, value: Any, mistakes: list[tuple[Keys, str, Any]]) -> bool:
    """Whether a mistake is "no number" for a mapping that was meant as the other branch of a union."""
    if kind in ("extra_forbidden", "missing") or not isinstance(value, dict):
        return False
    return any(at[: len(path)] == path and (len(at) > len(path) or other == "value_error") for at, other, _ in mistakes)


def _rules(message: str, section: Keys, data: Any) -> Iterator[tuple[Keys, str]]:
    """The lines of a validator's message, each with the path of the value that it begins with."""
    for line in message.splitlines():
        start = re.match(r"[a-z_]+(\.[a-z_]+)*", line)
        keys = tuple(start[0].split(".")) if start else ()
        known = [path for path in ((*section, *keys), keys) if keys and schema_at(path, data)]
        if start and known:
            yield known[0], dotted(known[0]) + line[start.end() :]
        else:
            yield section, f"{dotted(section)}: {line}" if section else line
