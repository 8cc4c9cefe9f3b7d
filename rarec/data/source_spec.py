"""The declaration of one form in which a data set is distributed: format, files, columns and how they are written."""

import codecs
import re
from pathlib import PurePosixPath
from typing import Literal, Self

from pydantic import Field, model_validator

from rarec.config import Settings
from rarec.data.sources.demo import DemoSettings

Format = Literal[
    "table",
    "recbole",
    "movielens-dat",
    "movielens-100k",
    "movielens-csv",
    "bookcrossing-csv",
    "amazon-2014",
    "synthetic",
]
Role = Literal["interactions", "items", "users"]
Time = Literal["clock", "order", "none"]

# What the format's time column means. For RecBole files, the data set says it.
FORMAT_TIME: dict[str, Time] = {
    "movielens-dat": "clock",
    "movielens-100k": "clock",
    "movielens-csv": "clock",
    "amazon-2014": "clock",
    "synthetic": "clock",
    "bookcrossing-csv": "none",
}
# Files of each format, unless the data set names its own. RecBole's are `<data set>.inter|item|user`.
STANDARD_FILES: dict[str, dict[Role, str]] = {
    "movielens-dat": {"interactions": "ratings.dat", "items": "movies.dat", "users": "users.dat"},
    "movielens-100k": {"interactions": "u.data", "items": "u.item", "users": "u.user"},
    "movielens-csv": {"interactions": "ratings.csv", "items": "movies.csv"},
    "bookcrossing-csv": {"interactions": "BX-Book-Ratings.csv", "items": "BX-Books.csv", "users": "BX-Users.csv"},
    "synthetic": {"interactions": "ratings.dat", "items": "movies.dat", "users": "users.dat"},
}


TIME_UNITS = ("s", "ms", "us", "ns", "days", "iso")
WRONG_DIRECTIVE = re.compile(r"%(?!-?[aAwdbBmyYHIpMSfgnzZjUWcxXGVu%]).?")  # of strptime
OWN: tuple[Format, ...] = ("recbole", "table")  # formats for the user's own data
ONLY_FOR: dict[str, tuple[Format, ...]] = {
    "columns": OWN,
    "genres_separator": OWN,
    "encoding": OWN,
    "delimiter": ("table",),
    "quote": ("table",),
    "header": ("table",),
}


class SourceSpec(Settings):
    """One of the forms in which a data set is distributed."""

    format: Format = Field(
        description="Format of the files. `table` is any CSV, JSON, JSON lines or parquet file, plain or compressed."
    )
    files: dict[Role, str] = Field(
        default={},
        description="File of each role: a name, for tables also a pattern like `part-*.csv.gz` or a folder of parts. "
        "By default the format's standard names; for recbole and table `<name>.inter`, and `<name>.item` and "
        "`<name>.user` if they exist. A name is also found with `.gz`, `.zst`, `.bz2` or `.xz` behind it.",
    )
    columns: dict[Role, dict[str, str]] = Field(
        default={},
        description="recbole and table only: published column -> ours for each role, `movie_title` -> `title`. A "
        "column without a name is called by its place, from 1. In tables, well-known names need no entry.",
    )
    genres_separator: str = Field(
        default="|",
        min_length=1,
        description="recbole and table only: separator of genres in the `genres` column.",
    )
    encoding: str | None = Field(
        default=None,
        description="recbole and table only: encoding of the files, by default utf-8. UTF-16 and UTF-32 are "
        "recognised.",
    )
    delimiter: str | None = Field(
        default=None, min_length=1, max_length=4, description="table only: text between values; by default recognised."
    )
    quote: str | None = Field(
        default=None,
        max_length=1,
        description="table only: character around values, empty for none; by default recognised.",
    )
    header: bool | None = Field(
        default=None, description="table only: whether the first line has column names; by default recognised."
    )
    time_unit: str | None = Field(
        default=None,
        description="What times count: `s` (default), `ms`, `us` or `ns` since 1970, `days` (20240924, or since 1970), "
        "`iso`, or a format such as `%m/%d/%Y %H:%M`. ISO text and typed times are always understood.",
    )
    null_values: tuple[str, ...] | None = Field(
        default=None,
        description="Words that stand for no id; by default nan, NULL, \\N, None, NA, N/A and the like, in any case.",
    )
    time: Time | None = Field(default=None, description="Overrides the data set's `time` for this source.")
    demo: DemoSettings | None = Field(default=None, description="synthetic only: what to generate.")

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        for name, formats in ONLY_FOR.items():
            if name in self.model_fields_set and self.format not in formats:
                raise ValueError(
                    f"`{name}` can be set only for the format {' or '.join(formats)}; it is fixed for {self.format}"
                )
        if self.encoding is not None:
            try:
                codecs.lookup(self.encoding)
            except LookupError:
                raise ValueError(
                    f"`encoding` {self.encoding!r} is unknown; use one that Python knows, like cp1252"
                ) from None
        if self.time_unit is not None and "%" not in self.time_unit and self.time_unit not in TIME_UNITS:
            raise ValueError(
                f"`time_unit` {self.time_unit!r} is unknown; use {', '.join(TIME_UNITS)} or a format with %"
            )
        if self.time_unit is not None and (wrong := WRONG_DIRECTIVE.search(self.time_unit)):
            raise ValueError(f"`time_unit` {self.time_unit!r}: there is no directive {wrong[0]!r}")
        if self.quote and (not self.quote.isascii() or self.quote == self.delimiter or len(self.delimiter or " ") > 1):
            raise ValueError("`quote` must be an ASCII character, and needs a `delimiter` of one other character")
        if self.files and "interactions" not in self.files:
            raise ValueError("`files` must name a file for `interactions`")
        if self.format == "amazon-2014" and not self.files:
            raise ValueError("amazon-2014 has no standard file names; name `interactions` and `items` in `files`")
        if (self.demo is not None) != (self.format == "synthetic"):
            raise ValueError("`demo` must be set for the synthetic format, and for no other")
        for role, name in self.files.items():
            path = PurePosixPath(name)
            if self.format == "table" and not path.is_absolute() and ".." not in path.parts:
                continue
            if path.name != name:
                raise ValueError(f"`files.{role}` must be a plain file name, not {name!r}")
        return self
