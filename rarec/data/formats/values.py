"""What a published text means: ids, numbers and times, as SQL over text columns.

Each expression comes in two forms: the value, and why there is none. Nothing is guessed: a text that could mean two
things is a fault, and the message says which setting decides.
"""

import math
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from rarec.data.readers.connection import literal

NUMBER = r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?"
# White space of Unicode, and characters without width; none of them belongs to an id.
BLANKS = (
    " \t\n\r\v\f\x1c\x1d\x1e\x1f\x85\xa0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a\u200b"
    "\u2028\u2029\u202f\u205f\u2060\u3000\ufeff"
)
# Words by which programs write that there is no value, in lower case.
NOTHING = ("nan", "null", r"\n", "none", "na", "n/a", "#n/a", "<na>", "nil", "nat", "undefined", "(null)")
NESTED = "CASE WHEN json_valid({v}) THEN json_type({v}) IN ('OBJECT', 'ARRAY') ELSE false END"
EARLIEST = 631_152_000  # 1990-01-01, in seconds
AHEAD_S = 86_400  # clocks and time zones differ, so an event may lie up to a day ahead of our clock
DAY_US = 86_400_000_000
YEAR_US = 31_556_952_000_000
UNITS = {"s": 1_000_000, "ms": 1_000, "us": 1}  # microseconds
UNIT_WORDS = {
    "s": "seconds since 1970",
    "ms": "milliseconds since 1970",
    "us": "microseconds since 1970",
    "ns": "nanoseconds since 1970",
    "iso": "text like 2024-09-24 13:19:50",
    "days": "days, as 20240924 or counted since 1970",
}
# Usual ways to write days that are not ISO; each may be followed by a time of day.
WRITTEN_DAYS = tuple(
    f"{day}{clock}"
    for day in ("%m/%d/%Y", "%d/%m/%Y", "%m-%d-%Y", "%d-%m-%Y", "%d.%m.%Y", "%m/%d/%y", "%d/%m/%y", "%d.%m.%y",
                "%m %d, %Y", "%B %d, %Y", "%b %d, %Y", "%d %B %Y", "%d %b %Y")
    for clock in ("", " %H:%M", " %H:%M:%S", " %I:%M:%S %p", " %I:%M %p")
)  # fmt: skip
ISO = r"[0-9]{4}[-/][0-9]{1,2}[-/][0-9]{1,2}([ T].*)?"


@dataclass(frozen=True)
class Value:
    """How a column is read.

    Attributes:
        value: SQL for the value of the text column; NULL where there is none.
        fault: SQL for whether the value {v} of the text {x} cannot be used.
        kind: "id", "number", "time" or "text".
        low, high: Bounds, to be named in a reason.
        expected: What the text should be, for a reason.
        nested: Whether a text may stand for a list or an object.
    """

    value: str
    fault: str
    kind: str
    low: float = 0
    high: float = 0
    expected: str = ""
    nested: bool = False

    def reason(self, name: str, published: str, text: str | None, value: float | None) -> str:
        """Why `text` of the column `name` is at fault; `value` is what it was read as, without bounds."""
        if text is None:
            return f"no {published!r}"
        if self.kind == "id":
            if not text.strip(BLANKS):
                return f"{name} is empty"
            word = text.strip(BLANKS)
            if self.nested and word[0] in "[{":
                return f"{name} {text[:80]!r} is a list or an object; write one value there"
            return f"{name} {text!r} " + ("holds a NUL character" if "\0" in word else "means nothing")
        if value is None or not math.isfinite(value):
            what = "a time" if self.kind == "time" else "a number"
            return f"{name} {text!r} is not {what}" + (f" ({self.expected})" if self.expected else "")
        if self.kind == "time":
            return f"{name} {text!r} is {_day(value)} ({self.expected})"
        return f"{name} {text!r} is outside {self.low:g} to {self.high:g}"


def _day(us: float) -> str:
    """The day of a time, in words that also hold for absurd ones."""
    try:
        return (datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=us)).strftime("%Y-%m-%d")
    except OverflowError:
        return f"in the year {1970 + round(us / YEAR_US):,}"


def _trimmed(column: str) -> str:
    """SQL for the text without blanks around it. Most texts are plain, and telling so is faster than trimming."""
    return f"CASE WHEN regexp_full_match({column}, '[!-~]*') THEN {column} ELSE trim({column}, {literal(BLANKS)}) END"


