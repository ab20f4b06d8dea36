"""Run a block of a page, each language in its way. What fails, fails with the page's name and line."""

from __future__ import annotations

import ast
import builtins
import contextlib
import inspect
import json
import keyword
import re
import subprocess
import sys
import textwrap
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from tests.pages.blocks import ROOT, Block
from tests.pages.commands import check_command, masksub_commands
from tests.pages.sandbox import Sandbox, small

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

SECONDS = 900


class BlockError(AssertionError):
    """A block of a page that doesn't work."""

    def __init__(self, page: str, line: int, message: str) -> None:
        super().__init__(f"{page}:{line}: {message}")
        self.line = line


class Page:
    """The blocks of one page, run one after the other: Python blocks share their names, all share the folder.

    Args:
        name: of the page, for messages.
        sandbox: where they are run.
    """

    def __init__(self, name: str, sandbox: Sandbox) -> None:
        self.name = name
        self.sandbox = sandbox
        self.namespace: dict[str, Any] = {"__name__": "page"}

    def run(self, block: Block) -> None:
        """Run a block, or check it where its language is not run; a block with a title is written to that file first.

        Raises:
            BlockError, or what a Python block raises: with the line of the page.
        """
        if block.title is not None and block.language == "diff":
            self._apply(block)
        elif block.title is not None:
            whole_recipe = block.language == "yaml" and {"model", "train"} <= (_loaded(block.code) or {}).keys()
            self.sandbox.write(block.title, small(block.code) if whole_recipe else block.code)
        RUNNERS[block.language](self, block)

    def _apply(self, block: Block) -> None:
        """A diff with a title changes that file, of the page or else of the repository."""
        assert block.title is not None
        own = self.sandbox.work / block.title
        source = own if own.exists() else ROOT / block.title
        if not source.is_file():
            raise self.error(block, 0, f"{block.title}: neither the page nor the repository has this file")
        try:
            changed = apply_diff(block.code, source.read_text(encoding="utf-8"))
        except ValueError as error:
            raise self.error(block, 0, f"{block.title}: {error}") from error
        self.sandbox.write(block.title, changed)

    def error(self, block: Block, line: int, message: str) -> BlockError:
        """An error at a line of the block, from 0."""
        return BlockError(self.name, block.line + line, message)


def check(page: str, block: Block) -> None:
    """Check what is not run as far as that goes: syntax, and each command of masksub.

    Raises:
        BlockError: with the line of the page.
    """
    if block.language == "python":
        _parsed(page, block, block.code)
    if block.language in ("bash", "console"):
        script = shell(block)
        found = subprocess.run(["bash", "-n"], input=script, capture_output=True, text=True, check=False)
        if found.returncode:
            raise BlockError(page, block.line, found.stderr)
        for line, words in masksub_commands(script):
            try:
                check_command(words)
            except ValueError as error:
                raise BlockError(page, block.line + line, f"masksub {' '.join(words)}: {error}") from error


def shell(block: Block) -> str:
    """The commands of a block, each on the line that it has there; of a console the lines after the prompt."""
    if block.language != "console":
        return block.code
    lines, goes_on = [], False
    for line in block.code.split("\n"):
        command = line[2:] if line.startswith("$ ") or (goes_on and line.startswith("> ")) else line if goes_on else ""
        goes_on = command.endswith("\\")
        lines.append(command)
    return "\n".join(lines)


def apply_diff(diff: str, text: str) -> str:
    """A text with the changes of a diff made, whose parts stand between lines that begin with @@.

    Raises:
        ValueError: a part that the text does not have, or has more than once.
    """
    for part in re.split(r"^(?:@@.*|--- .*|\+\+\+ .*)\n", diff, flags=re.M):
        lines = part.splitlines(keepends=True)
        before = "".join(line[1:] or "\n" for line in lines if not line.startswith("+"))
        after = "".join(line[1:] or "\n" for line in lines if not line.startswith("-"))
        if part.strip():
            if text.count(before) != 1:
                raise ValueError(f"these lines are there {text.count(before)} times, not once:\n{before}")
            text = text.replace(before, after)
    return text


