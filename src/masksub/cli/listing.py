"""Commands that only list: recipes and schema."""

from __future__ import annotations

import re
import shutil
import sys
from pathlib import Path

from masksub.app.packaged import packaged_recipes

from .options import JsonOption, QuietOption, app, print_result

__all__: list[str] = []


@app.command()
def recipes(quiet: QuietOption = False, as_json: JsonOption = False) -> None:
    """List the packaged recipes.

    What each needs and what the paper reports is in the head of its file; --json names the files, --quiet gives
    nothing but the names.

    Example: masksub recipes
    """
    found = [{"name": name, "path": str(path), "about": _about(path)} for name, path in packaged_recipes().items()]
    wide = max(len(each["name"]) for each in found)
    lines = [each["name"] if quiet else f"{each['name']:{wide}}  {each['about']}" for each in found]
    if sys.stdout.isatty():
        columns = shutil.get_terminal_size().columns
        lines = [line if len(line) <= columns else f"{line[: columns - 3].rstrip()}..." for line in lines]
    print_result(found, as_json, "\n".join(lines))


@app.command()
def schema(quiet: QuietOption = False, as_json: JsonOption = False) -> None:
    """JSON schema of a recipe, for editors. It is JSON in any case.

    An editor with a YAML language server completes and checks a recipe whose first line is
    "# yaml-language-server: $schema=recipe.schema.json".

    Example: masksub schema > recipe.schema.json
    """
    from masksub.app.recipe import recipe_schema

    print_result(recipe_schema(), True, "")


def _about(path: Path) -> str:
    """The first line of a recipe's head: what it is."""
    with path.open(encoding="utf-8") as file:
        return re.sub(r"^#\s*", "", file.readline()).strip()
