"""What benchmarks run on, and how much of the work they do."""

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from rarec.data.ctr import CtrSettings, build_ctr_samples
from rarec.data.raw import read_raw
from rarec.data.sequences import UserSequences, build_sequences, user_at
from rarec.data.sources.download import locate_source
from rarec.data.spec import DatasetSpec, builtin_specs
from rarec.data.tables import Tables, build_tables
from rarec.data.templates import TEMPLATES, Template, item_texts, profile_texts, rating_text
from rarec.rella.language_model import LanguageModelSettings
from rarec.rella.prompt_source import PromptSource, RandomHistories
from rarec.rella.small_llama import train_tokenizer
from rarec.retrieval.index import normalised
from rarec.retrieval.subr import recent_behaviours, retrieve_behaviours
from rarec.text.prompts import build_parts
from rarec.types import Distances, Float32Array, IntArray

REAL = "amazon-beauty"
REAL_FILMS = "ml-100k"
SYNTHETIC_FILMS = "demo"
BEHAVIOURS = 30  # K in prompts
SHORTEST = 5  # behaviours of the shortest prompts
ML_1M_SPREAD, ML_25M_SPREAD = 1.08, 1.51  # give lengths the variance that MovieLens' have


@dataclass(frozen=True)
class Effort:
    """How much is measured; what is left out is extrapolated in proportion, and the tables say from how much."""

    plain_steps: int = 10
    """Training steps a round of the plain side."""
    our_steps: int = 100
    """Training steps a round of our side: more, since its batches vary in size and a step is short."""
    rounds: int = 3
    """Measured rounds; one more warms up."""
    queries: int = 2048
    """Queries that the plain memory search answers."""
    users: int = 1000
    """Users that the plain evaluation ranks."""
    scale_users: int = 2000
    """Users of the scaling benchmark's smallest size."""
    scale_items: int = 5000
    """Items of the scaling benchmark, at every size."""
    multiples: tuple[int, ...] = (1, 4, 16)
    """Sizes of the scaling benchmark."""
    retrieval_users: int = 6040
    """Users of the retrieval benchmark: MovieLens-1M's, as are the items and interactions."""
    retrieval_items: int = 3706
    retrieval_interactions: int = 1_000_209
    plain_retrievals: int = 4000
    """Samples of the plain retrieval."""
    prompts: int = 20_000
    """Prompts that are put together a round."""
    plain_prompts: int = 4000
    """Prompts that the plain side writes and tokenises a round."""
    scored: int = 4096
    """Prompts scored a round, by either side."""
    tuned: int = 512
    """Prompts of a training epoch, which is a round, of either side."""
    ctr_interactions: int = 25_000_095
    """Interactions of the click-through benchmark: MovieLens-25M's, as are the items and interactions a user."""
    ctr_items: int = 59_047


def synthetic(users: int, items: int, seed: int = 0) -> UserSequences:
    """Random sequences of Amazon Beauty's shape: 5 to 200 interactions a user, mean 9, median 6; long-tailed items."""
    rng = np.random.default_rng(seed)
    lengths = np.minimum(5 + rng.lognormal(np.log(1.8), 1.35, users).astype(np.int64), 200)
    popularity = 1 / (50 + np.arange(items)) ** 0.8
    total = int(lengths.sum())
    drawn = rng.choice(items, total, p=popularity / popularity.sum())
    offsets = np.concatenate([[0], lengths.cumsum()])
    return UserSequences(offsets, drawn, np.arange(total), items)


@dataclass(frozen=True)
class Histories:
    """Interactions that are nothing but an item each: (U + 1,) ``offsets`` into (M,) ``items``."""

    offsets: IntArray
    items: IntArray

    @property
    def lengths(self) -> IntArray:
        """(U,) interactions of each user."""
        return np.diff(self.offsets)

    def targets(self, minimum_history: int = SHORTEST) -> IntArray:
        """(N,) every interaction with at least so many before it by the same user."""
        place = np.arange(len(self.items)) - np.repeat(self.offsets[:-1], self.lengths)
        return np.flatnonzero(place >= minimum_history)

    def mean_history(self, position: IntArray) -> float:
        """Mean number of behaviours before the targets at ``position``."""
        return float((position - self.offsets[user_at(self.offsets, position)]).mean())


def histories(users: int, items: int, interactions: int, spread: float, seed: int = 0) -> Histories:
    """Random histories of MovieLens' shape: 20 items a user and a log-normal number beyond, no item twice.

    Lengths are scaled so that all together come as near to ``interactions`` as the catalogue's size allows. Items are
    uniform: no popular one stays in the processor's cache.
    """
    rng = np.random.default_rng(seed)
    shortest = min(20, items)
    beyond = rng.lognormal(0, spread, users)
    lengths = shortest + (beyond * (interactions - shortest * users) / beyond.sum()).astype(np.int64)
    missing = interactions - int(lengths.sum())
    lengths[rng.permutation(users)[: max(0, missing)]] += 1
    lengths = np.minimum(lengths, items)
    drawn = [rng.choice(items, length, replace=False) for length in lengths.tolist()]
    return Histories(np.concatenate([[0], lengths.cumsum()]), np.concatenate(drawn).astype(np.int64))


