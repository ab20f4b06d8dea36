"""The table of ``docs/masking.md``, from the adapters and what the zoo found: ``python -m docs_build.families``."""

from __future__ import annotations

import json
import re
from pathlib import Path

from masksub.adapters import FAMILIES

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "masking.md"
ZOO = ROOT / "benchmarks" / "results" / "zoo.json"
BEGIN = "<!-- families: made by `python -m docs_build.families`, not to be edited by hand -->"
END = "<!-- end of families -->"

WAYS = {
    "drop": "Tokens are dropped",
    "fill": "Cells are filled",
    "replace": "Tokens are replaced by the mask token",
    "pixels": "Pixels are blanked",
}
CATCH_ALL = "pixels"  # matches whatever no other family does


def table() -> str:
    """The families that come with the package, those with the best way of masking first."""
    rows: dict[str, dict[str, str]] = json.loads(ZOO.read_text(encoding="utf-8"))["rows"]
    families: dict[str, set[str]] = {}
    for row, found in rows.items():
        families.setdefault(row.partition(",")[0], set()).add(found["family"])
    members: dict[str, set[str]] = {}
    for row, found in rows.items():
        name, _, variant = row.partition(", ")
        shown = name.partition(":")[2]
        if variant and len(families[name]) > 1:  # its other variants are masked elsewhere
            shown += f" ({variant})"
        members.setdefault(found["family"], set()).add(shown)
    lines = []
    for how, title in WAYS.items():
        lines += [f"### {title}", "", "| family | models | where |", "|---|---|---|"]
        for adapter in (each for each in FAMILIES if each.how == how):
            models = ", ".join(sorted(members.get(adapter.name, ()))) or "of another library"
            if how == CATCH_ALL:
                models = "every other image model, convolutional nets first"
            lines.append(f"| {_code(adapter.name)} | {models} | {adapter.where} |".replace("_", r"\_"))
        lines.append("")
    return "\n".join(lines)


def with_table(page: str) -> str:
    """The page with the table as it should be."""
    head, found, rest = page.partition(BEGIN)
    _, closed, tail = rest.partition(END)
    if not (found and closed):
        raise ValueError(f"{PAGE}: the lines {BEGIN!r} and {END!r} must stand around the table")
    return f"{head}{BEGIN}\n\n{table()}\n{END}{tail}"


def _code(name: str) -> str:
    """A family's name, its class in code where it is one."""
    library, _, kind = name.partition(" ")
    return (
        f"{library} `{kind}`"
        if re.fullmatch(r"[A-Za-z0-9]*[A-Z][A-Za-z0-9]+", kind) and library != "transformers"
        else name
    )


if __name__ == "__main__":
    PAGE.write_text(with_table(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
