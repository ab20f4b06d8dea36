"""The YAML of recipes: read with the place of every value and every mistake, and written.

A *path* is the keys from the top of a recipe down to one value. YAML is read as version 1.2 reads it: 1e-3 is a number,
dates and 1:30 are text. Version 1.1 takes an unquoted yes, no, on or off for a boolean and 1.2 takes it for text; here
it is a mistake. Nothing but plain values is ever made, whatever tags a file has.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from typing import Any, NamedTuple

import yaml

from masksub.app.errors import InputError

__all__ = ["Keys", "Place", "RecipeText", "dotted", "shown", "write_yaml"]

Keys = tuple[str | int, ...]
_TAG = "tag:yaml.org,2002:"
_MAX_DEPTH, _MAX_VALUES = 20, 2_000  # far above any recipe; a few lines with anchors can stand for billions of values
_KEYS = ("str", "yes-or-text", "merge")
_KINDS = (  # what an unquoted scalar is, with the characters that it begins with
    ("null", r"(~|null|Null|NULL|)$", ["~", "n", "N", ""]),
    ("bool", r"(true|True|TRUE|false|False|FALSE)$", "tTfF"),
    ("yes-or-text", r"(?i:yes|no|on|off)$", "yYnNoO"),
    ("int", r"[-+]?[0-9][0-9_]*$", "-+0123456789"),
    ("float", r"[-+]?(\.[0-9]+|[0-9][0-9_]*(\.[0-9_]*)?)([eE][-+]?[0-9]+)?$", "-+.0123456789"),
    ("float", r"([-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN))$", "-+."),
    ("merge", r"<<$", "<"),
)


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers = {}  # noqa: RUF012 (PyYAML's name)


class _Dumper(yaml.SafeDumper):
    yaml_implicit_resolvers = {}  # noqa: RUF012


for _kind, _pattern, _first in _KINDS:  # one table for both, so that what is written is read back as the same
    for _class in (_Loader, _Dumper):
        _class.add_implicit_resolver(_TAG + _kind, re.compile(_pattern), list(_first))


def write_yaml(plain: dict[str, Any]) -> str:
    """YAML that reads back as the same values, keys in their order."""
    return yaml.dump(plain, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)


def dotted(path: Keys) -> str:
    """A path as people write it: data.mean[1]."""
    return "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in path).removeprefix(".")


def shown(value: Any) -> str:
    """A value as in a message, on one line and not too long."""
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:57]}..."


class Place(NamedTuple):
    """Where a value was written: a line of the file, or an item of the command line."""

    text: str
    order: int
    sets: Keys | None = None  # what the item of the command line sets


class RecipeText:
    """A recipe as plain values, with the place of each, and all mistakes so far.

    Attributes:
        data: the values. Where one could not be read there is a mapping that no key accepts.
        bad: where a value could not be read; a note tells why.
        mistakes: what to tell the user, with the order.
    """

    def __init__(self, name: str, text: str) -> None:
        """Read the file ``name`` with this text.

        Raises:
            InputError: not YAML at all, empty, or no mapping.
        """
        top = Place(name, 0)
        self.bad: set[Keys] = set()
        self.mistakes: dict[str, int] = {}
        self._places: dict[Keys, Place] = {(): top}
        self._values = 0
        node = self._compose(text, top)
        if not isinstance(node, yaml.MappingNode):
            what = "is empty" if node is None or node.tag == _TAG + "null" else "is not a mapping"
            self.note(top, f"the recipe {what}: it needs sections of keys and values, at least model: and train:")
            raise self.error()
        self.data: dict[str, Any] = self._value(node, (), lambda node: Place(f"{name}:{_line(node)}", _line(node)))

    def note(self, place: Place, text: str) -> None:
        """Remember a mistake."""
        self.mistakes.setdefault(f"{place.text}: {text}", place.order)

    def error(self) -> InputError:
        """All mistakes, in the order of their places."""
        lines = sorted(self.mistakes, key=self.mistakes.__getitem__)
        return InputError("\n".join([f"{len(lines)} mistakes in the recipe:", *lines] if lines[1:] else lines))

    def place(self, path: Keys) -> Place:
        """Where a value was written; of one that was not, where its section was."""
        return next(self._places[path[:n]] for n in range(len(path), -1, -1) if path[:n] in self._places)

    def label(self, path: Keys) -> str:
        """Name of a value for a message, empty where the place already names it."""
        return "" if not path or self.place(path).sets == path else dotted(path)

    def override(self, item: str, number: int) -> None:
        """Take the item ``key.path=value`` of the command line.

        Raises:
            InputError: the value is no YAML.
        """
        name, equals, text = item.partition("=")
        path = tuple(name.strip().split("."))
        place = Place(f"command line: {item}", 10**9 + number, path)
        if not equals or not all(path):
            self.note(place, "must be key=value, such as optim.lr=1e-3")
            return
        node = self._compose(text, place)
        parent: Any = self.data
        for depth, key in enumerate(path[:-1], 1):
            if parent.get(key) is None:
                parent[key] = {}
            parent = parent[key]
            if not isinstance(parent, dict):
                self.note(place, f"{dotted(path[:depth])} is {shown(parent)}, which has no keys; set it whole")
                return
        self._put(path, place)
        parent[path[-1]] = None if node is None else self._value(node, path, lambda node: place)

    def _put(self, path: Keys, place: Place) -> None:
        """A value is written at ``place``; what was known of an earlier value there and below is forgotten."""
        self.bad = {old for old in self.bad if old[: len(path)] != path}
        self._places = {old: kept for old, kept in self._places.items() if old[: len(path)] != path}
        self._places[path] = place

    def _compose(self, text: str, place: Place) -> yaml.Node | None:
        """Nodes of a text. What is no YAML ends the reading: what follows it can't be told."""
        where, problem = place.text, "nested too deeply"
        try:
            return yaml.compose(text, Loader=_Loader)
        except RecursionError:
            pass
        except (yaml.YAMLError, ValueError, OverflowError) as error:
            problem = getattr(error, "problem", None) or str(error).splitlines()[0]
            mark = getattr(error, "problem_mark", None)
            if mark and place.sets is None:
                where += f":{mark.line + 1}:{mark.column + 1}"
        self.note(place._replace(text=where), f"not valid YAML: {problem}")
        raise self.error()

    def _value(self, node: yaml.Node, path: Keys, at: Callable[[yaml.Node], Place]) -> Any:
        self._values += 1
        if len(path) > _MAX_DEPTH or self._values > _MAX_VALUES:
            self.note(self.place(path), "nested too deeply or too long for a recipe; does an anchor contain itself?")
            raise self.error()
        kind = node.tag.removeprefix(_TAG)
        if isinstance(node, yaml.MappingNode) and kind == "map":
            return self._mapping(node, path, at)
        if isinstance(node, yaml.SequenceNode) and kind == "seq":
            items = [((*path, index), item) for index, item in enumerate(node.value)]
            self._places |= {below: at(item) for below, item in items}
            return [self._value(item, below, at) for below, item in items]
        try:
            return _scalar(node, kind)
        except ValueError as error:
            self.note(self.place(path), ": ".join(filter(None, (self.label(path), str(error)))))
        self.bad.add(path)
        return {"": None}

    def _mapping(self, node: yaml.MappingNode, path: Keys, at: Callable[[yaml.Node], Place]) -> dict[str, Any]:
        result: dict[str, Any] = {}
        for key, value in node.value:  # merged values first: the mapping's own go before them
            if key.tag == _TAG + "merge":
                result = self._merged(value, path, at)
        lines: dict[str, int] = {}
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode) or key.tag.removeprefix(_TAG) not in _KEYS:
                what = key.value if isinstance(key, yaml.ScalarNode) else "a list or mapping"
                self.note(at(key), f"{what} can't be a key: keys are text")
            elif key.value in lines:
                name = dotted((*path, key.value))
                self.note(at(key), f"{name} is given twice, in lines {lines[key.value]} and {_line(key)}")
            else:
                lines[key.value] = _line(key)
                if key.tag != _TAG + "merge":
                    self._put((*path, key.value), at(key))
                    result[key.value] = self._value(value, (*path, key.value), at)
        return result

    def _merged(self, node: yaml.Node, path: Keys, at: Callable[[yaml.Node], Place]) -> dict[str, Any]:
        """Values of ``<<``: a mapping, or a list of them in which the first goes before the others."""
        result: dict[str, Any] = {}
        for part in node.value[::-1] if isinstance(node, yaml.SequenceNode) else [node]:
            if isinstance(part, yaml.MappingNode):
                result |= self._value(part, path, at)
            else:
                self.note(at(part), "<< must have a mapping, or a list of mappings")
        return result


