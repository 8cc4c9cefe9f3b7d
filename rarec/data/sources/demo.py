"""The demo data set: made-up films, viewers and ratings, written in the format of MovieLens-1M.

Everything is drawn from one seed:

- A film has a theme and with it a main genre, perhaps a second genre, a quality, a long-tailed popularity and a few
  *followers*: its sequel, films of the same theme and a few others.
- A viewer has a taste over genres, partly determined by sex, age group and occupation. It drifts from one point to
  another over the viewer's history. No viewer rates a film twice.
- A viewer now and then follows a *programme*: a festival's films in their order. There are many programmes and each has
  few viewers, so what comes next in one is rare: hard to learn, but easy to recall by who remembers others there.
- Otherwise, with probability `transition_probability`, the next film is an unseen follower of one of the latest films,
  mostly of the last one. Else it is drawn by popularity times taste.
- The rating is the taste for the film's genres plus the film's quality plus noise, rounded to 1 to 5. Of a long history
  only the few films of the target's genres tell the taste for these.

So models can learn the next film from the latest ones, and the rating from profile, history and the film's text.
Programmes are what a memory of similar users is for, and genres what retrieving similar behaviours is for.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from pydantic import Field

from rarec.config import Settings

GENERATOR_VERSION = 2  # increase it with every change that alters the files

# theme: (main genre, its words for titles)
THEMES: dict[str, tuple[str, tuple[str, ...]]] = {
    "space": ("Sci-Fi", ("Orbit", "Starship", "Comet", "Nebula")),
    "robots": ("Sci-Fi", ("Android", "Machine", "Circuit", "Automaton")),
    "heist": ("Crime", ("Vault", "Diamond", "Getaway", "Safecracker")),
    "mafia": ("Crime", ("Don", "Syndicate", "Godmother", "Racket")),
    "romance": ("Romance", ("Kiss", "Letter", "Wedding", "Valentine")),
    "paris": ("Romance", ("Café", "Boulevard", "Montmartre", "Rendezvous")),
    "slapstick": ("Comedy", ("Banana", "Butler", "Mishap", "Cousin")),
    "college": ("Comedy", ("Dormitory", "Prom", "Semester", "Fraternity")),
    "war": ("War", ("Trench", "Battalion", "Armistice", "Regiment")),
    "western": ("Western", ("Saddle", "Sheriff", "Canyon", "Outlaw")),
    "haunting": ("Horror", ("Crypt", "Séance", "Phantom", "Cellar")),
    "vampires": ("Horror", ("Fang", "Coffin", "Bloodline", "Nightfall")),
    "fairytale": ("Children's", ("Dragon", "Princess", "Teapot", "Goblin")),
    "animals": ("Children's", ("Puppy", "Otter", "Pony", "Squirrel")),
    "spies": ("Thriller", ("Agent", "Cipher", "Embassy", "Double")),
    "courtroom": ("Drama", ("Verdict", "Witness", "Jury", "Appeal")),
    "family": ("Drama", ("Daughter", "Orchard", "Inheritance", "Reunion")),
    "musical": ("Musical", ("Chorus", "Ballad", "Trumpet", "Curtain")),
    "treasure": ("Adventure", ("Island", "Compass", "Temple", "Expedition")),
    "racing": ("Action", ("Engine", "Turbo", "Highway", "Pursuit")),
}
ADJECTIVES = (
    "Silent", "Golden", "Broken", "Last", "Hidden", "Crimson", "Wild", "Lost", "Midnight", "Electric",
    "Gentle", "Iron", "Frozen", "Secret", "Restless", "Burning",
)  # fmt: skip
PLACES = (
    "Harbor", "Winter", "River", "City", "Summer", "Valley", "Mirror", "Bridge", "Garden", "Storm",
    "Desert", "Station", "Lighthouse", "Forest", "Morning", "Border",
)  # fmt: skip
ROMAN = ("", " II", " III", " IV")
GENRES = tuple(sorted({genre for genre, _ in THEMES.values()}))

AGE_CODES = np.array([1, 18, 25, 35, 45, 50, 56])  # as in ml-1m
AGE_SHARES = np.array([0.04, 0.18, 0.35, 0.20, 0.09, 0.08, 0.06])
OCCUPATIONS = 21
FEMALE_SHARE = 0.28
SECOND_GENRE_SHARE = 0.4
SERIES_SHARE = 0.3  # share of films that begin a series of two to four
FOLLOWERS = 6
PROGRAMME = 8  # films of a programme
LATEST_SHARES = (
    0.8,
    0.15,
    0.05,
)  # how often a transition starts from the last, the second last and the third last film
POPULARITY_EXPONENT = 0.8
MIN_INTERACTIONS = 20  # as in MovieLens
START = 956_700_000  # April 2000, where MovieLens-1M starts
SPAN = 2 * 365 * 86_400  # seconds over which viewers join
MEAN_GAP = 2 * 86_400  # mean seconds between two ratings of a viewer


class DemoSettings(Settings):
    """Size and seed of the demo data set."""

    users: int = Field(default=1200, ge=10, description="Number of viewers.")
    items: int = Field(default=500, ge=100, description="Number of films.")
    interactions_per_user: float = Field(
        default=45, gt=MIN_INTERACTIONS, description="Approximate mean number of ratings per viewer."
    )
    transition_probability: float = Field(
        default=0.6, ge=0, le=1, description="Share of films that follow from the latest ones rather than from taste."
    )
    programmes: int = Field(default=600, ge=0, description="Number of programmes: films in a fixed order.")
    programme_probability: float = Field(
        default=0.1,
        ge=0,
        le=1,
        description="How often a viewer between programmes begins one with the next film.",
    )
    seed: int = Field(default=7, ge=0, description="Seed of the generator.")


@dataclass(frozen=True)
class _Films:
    titles: list[str]
    genre_names: list[str]
    genres: np.ndarray  # (I, G) float, rows sum to 1
    quality: np.ndarray  # (I,)
    popularity: np.ndarray  # (I,) sums to 1
    followers: np.ndarray  # (I, FOLLOWERS) int
    programmes: np.ndarray  # (P, PROGRAMME) int


def generate_demo(settings: DemoSettings, folder: Path) -> None:
    """Write `users.dat`, `movies.dat` and `ratings.dat` in MovieLens-1M's format into the existing `folder`."""
    rng = np.random.default_rng(settings.seed)
    films = _make_films(settings, rng)
    profiles, tastes = _make_users(settings.users, rng)
    ids = np.sort(rng.choice(np.arange(1, settings.items + settings.items // 10 + 1), settings.items, replace=False))
    ratings = []
    for user in range(settings.users):
        watched, stars, times = _history(settings, films, tastes[user], rng)
        # MovieLens' own file is not in time order within a user either.
        ratings += [
            f"{user + 1}::{ids[watched[i]]}::{stars[i]}::{times[i]}" for i in rng.permutation(len(watched)).tolist()
        ]
    movies = [f"{ids[i]}::{films.titles[i]}::{films.genre_names[i]}" for i in range(settings.items)]
    for name, lines in (("users.dat", profiles), ("movies.dat", movies), ("ratings.dat", ratings)):
        (folder / name).write_bytes("".join(line + "\n" for line in lines).encode("latin-1"))


def _make_films(settings: DemoSettings, rng: np.random.Generator) -> _Films:
    count = settings.items
    themes = list(THEMES)
    titles: list[str] = []
    genre_names: list[str] = []
    theme_of: list[int] = []
    sequel_of: list[int] = []  # the film before it in its series, or -1
    used: set[str] = set()
    while len(titles) < count:
        theme = int(rng.integers(len(themes)))
        genre, words = THEMES[themes[theme]]
        name = f"{rng.choice(ADJECTIVES)} {rng.choice(words)} of the {rng.choice(PLACES)}"
        if name in used:
            continue
        used.add(name)
        names = {genre}
        if rng.random() < SECOND_GENRE_SHARE:
            names.add(str(rng.choice(GENRES)))
        parts = int(rng.integers(2, len(ROMAN) + 1)) if rng.random() < SERIES_SHARE else 1
        year = int(rng.integers(1950, 1998))
        for part in range(min(parts, count - len(titles))):
            sequel_of.append(len(titles) - 1 if part else -1)
            titles.append(f"{name}{ROMAN[part]} ({min(year + 2 * part, 2000)})")
            genre_names.append("|".join(sorted(names)))
            theme_of.append(theme)
    genres = np.array([[genre in names.split("|") for genre in GENRES] for names in genre_names], dtype=float)
    popularity = (rng.permutation(count) + 1.0) ** -POPULARITY_EXPONENT
    popularity /= popularity.sum()
    return _Films(
        titles=titles,
        genre_names=genre_names,
        genres=genres / genres.sum(axis=1, keepdims=True),
        quality=rng.normal(0, 0.5, count),
        popularity=popularity,
        followers=_followers(np.array(theme_of), np.array(sequel_of), rng),
        programmes=np.array([rng.permutation(count)[:PROGRAMME] for _ in range(settings.programmes)]),
    )


def _followers(theme_of: np.ndarray, sequel_of: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """(I, FOLLOWERS): the sequel if there is one, then films of the same theme; the last two are from anywhere."""
    count = len(theme_of)
    followers = np.empty((count, FOLLOWERS), dtype=np.int64)
    for film in range(count):
        alike = np.flatnonzero((theme_of == theme_of[film]) & (np.arange(count) != film))
        others = np.flatnonzero(np.arange(count) != film)
        sequel = np.flatnonzero(sequel_of == film)
        same = rng.permutation(alike[~np.isin(alike, sequel)])
        row = np.concatenate([sequel, same])[: FOLLOWERS - 2]
        rest = rng.permutation(others[~np.isin(others, row)])
        followers[film] = np.concatenate([row, rest[: FOLLOWERS - len(row)]])
    return followers


def _make_users(count: int, rng: np.random.Generator) -> tuple[list[str], np.ndarray]:
    """Lines of users.dat, and (U, 2, G) tastes at the start and the end of each viewer's history."""
    genres = len(GENRES)
    by_sex, by_age = rng.normal(0, 0.5, (2, genres)), rng.normal(0, 0.5, (len(AGE_CODES), genres))
    by_occupation = rng.normal(0, 0.4, (OCCUPATIONS, genres))
    female = rng.random(count) < FEMALE_SHARE
    age = rng.choice(len(AGE_CODES), count, p=AGE_SHARES)
    occupation = rng.integers(OCCUPATIONS, size=count)
    sex = np.where(female, "F", "M")
    zip_code = rng.integers(100_000, size=count)
    lines = [
        f"{user + 1}::{sex[user]}::{AGE_CODES[age[user]]}::{occupation[user]}::{zip_code[user]:05d}"
        for user in range(count)
    ]
    shared = by_sex[female.astype(int)] + by_age[age] + by_occupation[occupation]
    return lines, shared[:, None, :] + rng.normal(0, 0.9, (count, 2, genres))


def _history(
    settings: DemoSettings, films: _Films, taste: np.ndarray, rng: np.random.Generator
) -> tuple[list[int], np.ndarray, np.ndarray]:
    """Films of one viewer in the order watched, with their ratings (1 to 5) and times (ascending seconds)."""
    beyond = settings.interactions_per_user - MIN_INTERACTIONS
    length = min(MIN_INTERACTIONS + int(rng.gamma(1.2, beyond / 1.2)), settings.items // 2)
    seen = np.zeros(settings.items, dtype=bool)
    watched: list[int] = []
    liking = np.empty(length)
    programme: list[int] = []  # what is left of it
    for step in range(length):
        drift = step / length
        likes = films.genres @ ((1 - drift) * taste[0] + drift * taste[1])
        if not programme and settings.programmes and rng.random() < settings.programme_probability:
            programme = films.programmes[rng.integers(settings.programmes)].tolist()
        programme = [film for film in programme if not seen[film]]
        if programme:
            film = programme.pop(0)
        elif rng.random() < settings.transition_probability:
            film = _follower(films, watched, seen, rng)
        else:
            film = -1
        if film < 0:
            weights = films.popularity * np.exp(likes) * ~seen
            film = int(np.searchsorted(np.cumsum(weights), rng.random() * weights.sum(), side="right"))
        seen[film] = True
        watched.append(film)
        liking[step] = likes[film] + films.quality[film]
    stars = np.clip(np.rint(3.5 + 0.9 * liking + rng.normal(0, 0.6, length)), 1, 5).astype(int)
    gaps = 1 + rng.exponential(MEAN_GAP, length)
    times = START + rng.integers(SPAN) + np.cumsum(gaps).astype(np.int64)
    return watched, stars, times


def _follower(films: _Films, watched: list[int], seen: np.ndarray, rng: np.random.Generator) -> int:
    """An unseen follower of one of the latest films, more likely one listed first; -1 if there is none."""
    back = int(rng.choice(len(LATEST_SHARES), p=LATEST_SHARES)) + 1
    if back > len(watched):
        return -1
    candidates = films.followers[watched[-back]]
    weights = ~seen[candidates] / np.arange(1, FOLLOWERS + 1)
    if not weights.any():
        return -1
    return int(rng.choice(candidates, p=weights / weights.sum()))


def shuffle_control(interactions: pd.DataFrame, seed: int) -> pd.DataFrame:
    """An unlearnable copy: items are shuffled among the interactions, so no item says anything about the next.

    Popularity of items and activity of users stay the same; a user may meet an item twice. Ratings and times stay in
    their rows, so ratings no longer depend on the items either.
    """
    order = np.random.default_rng(seed).permutation(len(interactions))
    columns = [name for name in ("item_id", "item_index") if name in interactions]
    return interactions.assign(**{name: interactions[name].to_numpy()[order] for name in columns})
