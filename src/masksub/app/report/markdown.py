"""The report as Markdown, short enough for a pull request."""

from __future__ import annotations

import re

from .content import Content
from .language import CODE_END, CODE_START, Language, without_links
from .tables import Table

__all__ = ["render_markdown"]

_SPECIAL = re.compile(r"([\\`*_\[\]#|~$])")
_CODE = re.compile(f"{CODE_START}(.*?){CODE_END}")


def render_markdown(content: Content, language: Language) -> str:
    """Verdict, tables of the comparison and the sweep, and the runs behind them."""
    lines = [f"# {_text(content.title)}", "", _text(content.lead), "", f"**{_text(content.headline)}**", ""]
    lines += [_text(content.deck), ""] if content.deck else []
    for part in content.parts:
        lines += [f"### {_text(part.title)}", "", *(f"- {_text(sentence)}" for sentence, _ in part.sentences), ""]
    for section, tables in (
        ("comparison", content.comparison),
        ("sweep", content.sweep),
        ("recipe", content.recipe),
        ("runs", content.runs),
    ):
        if tables:
            lines += [f"## {_text(language.say(f'section.{section}'))}", ""]
        for table in tables:
            lines += _table(table, folded=section in ("recipe", "runs"))
    return "\n".join(lines).rstrip() + "\n"


def _table(table: Table, *, folded: bool) -> list[str]:
    """A table under its caption; folded where a reader seldom needs it."""
    lines = (
        [f"<details><summary>{_text(table.caption)}</summary>", ""] if folded else [f"### {_text(table.caption)}", ""]
    )
    if table.rows:
        rule = ["---:" if column in table.numeric else "---" for column in range(len(table.head))]
        lines += [_row([_text(cell) for cell in table.head]), _row(rule)]
        for number, row in enumerate(table.rows):
            cells = [_text(cell) for cell in row]
            lines.append(_row([f"**{cell}**" for cell in cells] if number == table.marked else cells))
        lines.append("")
    if table.note:
        lines += [_text(table.note), ""]
    return [*lines, "</details>", ""] if folded else lines


def _row(cells: list[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _text(text: str) -> str:
    """Text that Markdown shows as it is: no markup, link, mention or cell border comes out of it."""
    text = without_links(text)
    out, end = [], 0
    for match in _CODE.finditer(text):
        out += [_escaped(text[end : match.start()]), _code(match[1])]
        end = match.end()
    return "".join([*out, _escaped(text[end:])])


def _escaped(text: str) -> str:
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    text = _SPECIAL.sub(r"\\\1", text)
    text = text.replace("://", "&#58;//").replace("@", "@\u200b")  # neither a link nor somebody's name
    return re.sub(r"(?i)\bwww\.", "www&#46;", text)


def _code(text: str) -> str:
    """A code span whose fence is longer than any inside; a bar would end a cell even there."""
    text = text.replace("|", "\u2502")
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * (longest + 1)
    return f"{fence} {text} {fence}" if longest else f"{fence}{text}{fence}"