def run_shell(page: Page, block: Block) -> None:
    """The block as a script that ends at the first command that fails."""
    page.sandbox.copy_repository(block.code)
    page.sandbox.make_runs(block.code)
    # The script has the page's name and as many lines before, so that the shell tells the page's line.
    script = page.sandbox.commands.parent / Path(page.name).name
    stop = """trap 'code=$?; echo "stopped at line $LINENO: exit code $code" >&2; exit $code' ERR"""
    script.write_text(stop + "\n" * (block.line - 1) + shell(block), encoding="utf-8")
    done = subprocess.run(
        ["bash", "-Eeuo", "pipefail", str(script)],
        cwd=page.sandbox.work,
        env=page.sandbox.environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    if done.returncode:
        at = re.search(r"stopped at line (\d+)", done.stderr) or re.search(r": line (\d+):", done.stderr)
        line = int(at[1]) - block.line if at else 0
        raise page.error(block, line, f"exit code {done.returncode}\n{done.stdout[-1500:]}{done.stderr[-3000:]}")


def run_python(page: Page, block: Block) -> None:
    """The block in the namespace of the page; tracebacks point into the page.

    Warnings are errors where the page's own lines or masksub give cause to them. What other libraries warn of among
    themselves (no GPU, few workers) a reader sees too, and need not be silenced on the page.
    """
    if block.title is not None and block.title.startswith(("src/", "tests/")):
        _parsed(page.name, block, block.code)  # belongs to a package: not a program
        return
    padded = "\n" * (block.line - 1) + block.code
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        warnings.filterwarnings("error", module=r"page$|masksub(\.|$)")
        exec(compile(padded, page.name, "exec", dont_inherit=True), page.namespace)


def check_yaml(page: Page, block: Block) -> None:
    """A recipe, or some sections of one, must be valid; YAML with none of a recipe's keys need only be YAML."""
    from masksub.app.errors import InputError
    from masksub.app.recipe import load_recipe, recipe_schema
    from tests.pages.sandbox import RECIPE

    try:
        found = _loaded(block.code)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        raise page.error(block, mark.line if mark else 0, str(error)) from error
    if not isinstance(found, dict) or not found.keys() & recipe_schema()["properties"].keys():
        return
    text = block.code
    if not {"model", "train"} <= found.keys():
        rest = {key: value for key, value in yaml.safe_load(small(RECIPE)).items() if key not in found}
        for key in ("model", "train"):
            if key in found:
                found[key] = {**yaml.safe_load(small(RECIPE))[key], **found[key]}
        text = yaml.safe_dump({**rest, **found})
    path = page.sandbox.commands.parent / Path(page.name).with_suffix(".yaml").name
    path.write_text("\n" * (block.line - 1) + text, encoding="utf-8")
    try:
        load_recipe(path)
    except InputError as error:
        at = re.search(r"\.yaml:(\d+)", str(error))
        raise page.error(block, int(at[1]) - block.line if at else 0, str(error)) from error


def check_json(page: Page, block: Block) -> None:
    """JSON; or one object a line, as in ``metrics.jsonl``."""
    try:
        json.loads(block.code)
    except ValueError as error:
        try:
            for line in block.code.splitlines():
                json.loads(line)
        except ValueError:
            raise page.error(block, getattr(error, "lineno", 1) - 1, str(error)) from error


def check_toml(page: Page, block: Block) -> None:
    try:
        tomllib.loads(block.code)
    except tomllib.TOMLDecodeError as error:
        raise page.error(block, 0, str(error)) from error


def check_diff(page: Page, block: Block) -> None:
    """Each line is context, taken away or added; both sides are Python, and what is imported from masksub is there."""
    if block.title is not None:
        return  # it was applied
    parts: list[tuple[int, list[str], list[str]]] = [(0, [], [])]
    for number, line in enumerate(block.code.rstrip("\n").split("\n")):
        _, before, after = parts[-1]
        if line.startswith(("--- ", "+++ ", "@@")):
            parts.append((number + 1, [], []))
            continue
        if line and line[0] not in " +-":
            raise page.error(block, number, f"{line!r} is neither context (' ') nor taken away ('-') nor added ('+')")
        before.append("" if line.startswith("+") else line[1:])
        after.append("" if line.startswith("-") else line[1:])
    if all(before == after for _, before, after in parts):
        raise page.error(block, 0, "nothing is changed")
    for first, before, after in parts:
        part = replace(block, line=block.line + first)
        _parsed(page.name, part, _closed(before))
        for node in ast.walk(_parsed(page.name, part, _closed(after))):
            if isinstance(node, (ast.Import, ast.ImportFrom)) and "masksub" in ast.unparse(node):
                line = "\n" * (part.line + node.lineno - 2) + ast.unparse(node)
                exec(compile(line, page.name, "exec"), {})


def unknown_names(diff: str, known: set[str], others_of_page: str = "") -> set[str]:
    """Names on the added lines of a diff that a reader would not have.

    Args:
        known: names of the page's example, which runs. Known besides are those on the diff's other lines, those that
            its added lines assign or define, and what it imports from masksub, with attributes and parameters.
        others_of_page: the page's other diffs, whose imports hold here too.
    """
    added = [line[1:] for line in diff.splitlines() if line.startswith("+")]
    others = "\n".join(line[1:] for line in diff.splitlines() if line[:1] in (" ", "-"))
    namespace: dict[str, Any] = {}
    for line in (*added, *others.splitlines(), *(line[1:] for line in others_of_page.splitlines())):
        if re.match(r"\s*(import|from) masksub", line):
            exec(line.strip(), namespace)
    namespace.pop("__builtins__", None)
    for name, value in namespace.items():
        known = known | {name} | set(dir(value))
        for each in (value, *(getattr(value, attribute, None) for attribute in dir(value) if attribute[0] != "_")):
            with contextlib.suppress(TypeError, ValueError):  # not callable, or written in C
                known |= set(inspect.signature(each).parameters)
    own = {name for line in added for name in re.findall(r"^\s*(?:(?:class|def) )?(\w+)(?:\s*=[^=]|\(.*:)", line)}
    new = {name for line in added if not re.match(r"\s*(import|from) ", line) for name in names_in(line)}
    return new - own - names_in(others) - known - set(keyword.kwlist) - set(dir(builtins))


def names_in(code: str) -> set[str]:
    """All names of a piece of Python, without those in strings and comments."""
    return set(re.findall(r"[A-Za-z_]\w*", re.sub(r"\"[^\"\n]*\"|'[^'\n]*'|#.*", "", code)))


RUNNERS: dict[str, Callable[[Page, Block], None]] = {
    "python": run_python,
    "bash": run_shell,
    "console": run_shell,
    "yaml": check_yaml,
    "toml": check_toml,
    "json": check_json,
    "diff": check_diff,
}


def _closed(lines: list[str]) -> str:
    """The lines as a text; a call whose end is not shown is closed."""
    text = textwrap.dedent("\n".join(lines))
    depth = sum(text.count(bracket) for bracket in "([{") - sum(text.count(bracket) for bracket in ")]}")
    return text + "\n)" if depth == 1 else text


def _loaded(text: str) -> Any:
    return yaml.safe_load(text)


def _parsed(page: str, block: Block, code: str) -> ast.Module:
    try:
        return ast.parse(textwrap.dedent(code))
    except SyntaxError as error:
        raise BlockError(page, block.line + (error.lineno or 1) - 1, f"not Python: {error}") from error
