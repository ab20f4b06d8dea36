"""Sentences, numbers and dates in the reader's language.

A message is a template of ``str.format`` whose fields say what a value is: ``{gain:points}``, ``{arm:arm}``. What a
user wrote is only ever a value: it is never read as a template, and it can't mark code.
"""

from __future__ import annotations

import datetime
import math
import re
import string
from collections.abc import Mapping, Sequence
from typing import Any

from masksub.app.errors import InputError

from .labels_en import MESSAGES as ENGLISH_LABELS
from .labels_ja import MESSAGES as JAPANESE_LABELS
from .texts_en import MESSAGES as ENGLISH
from .texts_ja import MESSAGES as JAPANESE

__all__ = ["CODE_END", "CODE_START", "LANGUAGES", "RUN_END", "RUN_START", "Language", "plain_text", "without_links"]

LANGUAGES: dict[str, dict[str, str]] = {
    "en": {**ENGLISH, **ENGLISH_LABELS},
    "ja": {**JAPANESE, **JAPANESE_LABELS},
}

CODE_START, CODE_END = "\ue000", "\ue001"
"""Stand around code in a sentence until a format writes it in its own way. Private characters, so that a backtick in a
user's text stays a backtick."""
RUN_START, RUN_END = "\ue002", "\ue003"
"""Stand around the number of a run."""
_MARKS = (CODE_START, CODE_END, RUN_START, RUN_END)

_TIGHT = "\u00a0"
"""A space at which no line is broken."""
_BINARY = ("B", "KiB", "MiB", "GiB", "TiB")
_FLOP = ((1e21, "ZFLOP"), (1e18, "EFLOP"), (1e15, "PFLOP"), (1e12, "TFLOP"), (1e9, "GFLOP"), (1e6, "MFLOP"))
_JOULES = ((1e9, "GJ"), (1e6, "MJ"), (1e3, "kJ"))


