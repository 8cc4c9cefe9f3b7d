"""The declaration of a data set: where its files are, how to read them, and under which protocol to use it.

A data set is one TOML file. The built-in ones are in `rarec/data/datasets`. A folder of your own adds data sets, or
replaces built-in ones of the same name. Nothing here reads data.
"""

import os
import re
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
from pydantic import Field, ValidationError, model_validator

from rarec.config import Settings, refusals
from rarec.data.source_spec import FORMAT_TIME, OWN, STANDARD_FILES, Role, SourceSpec, Time
from rarec.data.templates import Template
from rarec.errors import InputError, closest, printable
from rarec.types import Protocol

NAME = r"^[a-z0-9][a-z0-9._-]*$"  # of a data set


class DownloadSpec(Settings):
    """A public archive of the data set."""

    url: str = Field(description="Address of the archive.")
    checksum: str | None = Field(
        default=None,
        pattern=r"^(md5:[0-9a-f]{32}|sha256:[0-9a-f]{64})$",
        description="`md5:…` or `sha256:…`; leave it out if the publisher replaces the file from time to time.",
    )


class ExpectedCounts(Settings):
    """Published counts. Those left out are not compared."""

    users: int | None = Field(default=None, description="Number of users.")
    items: int | None = Field(default=None, description="Number of items.")
    interactions: int | None = Field(default=None, description="Number of interactions.")


Override = bool | int | float | str | list[int] | list[float] | list[str]


class PublishedFigures(Settings):
    """Test metrics that others published, shown beside our own."""

    source: str = Field(description="Model, and where the figures were published.")
    protocol: Protocol = Field(description="Whether items the user has seen were candidates.")
    metrics: dict[str, float] = Field(description="For example `HR@10` -> 0.0860.")


class DatasetSpec(Settings):
    """A data set and the protocol it is used under."""

    name: str = Field(pattern=NAME, description="Name, and its folder under RAREC_DATA.")
    title: str = Field(description="Name as published, for reports.")
    domain: str = Field(description="What the items are: movies, books, products, … It decides how prompts are worded.")
    homepage: str = Field(default="", description="Web page from which to get the files.")
    sources: tuple[SourceSpec, ...] = Field(
        description="Forms in which the data set comes. The first one whose files all exist is read."
    )
    download: DownloadSpec | None = Field(default=None, description="Public archive to download if no files are found.")

    rating_scale: tuple[float, float] | None = Field(
        default=None, description="Lowest and highest rating; leave it out if there are no ratings."
    )
    label_threshold: float | None = Field(default=None, description="Threshold t of a positive label.")
    label_comparison: Literal[">", ">="] = Field(
        default=">", description="Whether a sample is positive if its rating is > t, or >= t."
    )
    implicit_rating: float | None = Field(
        default=None, description="Rating that means a contact without an opinion; such rows are dropped and counted."
    )
    time: Time = Field(
        default="clock",
        description="What `timestamp` means: seconds since 1970 (clock), the order within a user, or none: there is no "
        "such column, and the order is drawn with `split_seed`.",
    )

    k_core: int = Field(default=0, ge=0, description="Least interactions of every user and item; 0 means no k-core.")
    duplicates: Literal["error", "keep-last", "keep-all"] = Field(
        default="error",
        description="What to do if a user interacts with an item again: raise an error, keep the last, or keep all. "
        "The last two drop exact copies (same user, item and timestamp).",
    )
    unknown_items: Literal["error", "drop"] = Field(
        default="error", description="What to do with interactions whose item is not in the item file."
    )
    quarantine_limit: float = Field(
        default=0.01,
        ge=0,
        le=1,
        description="Share of unreadable rows in the files of a table above which reading fails.",
    )

    split: Literal["leave-one-out"] = Field(
        default="leave-one-out", description="Ranking: a user's last item is for test, the one before for validation."
    )
    split_seed: int = Field(default=42, ge=0, description="Seed of the order within a user if there is no time.")
    short_users: Literal["error", "train-only"] = Field(
        default="error", description="What to do with users who have fewer than three interactions."
    )

    expected_raw: ExpectedCounts = Field(default=ExpectedCounts(), description="Published counts of the files' rows.")
    expected: ExpectedCounts = Field(
        default=ExpectedCounts(), description="Published counts after cleaning and k-core."
    )
    published: tuple[PublishedFigures, ...] = Field(default=(), description="Test metrics that others published.")
    template: Template | None = Field(default=None, description="Wording of prompts; by default that of the domain.")
    overrides: dict[str, dict[str, Override]] = Field(
        default={}, description="Defaults of stages for this data set: asset -> setting -> value."
    )

    @model_validator(mode="before")
    @classmethod
    def _time_of_the_format(cls, values: Any) -> Any:
        """Where the data set does not say what times mean, its first source's format does."""
        match values:
            case {"sources": [{"format": str(name)}, *_]} if "time" not in values and name in FORMAT_TIME:
                return {**values, "time": FORMAT_TIME[name]}
        return values

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if not self.sources:
            raise ValueError("`sources` must name at least one form in which the data set comes")
        for source in self.sources:
            time = source.time or self.time
            if FORMAT_TIME.get(source.format, time) != time:
                raise ValueError(f"`time` is {time!r}, but {source.format} files have {FORMAT_TIME[source.format]!r}")
        if self.rating_scale is None:
            if self.label_threshold is not None or self.implicit_rating is not None:
                raise ValueError("`label_threshold` and `implicit_rating` need a `rating_scale`")
        else:
            low, high = self.rating_scale
            if not low < high:
                raise ValueError(f"`rating_scale` [{low:g}, {high:g}] must be in ascending order")
            if self.label_threshold is not None and not low <= self.label_threshold <= high:
                raise ValueError(f"`label_threshold` {self.label_threshold:g} is outside [{low:g}, {high:g}]")
            if self.implicit_rating is not None and low <= self.implicit_rating <= high:
                raise ValueError(f"`implicit_rating` {self.implicit_rating:g} is inside [{low:g}, {high:g}]")
        return self

    def files(self, source: SourceSpec) -> dict[Role, str]:
        """Name of each file that `source` must have, by role."""
        if source.files:
            return source.files
        if source.format in OWN:
            return {"interactions": f"{self.name}.inter"}
        return STANDARD_FILES[source.format]

    def optional_files(self, source: SourceSpec) -> dict[Role, str]:
        """Name of each file that is read if it exists, by role: RecBole's item and user file, unless `files` is set."""
        if source.format in OWN and not source.files:
            return {"items": f"{self.name}.item", "users": f"{self.name}.user"}
        return {}

    def is_positive(self, ratings: np.ndarray) -> np.ndarray:
        """(N,) bool label of each rating.

        Raises:
            InputError: The data set has no label threshold, or an interaction has no rating.
        """
        if self.label_threshold is None:
            raise InputError(f"{self.name}: set `label_threshold`, without which ratings have no label.")
        if np.isnan(ratings).any():
            raise InputError(f"{self.name}: some interactions have no rating, so they have no label.")
        return ratings > self.label_threshold if self.label_comparison == ">" else ratings >= self.label_threshold


