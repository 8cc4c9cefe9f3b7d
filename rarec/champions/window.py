"""The newest events: how well recommenders predict them, and how far they are from what came before."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd
import scipy  # loads its parts when they are used

from rarec.champions.promotion import CandidateSettings
from rarec.data.sequences import HELD_OUT, draw_rows
from rarec.errors import InputError
from rarec.metrics.ranking import hit_rate, ndcg
from rarec.metrics.significance import PairedComparison, compare_paired
from rarec.types import Float64Array, IntArray

CHOICE = "NDCG@10"
CHOICE_ERROR = "NDCG@10 standard error"
DRAWS = 20  # random draws that show what is chance
FIGURES = {"HR@5": (hit_rate, 5), "HR@10": (hit_rate, 10), CHOICE: (ndcg, 10)}


@dataclass(frozen=True)
class Window:
    """E events to predict.

    Attributes:
        events: (E,) rows of the interactions, ascending.
        users: (E,) their users (`user_index`).
    """

    events: IntArray
    users: IntArray

    def __len__(self) -> int:
        return len(self.events)

    def per_user(self, values: npt.ArrayLike) -> Float64Array:
        """(U,) mean over each user's events, in the order of users."""
        _, user = np.unique(self.users, return_inverse=True)
        return np.bincount(user, np.asarray(values, dtype=np.float64)) / np.bincount(user)

    def figures(self, ranks: Float64Array) -> dict[str, float]:
        """Mean metrics, the standard error of NDCG@10, and the share of events without a finite rank.

        Metrics are averaged over each user's events and then over users, so all users count alike.
        """
        users = {name: self.per_user(measure(ranks, k)) for name, (measure, k) in FIGURES.items()}
        values = {name: float(own.mean()) for name, own in users.items()}
        choice = users[CHOICE]
        # A single user says nothing about others, so take the largest deviation of figures between 0 and 1.
        error = float(choice.std(ddof=1) / np.sqrt(len(choice))) if len(choice) > 1 else 0.5
        return {**values, CHOICE_ERROR: error, "missed": float(np.isinf(ranks).mean())}

    def drawn(self, most: int, seed: int) -> "Window":
        """At most ``most`` of the events, drawn at random."""
        if len(self) <= most:
            return self
        rows = draw_rows(np.arange(len(self)), most, seed)
        return Window(self.events[rows], self.users[rows])

    def compare(self, baseline: Float64Array, candidate: Float64Array, seed: int = 42) -> PairedComparison:
        """Candidate minus baseline in NDCG@10, paired by user; both (E,) ranks of the same events."""
        measure, k = FIGURES[CHOICE]
        pair = (self.per_user(measure(ranks, k)) for ranks in (baseline, candidate))
        return compare_paired(*pair, seed=seed)


def newest_window(interactions: pd.DataFrame, since: int | None, last_only: bool = False) -> Window:
    """The events from ``since`` (seconds) on. None means leave-one-out: the last event of users with at least three.

    Events with an item that the user already had are left out.

    Args:
        interactions: The clean table, sorted by user and time.
        last_only: Whether to keep only events that are also in the leave-one-out test.
    """
    users = interactions["user_index"].to_numpy(np.int64)
    repeated = interactions.duplicated(["user_index", "item_index"]).to_numpy()
    chosen = np.ones(len(users), dtype=bool)
    if since is None or last_only:
        last = np.append(users[1:] != users[:-1], True) if len(users) else np.zeros(0, dtype=bool)
        chosen &= last & (np.bincount(users)[users] > HELD_OUT)
    if since is not None:
        chosen &= interactions["timestamp"].to_numpy() >= since
    events = np.flatnonzero(chosen & ~repeated)
    return Window(events, users[events])


def unknown_shares(
    interactions: pd.DataFrame, window: Window, item_ids: pd.Series, user_ids: pd.Series
) -> dict[str, float]:
    """Shares of the window's events whose item, or user, a model does not know."""
    rows = interactions.iloc[window.events]
    pairs = {"unknown_items": ("item_id", item_ids), "unknown_users": ("user_id", user_ids)}
    return {
        name: 1 - float(rows[column].astype(str).isin(set(ids.astype(str))).mean())
        for name, (column, ids) in pairs.items()
    }


def item_distances(before: pd.Series, after: pd.Series, seed: int = 42) -> dict[str, float]:
    """How far the items of new events are from those of earlier events.

    A few events never have the distribution of many, even if nothing has changed. So the distance is compared with the
    mean distance of equally many events drawn at random from the earlier ones.

    Args:
        before, after: Item of each event.
        seed: Seed of the draws.

    Returns:
        ``item_distance``, the Jensen-Shannon distance of both distributions (base 2; 0: equal, 1: nothing in common);
        ``item_distance_by_chance``, that of the draws; and ``item_shift``, the distance beyond chance as a share of the
        largest possible one (0: no more than chance, 1: nothing in common).
    """
    code, items = pd.factorize(pd.concat([before, after]))
    old, new = (np.bincount(part, minlength=len(items)) for part in (code[: len(before)], code[len(before) :]))
    distance = float(scipy.spatial.distance.jensenshannon(old, new, base=2))
    generator = np.random.default_rng(seed)
    draws = generator.multinomial(len(after), old / old.sum(), size=DRAWS)
    chance = float(np.mean([scipy.spatial.distance.jensenshannon(old, draw, base=2) for draw in draws]))
    shift = max(0.0, distance - chance) / (1 - chance) if chance < 1 else 0.0
    return {"item_distance": distance, "item_distance_by_chance": chance, "item_shift": shift}


def shift_of_items(table: pd.DataFrame, since: int) -> dict[str, float]:
    """`item_distances` between the events before ``since`` (seconds) and those from then on."""
    new = table["timestamp"].to_numpy() >= since
    return item_distances(table["item_id"][~new], table["item_id"][new])


def choose_window(
    table: pd.DataFrame, clock: bool, since: int, settings: CandidateSettings
) -> tuple[Window, dict[str, object]]:
    """Events on which none of the models was trained, and their description in words and numbers.

    Args:
        since: Time in seconds from which on no model was trained.
    """
    window, what, protocol = newest_window(table, since), "all events that came after the training data", "since"
    few = len(window) < settings.least_events or len(np.unique(window.users)) < settings.least_users
    if not clock or few:
        window, what = newest_window(table, None), "the last event of every user (leave-one-out)"
        protocol = "last"
    if len(window) == 0:
        raise InputError(
            "there are no events to compare models on, as no user has three different items; use more data"
        )
    if len(window) > settings.most_events:
        window, what = window.drawn(settings.most_events, settings.seed), f"{settings.most_events:,} of {what}"
    times = table["timestamp"].to_numpy()
    return window, {
        "what": what,
        "protocol": protocol,
        "events": len(window),
        "users": len(np.unique(window.users)),
        "from": int(times[window.events].min()),
        "to": int(times[window.events].max()),
        "newest": int(times.max()),
    }


def new_events(table: pd.DataFrame, since: int, minimum_history: int) -> IntArray:
    """Rows from ``since`` (seconds) on with enough behaviours of their user before them.

    Args:
        table: Clean interactions, sorted by (user, time).
    """
    place = table.groupby("user_index", sort=False).cumcount().to_numpy()
    return np.flatnonzero((table["timestamp"].to_numpy() >= since) & (place >= minimum_history))