def _plain_number(column: str, kind: str) -> str:
    """SQL for a number written in the usual way. DuckDB alone also accepts 1_000."""
    return f"CASE WHEN NOT contains({column}, '_') THEN TRY_CAST({column} AS {kind}) END"


def id_value(column: str, nothing: tuple[str, ...], nested: bool = False) -> Value:
    """An id: the text as written, without blanks around it. Words that stand for nothing are none.

    Where values may be `nested`, a list or an object is none either.
    """
    words = ", ".join(literal(word.lower()).replace("{", "{{").replace("}", "}}") for word in nothing)
    fault = "{v} IS NULL OR {v} = '' OR contains({v}, chr(0))"
    fault += f" OR lower({{v}}) IN ({words})" if words else ""
    fault += f" OR {NESTED}" if nested else ""
    return Value(_trimmed(column), f"({fault})", "id", nested=nested)


def number_value(
    column: str, low: float, high: float, also: float | None = None, optional: bool = False, expected: str = ""
) -> Value:
    """A finite number within bounds, or equal to `also`; if it is optional, an empty text is none."""
    plain = _plain_number(column, "DOUBLE")
    value = f"coalesce({plain}, {_plain_number(f'({_trimmed(column)})', 'DOUBLE')})"
    inside = "isfinite({v})"
    inside += f" AND {{v}} >= {low!r}" if low > float("-inf") else ""
    inside += f" AND {{v}} <= {high!r}" if high < float("inf") else ""
    inside = f"(({inside})" + (f" OR {{v}} = {also!r})" if also is not None else ")")
    return Value(value, _unless_empty(f"NOT coalesce({inside}, false)", optional), "number", low, high, expected)


def _unless_empty(fault: str, optional: bool) -> str:
    return "(trim(coalesce({x}, '')) != '' AND " + fault + ")" if optional else fault


def time_value(column: str, unit: str, latest_s: float, optional: bool = False) -> Value:
    """A time in microseconds since 1970, as BIGINT.

    Args:
        column: SQL of the text.
        unit: A key of `UNIT_WORDS`, or a format of strptime with `%`. ISO text is understood with every unit.
        latest_s: Latest plausible time, in seconds since 1970.
        optional: Whether an empty text is none.
    """
    text = f"({_trimmed(column)})"
    number = f"regexp_full_match({text}, '{NUMBER}')"
    exact = f"TRY_CAST({text} AS DECIMAL(28, 9))"
    iso = (
        f"CASE WHEN regexp_full_match({text}, '{ISO}') "
        f"THEN epoch_us(TRY_CAST(replace({text}, '/', '-') AS TIMESTAMPTZ)) END"
    )
    if "%" in unit:
        first = f"epoch_us(CAST(try_strptime({text}, {literal(unit)}) AS TIMESTAMPTZ))"
    elif unit == "days":
        first = (
            f"CASE WHEN regexp_full_match({text}, '[0-9]{{8}}') "
            f"THEN epoch_us(CAST(try_strptime({text}, '%Y%m%d') AS TIMESTAMPTZ)) "
            f"WHEN {number} THEN TRY_CAST(trunc({exact} * {DAY_US}) AS BIGINT) END"
        )
    elif unit == "iso":
        first = "NULL"
    elif unit == "ns":
        first = f"CASE WHEN {number} THEN TRY_CAST(trunc(CAST({exact} AS DECIMAL(38, 9)) / 1000) AS BIGINT) END"
    else:
        factor = UNITS[unit]
        whole = f"TRY_CAST(CAST({_plain_number(column, 'BIGINT')} AS HUGEINT) * {factor} AS BIGINT)"
        digits = f"NOT contains({column}, '.')"  # DuckDB would round
        first = (
            f"coalesce(CASE WHEN {digits} THEN {whole} END, "
            f"CASE WHEN {number} THEN TRY_CAST(trunc({exact} * {factor}) AS BIGINT) END)"
        )
    inside = f"{{v}} >= {EARLIEST * 1_000_000} AND {{v}} <= {int(latest_s * 1_000_000)}"
    words = UNIT_WORDS.get(unit, f"text like {unit}")
    return Value(
        f"coalesce({first}, {iso})",
        _unless_empty(f"NOT coalesce({inside}, false)", optional),
        "time",
        expected=f"{words}, from 1990 to a day ahead of now, are expected",
    )


def text_value(column: str) -> Value:
    """Text as published; empty where it is missing."""
    return Value(f"coalesce({column}, '')", "false", "text")