@dataclass(frozen=True)
class Declared:
    """What the files of a few folders declare.

    Attributes:
        specs: Every data set that can be used, by name.
        faults: Name of a file without `.toml` -> why it declares nothing. A built-in data set of that name is not used
            either, since the file was to replace it.
    """

    specs: dict[str, DatasetSpec]
    faults: dict[str, str]

    @property
    def names(self) -> list[str]:
        """Every name that a data set has or could have, in alphabetical order."""
        return sorted(self.specs.keys() | {name for name in self.faults if re.fullmatch(NAME, name)})

    def find(self, name: str) -> DatasetSpec:
        """The data set called `name`.

        Raises:
            InputError: Its file is wrong, or there is none.
        """
        if name in self.faults:
            raise InputError(self.faults[name])
        return find_spec(name, self.specs)


def _load(text: str, where: str, stem: str) -> DatasetSpec:
    if not re.fullmatch(NAME, stem):
        raise InputError(
            f"{where}: the file's name is the data set's; rename it to lower-case letters, digits, '.', '_' and '-', "
            "starting with a letter or digit."
        )
    try:
        given = tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # of numbers that are too long, and of lists in lists in lists
        raise InputError(f"{where}: not valid TOML: {error}.") from error
    if given.get("name", stem) != stem:
        raise InputError(f"{where}: name is {given['name']!r}, but the file is {stem}.toml; give both the same name.")
    try:
        return DatasetSpec.model_validate(given)
    except ValidationError as error:
        raise InputError(f"{where}: {refusals(error, known=DatasetSpec.model_fields)}.") from error


def _read(file: Path) -> str:
    if not os.path.isfile(file):  # a named pipe would block
        raise InputError(f"{file}: not a file, or a link to none; replace or delete it.")
    try:
        return file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{file}: not valid UTF-8; save the file as UTF-8.") from error
    except OSError as error:
        raise InputError(f"{file}: cannot be read: {error.strerror}; change its permissions or delete it.") from error


def builtin_specs() -> dict[str, DatasetSpec]:
    """The data sets that come with the package, by name."""
    folder = resources.files("rarec.data") / "datasets"
    files = sorted((file for file in folder.iterdir() if file.name.endswith(".toml")), key=lambda file: file.name)
    return {
        (stem := file.name.removesuffix(".toml")): _load(file.read_text(encoding="utf-8"), file.name, stem)
        for file in files
    }


def load_specs(*extra_folders: Path) -> Declared:
    """Built-in data sets and those of the folders. Later folders replace data sets of earlier ones.

    A file that cannot be used is among the faults and stops no other. Hidden files and folders are skipped.

    Raises:
        InputError: There is no such folder, or it cannot be listed.
    """
    specs, faults = builtin_specs(), dict[str, str]()
    for folder in extra_folders:
        for file in _declarations(Path(folder)):
            specs.pop(file.stem, None)
            faults.pop(file.stem, None)
            try:
                specs[file.stem] = _load(_read(file), str(file), file.stem)
            except InputError as error:
                faults[file.stem] = printable(str(error))
    return Declared(specs, faults)


def _declarations(folder: Path) -> Iterator[Path]:
    """The files of a folder that should declare data sets."""
    try:
        files = sorted(folder.iterdir())
    except (FileNotFoundError, NotADirectoryError) as error:
        raise InputError(f"{folder}: there is no such folder; it should hold data set files (*.toml).") from error
    except OSError as error:
        raise InputError(f"{folder}: cannot be listed: {error.strerror}; change its permissions.") from error
    for file in files:
        hidden = file.name.startswith(".")  # what editors, macOS and file synchronisation leave beside a file
        if file.suffix.lower() == ".toml" and not hidden and not os.path.isdir(file):
            yield file


def find_spec(name: str, specs: Mapping[str, DatasetSpec]) -> DatasetSpec:
    """The data set called `name`.

    Raises:
        InputError: There is none; lists the known ones.
    """
    if name not in specs:
        raise InputError(f"Unknown data set {name!r}{closest(name, specs)}; known: {', '.join(sorted(specs))}.")
    return specs[name]