class Language(string.Formatter):
    """One language.

    Args:
        code: a key of LANGUAGES.

    Raises:
        InputError: there is no such language.
    """

    def __init__(self, code: str) -> None:
        if code not in LANGUAGES:
            raise InputError(f"language {code!r}: choose from {', '.join(LANGUAGES)}")
        self.code = code
        self._messages = LANGUAGES[code]

    def say(self, key: str, **values: Any) -> str:
        """The message of a key with these values in it; code stands between CODE_START and CODE_END."""
        parts = self._messages[key].split("`")
        template = "".join(
            part if number % 2 == 0 else f"{CODE_START}{part}{CODE_END}" for number, part in enumerate(parts)
        )
        return self.vformat(template, (), values)

    def has(self, key: str) -> bool:
        """Whether there is such a message."""
        return key in self._messages

    def code_span(self, text: str) -> str:
        """A user's text set as code."""
        return f"{CODE_START}{_clean(text)}{CODE_END}"

    def arm(self, key: str) -> str:
        """An arm's name for people; what follows the first word of a key is what the arm differs in."""
        known, _, rest = key.partition(" ")
        if not self.has(f"arm.{known}"):
            return _clean(key)
        return f"{self.say(f'arm.{known}')} {_clean(rest)}".strip()

    def scale_of_flops(self, largest: float) -> tuple[float, str]:
        """The unit in which an axis up to ``largest`` is easy to read: its size and its name."""
        return next(((size, unit) for size, unit in _FLOP if largest >= size), (1.0, "FLOP"))

    def format_field(self, value: Any, format_spec: str) -> str:
        """One value; the name of its format picks a method of this class, ``count.X`` a message."""
        if value is None:
            return self.say("absent")
        if format_spec.startswith("count."):
            form = "one" if value == 1 else "other"
            return self.say(f"{format_spec}.{form}", n=value)
        if not format_spec:
            return _clean(str(value))
        return str(getattr(self, f"_{format_spec}")(value))

    def _arm(self, key: str) -> str:
        return self.arm(key)

    def _arms(self, keys: Sequence[str]) -> str:
        return self.say("list.separator").join(self.arm(key) for key in keys)

    def _signed(self, value: float) -> str:
        return _minus(f"{value:+.{_decimals(value)}f}")

    def _points(self, value: float) -> str:
        return self.say("unit.points", n=self._signed(value))

    def _size(self, value: float) -> str:
        """Of a difference whose direction the sentence tells."""
        return self._plain_points(abs(value))

    def _plain_points(self, value: float) -> str:
        return self.say("unit.points", n=self._decimal(value))

    def _decimal(self, value: float) -> str:
        return _minus(f"{value:,.{_decimals(value)}f}")

    def _percent(self, value: float) -> str:
        return self.say("unit.percent", n=f"{value:.2f}")

    def _share(self, value: float) -> str:
        return self.say("unit.percent", n=f"{100 * value:.0f}")

    def _times(self, value: float) -> str:
        return self.say("unit.times", n=f"{value:.2f}")

    def _number(self, value: Any) -> str:
        """A value of a recipe or a measurement: no more digits than are needed."""
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            return self._value(value)
        if isinstance(value, int):
            return _minus(f"{value:,}")
        if value != 0 and not 1e-3 <= abs(value) < 1e7:
            return _minus(f"{value:.3g}")
        text = f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
        return _minus(text)

    def _value(self, value: Any) -> str:
        """Any value of a recipe: a schedule as its parts, a text as it is."""
        if isinstance(value, Mapping):
            return ", ".join(f"{_clean(str(key))} {self._value(each)}" for key, each in value.items())
        if isinstance(value, (list, tuple)):
            return "[" + ", ".join(self._value(each) for each in value) + "]"
        if isinstance(value, float):
            return _minus(f"{value:.6g}")
        return self.say("absent") if value is None else _clean(str(value))

    def _p(self, value: float) -> str:
        return f"p{_TIGHT}<{_TIGHT}0.001" if value < 0.001 else f"p{_TIGHT}={_TIGHT}{value:.3f}"

    def _flops(self, value: float) -> str:
        size, unit = self.scale_of_flops(value)
        return f"{value / size:.3g} {unit}" if value < 1000 * size else f"{value / size:,.0f} {unit}"

    def _bytes(self, value: float) -> str:
        power = min(int(math.log(max(value, 1), 1024)), len(_BINARY) - 1)
        return f"{value / 1024**power:,.4g} {_BINARY[power]}"

    def _joules(self, value: float) -> str:
        size, unit = next(((size, unit) for size, unit in _JOULES if value >= size), (1.0, "J"))
        return f"{value / size:.3g} {unit}"

    def _duration(self, seconds: float) -> str:
        if seconds < 60:
            return self.say("time.seconds", s=f"{seconds:.3g}")
        minutes, rest = divmod(round(seconds), 60)
        if minutes < 60:
            return self.say("time.minutes", m=minutes, s=f"{rest:02d}")
        hours, minutes = divmod(round(seconds / 60), 60)
        return self.say("time.hours", h=f"{hours:,}", m=f"{minutes:02d}")

    def _date(self, day: datetime.date) -> str:
        return self.say("date", year=str(day.year), month=self.say(f"month.{day.month}"), day=str(day.day))

    def _names(self, names: Sequence[object]) -> str:
        return self.say("list.separator").join(_clean(str(name)) for name in names)

    def _settings(self, settings: Mapping[str, Any]) -> str:
        pairs = [f"{_clean(key)} = {self._value(value)}" for key, value in settings.items()]
        return self.say("list.separator").join(pairs)

    def _word(self, key: str) -> str:
        """A part of a sentence that is a message itself."""
        return self.say(f"word.{key}")

    def _said(self, text: str) -> str:
        """What was said by a message of ours: its marks stay."""
        return text

    def _code(self, text: object) -> str:
        return self.code_span(str(text))

    def _method(self, name: str) -> str:
        key = f"method.{name}"
        return self.say(key) if self.has(key) else _clean(name)

    def _runs(self, numbers: Sequence[int]) -> str:
        """Numbers of runs, marked so that a page can link them to the table of runs."""
        return re.sub("[0-9]+", lambda found: f"{RUN_START}{found[0]}{RUN_END}", self._numbers(numbers))

    def _numbers(self, numbers: Sequence[int]) -> str:
        """Whole numbers, neighbours drawn together: 1-3, 5."""
        spans: list[list[int]] = []
        for number in sorted(numbers):
            if spans and number == spans[-1][1] + 1:
                spans[-1][1] = number
            else:
                spans.append([number, number])
        dash, separator = self.say("range.dash"), self.say("list.separator")
        texts = [str(a) if a == b else f"{a}{dash if b > a + 1 else separator}{b}" for a, b in spans]
        return separator.join(texts)


def plain_text(text: str) -> str:
    """A message for a terminal or JSON: code between backticks."""
    return without_links(text).replace(CODE_START, "`").replace(CODE_END, "`")


def without_links(text: str) -> str:
    """A message for a format in which runs are not linked."""
    return text.replace(RUN_START, "").replace(RUN_END, "")


def _clean(text: str) -> str:
    """A user's text on one line, without our private marks and without control and direction characters."""
    spaces = "\u00a0\u3000"  # are no printable characters to Python
    kept = "".join(" " if letter.isspace() and letter not in spaces else letter for letter in text)
    return "".join(c for c in kept if (c.isprintable() or c in spaces) and c not in _MARKS)


def _decimals(value: float) -> int:
    """Two places; more where the value would read as zero, which it is not."""
    if value == 0 or not math.isfinite(value) or abs(value) >= 0.005:
        return 2
    return min(6, -math.floor(math.log10(abs(value))))


def _minus(text: str) -> str:
    return text.replace("-", "\u2212") if text.startswith("-") else text