def directions(items: int, dim: int, seed: int = 0) -> Float32Array:
    """(I, D) random unit vectors."""
    return normalised(np.random.default_rng(seed).standard_normal((items, dim), dtype=np.float32))


@dataclass(frozen=True)
class Films:
    """Samples with everything that their prompts need, and what a plain implementation would write them from.

    Attributes:
        source: samples, parts of prompts, and two histories of `BEHAVIOURS` each.
        template: the wording.
        names, profiles: (I,) what items are called, (U,) profile lines.
        ratings: (M,) rating of each interaction as a text.
        language_model: the scratch model's settings.
        tokenizer: made from the parts' texts.
    """

    source: PromptSource
    template: Template
    names: list[str]
    profiles: list[str]
    ratings: list[str]
    language_model: LanguageModelSettings
    tokenizer: Any

    @cached_property
    def varied(self) -> PromptSource:
        """The same samples with histories cut to between `SHORTEST` and `BEHAVIOURS` behaviours, drawn evenly."""
        keep = np.random.default_rng(0).integers(SHORTEST, BEHAVIOURS + 1, len(self.source.samples))
        dropped = np.arange(BEHAVIOURS) < BEHAVIOURS - keep[:, None]

        def cut(distances: Distances | RandomHistories) -> Distances:
            assert isinstance(distances, np.ndarray)
            return np.where(dropped, 0, distances).astype(distances.dtype)

        return replace(self.source, recent=cut(self.source.recent), retrieved=cut(self.source.retrieved))


def films(spec: DatasetSpec, tables: Tables, default_model: bool = False) -> Films:
    """Samples and prompts of a data set of films; what is retrieved is random, as the item vectors are.

    The language model has the size that the data set's own settings give it, or the default one.
    """
    own = {} if default_model else spec.overrides.get("base_language_model", {})
    language_model = LanguageModelSettings.model_validate(own)
    rows = tables.interactions
    items = rows["item_index"].to_numpy(np.int64)
    rating = rows["rating"].tolist()
    liked = spec.is_positive(rows["rating"].to_numpy())
    samples = build_ctr_samples(
        rows["user_index"], rows["timestamp"], liked, len(tables.users), tables.time, CtrSettings.model_validate({})
    )
    template = TEMPLATES["movies"]
    parts = build_parts(template, tables.items, tables.users, items, rating)
    names = item_texts(tables.items, template.item)
    chosen = (samples.offsets, samples.position, BEHAVIOURS)
    retrieved = retrieve_behaviours(directions(len(names), 32), items, *chosen)
    return Films(
        PromptSource(samples, items, parts, recent_behaviours(*chosen), retrieved),
        template,
        names,
        profile_texts(tables.users, template),
        [rating_text(value) for value in rating],
        language_model,
        train_tokenizer(
            parts.texts, language_model.vocabulary, list(dict.fromkeys(names)), (template.yes, template.no)
        ),
    )


def all_films(data: Path | None) -> dict[str, Films]:
    """The demo data set always, with its own language model and the default one; MovieLens-100K if ``data`` has its
    folder.
    """
    specs = builtin_specs()
    names = [SYNTHETIC_FILMS]
    if data is not None and (data / REAL_FILMS).is_dir():
        names.append(REAL_FILMS)
    tables = {name: read_tables(specs[name], data) for name in names}
    chosen = {name: films(specs[name], tables[name]) for name in names}
    demo = films(specs[SYNTHETIC_FILMS], tables[SYNTHETIC_FILMS], default_model=True)
    return {**chosen, f"{SYNTHETIC_FILMS}, default model": demo}


def read_tables(spec: DatasetSpec, data: Path | None) -> Tables:
    """The clean tables of a data set from the folder of data sets ``data``, or generated.

    Raises:
        InputError: its files are incomplete or damaged.
    """
    with tempfile.TemporaryDirectory() as cache:
        located = locate_source(spec, data, Path(cache))
        return build_tables(spec, read_raw(spec, located.folder))


def amazon_beauty(data: Path) -> UserSequences:
    """The real data set from the folder of data sets ``data``; see `read_tables`."""
    tables = read_tables(builtin_specs()[REAL], data)
    rows = tables.interactions
    return build_sequences(
        rows["user_index"], rows["item_index"], rows["timestamp"], len(tables.users), len(tables.items)
    )


def workloads(data: Path | None) -> dict[str, UserSequences]:
    """Synthetic sequences always; Amazon Beauty if ``data`` has its folder."""
    chosen = {"synthetic": synthetic(users=4000, items=5000)}
    if data is not None and (data / REAL).is_dir():
        chosen[REAL] = amazon_beauty(data)
    return chosen


@dataclass(frozen=True)
class Setup:
    """What to measure on, and how much of it; what the chosen benchmarks do not need is empty."""

    workloads: Mapping[str, UserSequences]
    effort: Effort
    films: Mapping[str, Films] = field(default_factory=dict)
