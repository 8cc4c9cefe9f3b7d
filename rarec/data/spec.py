"""What a data set is: where its files are, how they are read, and the protocol it is used under.

A data set is one TOML file. The built-in ones lie in `rarec/data/datasets`; a folder of the user's own adds to them or
replaces one by name. Nothing here reads data.
"""

import tomllib
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Literal, Self

import numpy as np
from pydantic import Field, ValidationError, model_validator

from rarec.config import Settings, refusals
from rarec.data.sources.demo import DemoSettings
from rarec.data.templates import Template
from rarec.errors import InputError, closest
from rarec.types import Protocol

Format = Literal[
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

# What the format's time column means; RecBole files leave it to the data set.
FORMAT_TIME: dict[str, Time] = {
    "movielens-dat": "clock",
    "movielens-100k": "clock",
    "movielens-csv": "clock",
    "amazon-2014": "clock",
    "synthetic": "clock",
    "bookcrossing-csv": "none",
}
# Files of each format where the data set does not name its own. RecBole's are `<data set>.inter|item|user`.
STANDARD_FILES: dict[str, dict[Role, str]] = {
    "movielens-dat": {"interactions": "ratings.dat", "items": "movies.dat", "users": "users.dat"},
    "movielens-100k": {"interactions": "u.data", "items": "u.item", "users": "u.user"},
    "movielens-csv": {"interactions": "ratings.csv", "items": "movies.csv"},
    "bookcrossing-csv": {"interactions": "BX-Book-Ratings.csv", "items": "BX-Books.csv", "users": "BX-Users.csv"},
    "synthetic": {"interactions": "ratings.dat", "items": "movies.dat", "users": "users.dat"},
}


class SourceSpec(Settings):
    """One form in which a data set is distributed."""

    format: Format = Field(description="Which reader reads it.")
    files: dict[Role, str] = Field(
        default={},
        description="File name by role. Empty: the format's standard names; for recbole `<name>.inter`, and "
        "`<name>.item` and `<name>.user` where they exist.",
    )
    columns: dict[Role, dict[str, str]] = Field(
        default={}, description="recbole only: published column name -> ours, by role, e.g. `movie_title` -> `title`."
    )
    genres_separator: str = Field(
        default="|", min_length=1, description="recbole only: what stands between two genres in the `genres` column."
    )
    encoding: Literal["utf-8", "latin-1"] = Field(default="utf-8", description="recbole only: the files' encoding.")
    time: Time | None = Field(default=None, description="Overrides the data set's `time` for this source.")
    demo: DemoSettings | None = Field(default=None, description="synthetic only: what to generate.")

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.format != "recbole":
            for name in ("columns", "genres_separator", "encoding"):
                if name in self.model_fields_set:
                    raise ValueError(f"`{name}` can be set for the recbole format only; {self.format} has a fixed one")
        if self.files and "interactions" not in self.files:
            raise ValueError("`files` names no file for `interactions`")
        if self.format == "amazon-2014" and not self.files:
            raise ValueError("amazon-2014 has no standard file names: name `interactions` and `items` in `files`")
        if (self.demo is not None) != (self.format == "synthetic"):
            raise ValueError("`demo` settings belong to the synthetic format, and it needs them")
        for role, name in self.files.items():
            if Path(name).name != name:
                raise ValueError(f"`files.{role}` must be a plain file name, not {name!r}")
        return self


class DownloadSpec(Settings):
    """A public archive of the data set."""

    url: str = Field(description="Address of the archive.")
    checksum: str | None = Field(
        default=None,
        pattern=r"^(md5:[0-9a-f]{32}|sha256:[0-9a-f]{64})$",
        description="`md5:…` or `sha256:…`; none where the publisher replaces the file now and then.",
    )


class ExpectedCounts(Settings):
    """Published counts; a missing one is not compared."""

    users: int | None = Field(default=None, description="Number of users.")
    items: int | None = Field(default=None, description="Number of items.")
    interactions: int | None = Field(default=None, description="Number of interactions.")


Override = bool | int | float | str | list[int] | list[str]


class PublishedFigures(Settings):
    """Test figures of others under the ranking protocol, shown beside our own."""

    source: str = Field(description="Model and where the figures stand.")
    protocol: Protocol = Field(description="Whether items the user has seen were candidates.")
    metrics: dict[str, float] = Field(description="For example `HR@10` -> 0.0860.")


class DatasetSpec(Settings):
    """A data set and the protocol it is used under."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9._-]*$", description="Name, also its folder under RAREC_DATA.")
    title: str = Field(description="Name as published, for reports.")
    domain: str = Field(description="What the items are: movies, books, products, … Chooses the prompt wording.")
    homepage: str = Field(default="", description="Where a person gets the files.")
    sources: tuple[SourceSpec, ...] = Field(
        description="Forms it comes in, at least one; the first one whose files all exist is read."
    )
    download: DownloadSpec | None = Field(default=None, description="Public archive fetched when no file is found.")

    rating_scale: tuple[float, float] | None = Field(
        default=None, description="Least and greatest rating; none where there are no ratings."
    )
    label_threshold: float | None = Field(default=None, description="t of the positive label.")
    label_comparison: Literal[">", ">="] = Field(
        default=">", description="A sample is positive if its rating > t, or >= t."
    )
    implicit_rating: float | None = Field(
        default=None, description="Rating that marks a mere contact, not an opinion; such rows are dropped and counted."
    )
    time: Time = Field(
        default="clock",
        description="What `timestamp` means: seconds since 1970, the order within a user, or nothing (no such column; "
        "the order is then drawn with `split_seed`).",
    )

    k_core: int = Field(
        default=0, ge=0, description="Every user and item keeps at least this many interactions; 0 = none."
    )
    duplicates: Literal["error", "keep-last", "keep-all"] = Field(
        default="error",
        description="A user meeting an item again: an error; only the latest kept; or all kept. The two latter drop "
        "exact copies (same user, item and timestamp).",
    )
    unknown_items: Literal["error", "drop"] = Field(
        default="error", description="Interactions with an item that the item file lacks: an error, or dropped."
    )
    quarantine_limit: float = Field(
        default=0.01, ge=0, le=1, description="Share of unreadable rows of a file above which reading fails."
    )

    split: Literal["leave-one-out"] = Field(
        default="leave-one-out", description="Ranking: a user's last item is test, the one before it validation."
    )
    split_seed: int = Field(default=42, ge=0, description="Seed of the order within a user where there is no time.")
    short_users: Literal["error", "train-only"] = Field(
        default="error", description="Users with fewer than three interactions: an error, or training data only."
    )

    expected_raw: ExpectedCounts = Field(default=ExpectedCounts(), description="Published counts of rows as received.")
    expected: ExpectedCounts = Field(
        default=ExpectedCounts(), description="Published counts after cleaning and k-core."
    )
    published: tuple[PublishedFigures, ...] = Field(default=(), description="Test figures of others, for the report.")
    template: Template | None = Field(default=None, description="Wording of prompts; by default the domain's.")
    overrides: dict[str, dict[str, Override]] = Field(
        default={}, description="Defaults of stage settings on this data set: stage name -> setting -> value."
    )

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if not self.sources:
            raise ValueError("`sources` names no form in which the data set comes")
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
                raise ValueError(f"`rating_scale` [{low:g}, {high:g}] must rise")
            if self.label_threshold is not None and not low <= self.label_threshold <= high:
                raise ValueError(f"`label_threshold` {self.label_threshold:g} lies outside [{low:g}, {high:g}]")
            if self.implicit_rating is not None and low <= self.implicit_rating <= high:
                raise ValueError(f"`implicit_rating` {self.implicit_rating:g} lies inside [{low:g}, {high:g}]")
        return self

    def files(self, source: SourceSpec) -> dict[Role, str]:
        """File name by role that `source` must have (RecBole's optional ones excluded)."""
        if source.files:
            return source.files
        if source.format == "recbole":
            return {"interactions": f"{self.name}.inter"}
        return STANDARD_FILES[source.format]

    def optional_files(self, source: SourceSpec) -> dict[Role, str]:
        """File name by role that is read where it exists: RecBole's item and user files when none was named."""
        if source.format == "recbole" and not source.files:
            return {"items": f"{self.name}.item", "users": f"{self.name}.user"}
        return {}

    def is_positive(self, ratings: np.ndarray) -> np.ndarray:
        """Label of each rating, (N,) bool; raises InputError for a data set without a label threshold or ratings."""
        if self.label_threshold is None:
            raise InputError(f"{self.name}: no `label_threshold` is set, so its ratings give no label.")
        if np.isnan(ratings).any():
            raise InputError(f"{self.name}: some interactions have no rating, so they give no label.")
        return ratings > self.label_threshold if self.label_comparison == ">" else ratings >= self.label_threshold


def _load(text: str, where: str, stem: str) -> DatasetSpec:
    try:
        spec = DatasetSpec.model_validate(tomllib.loads(text))
    except tomllib.TOMLDecodeError as error:
        raise InputError(f"{where}: not valid TOML: {error}.") from error
    except ValidationError as error:
        raise InputError(f"{where}: {refusals(error)}.") from error
    if spec.name != stem:
        raise InputError(f"{where}: name is {spec.name!r}, but the file is called {stem}.toml; make them equal.")
    return spec


def builtin_specs() -> dict[str, DatasetSpec]:
    """The data sets that come with the package, by name."""
    folder = resources.files("rarec.data") / "datasets"
    files = sorted((file for file in folder.iterdir() if file.name.endswith(".toml")), key=lambda file: file.name)
    return {
        (stem := file.name.removesuffix(".toml")): _load(file.read_text(encoding="utf-8"), file.name, stem)
        for file in files
    }


def load_specs(*extra_folders: Path) -> dict[str, DatasetSpec]:
    """Built-in data sets and those of the folders, by name; a later folder replaces an earlier data set of its name."""
    specs = builtin_specs()
    for folder in extra_folders:
        if not Path(folder).is_dir():
            raise InputError(f"{folder}: no such folder of data set files (*.toml).")
        for file in sorted(Path(folder).glob("*.toml")):
            try:
                text = file.read_text(encoding="utf-8")
            except UnicodeDecodeError as error:
                raise InputError(f"{file}: not valid UTF-8, which TOML must be.") from error
            specs[file.stem] = _load(text, str(file), file.stem)
    return specs


def find_spec(name: str, specs: Mapping[str, DatasetSpec]) -> DatasetSpec:
    """The data set called `name`; InputError listing the known ones if there is none."""
    if name not in specs:
        raise InputError(f"Unknown data set {name!r}{closest(name, specs)}; known: {', '.join(sorted(specs))}.")
    return specs[name]