def _line(node: yaml.Node) -> int:
    return node.start_mark.line + 1


def _scalar(node: yaml.Node, kind: str) -> str | int | float | bool | None:
    """The value of a scalar; ValueError with what is wrong."""
    text = node.value
    if not isinstance(node, yaml.ScalarNode) or kind not in ("str", *(kind for kind, _, _ in _KINDS)):
        tag = node.tag.replace(_TAG, "!!")
        raise ValueError(f"{tag} is refused: a recipe holds only text, numbers, true, false, null, lists and mappings")
    if kind == "yes-or-text":
        raise ValueError(f'{text} has two readings: write true or false, or "{text}" in quotes for the text')
    if kind == "bool" and text.lower() not in ("true", "false"):
        raise ValueError(f"{text} must be true or false")
    if kind == "bool":
        return bool(text.lower() == "true")
    if kind == "int" and len(text) > 40:
        raise ValueError(f"{text[:20]}... has too many digits")
    if kind == "int":
        return int(text.replace("_", ""))
    if kind == "float":
        number = float(re.sub(r"_|\.(?=inf|nan)", "", text.lower()))
        if not math.isfinite(number):
            raise ValueError(f"{text} must be a finite number")
        return number
    try:  # JSON, which is YAML too, writes a rare character as a pair of surrogates
        whole = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le")
    except UnicodeDecodeError:
        raise ValueError("holds half a character: a surrogate without its other half") from None
    return None if kind == "null" else str(whole)
