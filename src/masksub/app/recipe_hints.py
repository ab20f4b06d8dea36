"""What a recipe accepts at a place, in words, and the keys that a wrong one may stand for: from the JSON schema."""

from __future__ import annotations

import difflib
import functools
from collections.abc import Iterable
from typing import Any

from masksub.app.recipe_yaml import Keys, dotted
from masksub.app.settings import Recipe

__all__ = ["accepted", "advice", "nearest", "schema", "schema_at", "value_at"]

_Schema = dict[str, Any]
_TYPES = {
    "number": "a number",
    "integer": "a whole number",
    "string": "text",
    "boolean": "true or false",
    "null": "null",
    "object": "a mapping of keys to values",
}
_BOUNDS = {"minimum": "at least", "exclusiveMinimum": "above", "maximum": "at most", "exclusiveMaximum": "below"}


@functools.cache
def schema() -> _Schema:
    """JSON schema of a recipe; not to be changed."""
    found = Recipe.model_json_schema()
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **found, "title": "masksub recipe"}


def value_at(path: Keys, data: Any) -> Any:
    """The value at a path; None where there is none."""
    for key in path:
        if isinstance(data, dict):
            data = data.get(key)
        else:
            data = data[key] if isinstance(data, list) and isinstance(key, int) and key < len(data) else None
    return data


def schema_at(path: Keys, data: Any) -> _Schema:
    """Schema of the value at a path; empty where there is none."""
    found = schema()
    for key in path:
        found = _branch(found, data)
        if isinstance(key, int):
            items = found.get("prefixItems", [])
            found = items[key] if key < len(items) else found.get("items", {})
        elif key == found.get("discriminator", {}).get("propertyName"):
            found = {"enum": list(found["discriminator"]["mapping"])}
        else:
            found = found.get("properties", {}).get(key, {})
        data = value_at((key,), data)
    return found


def _branch(part: _Schema, value: Any) -> _Schema:
    """What a reference refers to, and the branch of a union that a mapping or a list must mean."""
    if "$ref" in part:
        return dict(schema()["$defs"][part["$ref"].rpartition("/")[2]])
    if "discriminator" in part and isinstance(value, dict):
        by_tag, tag = part["discriminator"]["mapping"], value.get(part["discriminator"]["propertyName"])
        if isinstance(tag, str) and tag in by_tag:
            return _branch({"$ref": by_tag[tag]}, value)
        return part
    for option in part.get("anyOf", ()):
        if isinstance(value, dict) and "discriminator" in option:
            return _branch(option, value)
        if isinstance(value, list) and option.get("type") == "array":
            return dict(option)
    return part


def accepted(part: _Schema) -> str:
    """What a schema accepts, in words."""
    if "anyOf" in part:
        return ", or ".join(accepted(option) for option in part["anyOf"])
    if "$ref" in part:
        required = _branch(part, None).get("required")
        return "a section of keys and values" + (f", at least {' and '.join(required)}" if required else "")
    if "discriminator" in part:
        tag, by_tag = part["discriminator"]["propertyName"], part["discriminator"]["mapping"]
        return f"a mapping with {tag}: {_one_of(by_tag)}"
    if "enum" in part or "const" in part:
        return _one_of(part.get("enum") or [part["const"]])
    words = _TYPES.get(part.get("type", ""), "")
    if part.get("type") == "array":
        items = part.get("prefixItems") or [part.get("items", {})]
        count = f" of {len(items)}" if "prefixItems" in part else ""
        return f"a list{count}, each {accepted(items[0])}"
    bounds = [f"{word} {part[key]:.10g}" for key, word in _BOUNDS.items() if key in part]
    return f"{words}, {' and '.join(bounds)}" if bounds else words


def _one_of(values: Iterable[Any]) -> str:
    *first, last = map(str, values)
    return f"{', '.join(first)} or {last}" if first else last


def nearest(path: Keys, data: Any) -> list[Keys]:
    """Valid keys that the unknown one at ``path`` may stand for, at most three, the likeliest first."""
    section, key = path[:-1], str(path[-1])
    here = _keys(section, data)
    same = [(*place, key) for place, names in _sections().items() if key in names and place != section]
    found = [(*section, name) for name in difflib.get_close_matches(key, here, 3, 0.75)] + same
    if not found:
        found = [(*section, name) for name in difflib.get_close_matches(key, here, 1, 0.6)]
    if not found:
        elsewhere = {name: (*place, name) for place, names in _sections().items() for name in names}
        found = [elsewhere[name] for name in difflib.get_close_matches(key, elsewhere, 1, 0.65)]
    return found[:3]


def advice(path: Keys, near: list[Keys], data: Any) -> str:
    """What to write in place of the unknown key at ``path``."""
    section = path[:-1]
    names = [dotted(keys) + ("" if keys[:-1] == section else f" ({_section_name(keys[:-1])})") for keys in near]
    if names:
        return f"did you mean {_one_of(names)}?"
    return f"the keys of {_section_name(section)} are {', '.join(_keys(section, data))}"


def _keys(section: Keys, data: Any) -> list[str]:
    """The keys that are valid in a section."""
    return list(_branch(schema_at(section, data), value_at(section, data)).get("properties", {}))


def _section_name(section: Keys) -> str:
    return f"section {dotted(section)}" if section else "the top level"


def _sections() -> dict[Keys, list[str]]:
    """The keys of every section, and of the top."""
    top = schema()["properties"]
    return {(): list(top)} | {
        (name,): list(_branch(field, None)["properties"]) for name, field in top.items() if "$ref" in field
    }
