"""A trained recommender on interactions that came after its training: its memory is refreshed, and later events ranked.

The encoder knows the items of its own training. So today's interactions are translated: users are numbered as today,
items as the encoder knows them, and items that it does not know are left out.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

import numpy as np
import pandas as pd

from rarec.data.ids import IdLookup
from rarec.data.sequences import UserSequences, as_times, ranges
from rarec.raserec.recommender import Recommender
from rarec.retrieval.memory import MemoryBank
from rarec.types import Float64Array, IntArray


@dataclass(frozen=True)
class Translation:
    """Today's interactions, in terms of a served recommender.

    Attributes:
        sequences: Sequences of today's users (`user_index`), with the items that the encoder knows.
        positions: (N,) position of each interaction in them; -1 if its item is unknown.
        user_ids: (U,) ids of today's users.
        clock: Whether timestamps are times, which can be compared between users.
    """

    sequences: UserSequences
    positions: IntArray
    user_ids: pd.Series
    clock: bool

    def proper_prefixes(self, until: int | None = None) -> IntArray:
        """Ascending prefixes that have a next item; with ``until`` (seconds), one that came before it."""
        ends = self.sequences.offsets[1:][self.sequences.lengths > 0] - 1
        prefixes = np.setdiff1d(np.arange(len(self.sequences.items)), ends, assume_unique=True)
        if until is None:
            return prefixes
        return prefixes[self.sequences.timestamps[prefixes + 1] < until]


@dataclass
class ServedRecommender:
    """A recommender, with the ids of its items and users.

    Attributes:
        recommender: Encoder, bank and module.
        item_ids: (I,) published ids, in the encoder's order.
        user_ids: (U,) published ids, in the order of ``sequences``.
        sequences: The sequences to which the bank's positions refer.
    """

    recommender: Recommender
    item_ids: pd.Series
    user_ids: pd.Series
    sequences: UserSequences

    @classmethod
    def load(
        cls, encoder: Path, bank: Path, module: Path, items: Path, users: Path, sequences: Path, fingerprint: str
    ) -> Self:
        """Load a recommender from the folders of artifacts. ``fingerprint`` is the encoder's.

        Raises:
            InputError: Bank or module belong to another encoder, or the encoder to another catalogue.
        """
        item_ids = pd.read_parquet(items / "items.parquet", columns=["item_id"])["item_id"]
        user_ids = pd.read_parquet(users / "users.parquet", columns=["user_id"])["user_id"]
        recommender = Recommender.load(encoder, bank, module, fingerprint, len(item_ids))
        return cls(recommender, item_ids, user_ids, UserSequences.load(sequences))

    def translate(self, interactions: pd.DataFrame, clock: bool) -> Translation:
        """Translate ``interactions``, the clean table, sorted by user and time (see `rarec.data.tables`)."""
        items = IdLookup(self.item_ids).rows(interactions["item_id"])
        known = items >= 0
        opens = np.diff(interactions["user_index"].to_numpy(np.int64), prepend=-1) != 0
        users = opens.cumsum() - 1  # without gaps, even if the table is only a part of all interactions
        counts = np.bincount(users[known], minlength=int(opens.sum()))
        sequences = UserSequences(
            np.concatenate([[0], counts.cumsum()]),
            items[known],
            as_times(interactions["timestamp"])[known],
            len(self.item_ids),
        )
        positions = np.where(known, known.cumsum() - 1, -1)
        return Translation(sequences, positions, interactions["user_id"][opens].reset_index(drop=True), clock)

    def carried(self, translation: Translation) -> MemoryBank:
        """The bank as it is, with today's positions.

        A memory stays valid as long as its user's items, up to its next item, are still the same. Events that arrive
        late invalidate the memories after them.
        """
        bank, old, new = self.recommender.bank.copy(), self.sequences, translation.sequences
        today = IdLookup(translation.user_ids).rows(self.user_ids)
        unchanged = _common_prefix(old, new, today)
        place = bank.prefixes - old.offsets[bank.users]
        kept = place + 1 < unchanged[bank.users]
        users = today[bank.users[kept]]
        prefixes = new.offsets[users] + place[kept]
        if not kept.all():
            bank.keep(kept)
        return replace(bank, users=users, prefixes=prefixes, known_at=new.timestamps[prefixes + 1])

    def refreshed(self, translation: Translation, until: int | None = None) -> MemoryBank:
        """The bank with everything that happened since, or before ``until``. Nothing is trained.

        Only prefixes without a valid memory are encoded.
        """
        bank = self.carried(translation)
        new = unremembered(bank, translation, until)
        if len(new):
            encoded = self.recommender.encoder.encode(translation.sequences, new)
            bank.append(translation.sequences, new, encoded.cpu().numpy())
        return bank

    def ranks(self, translation: Translation, events: IntArray, bank: MemoryBank) -> Float64Array:
        """(E,) rank of each event's item among all items of the encoder, except those that the user already had.

        The query is asked just before the event: it is what comes before the event in the user's history, and if there
        is a clock, all memories are older than the event. If the user did several things at the same time, the query
        includes those that come first in the data, but no memories of that time. The rank is infinite if the item is
        unknown, or if the user did nothing known before.

        Args:
            events: (E,) rows of the translated interactions, ascending.
            bank: From `carried` or `refreshed`, for the same translation.
        """
        sequences = translation.sequences
        targets = translation.positions[events]
        ranks = np.full(len(events), np.inf)
        asked = np.flatnonzero((targets >= 0) & ~np.isin(targets, sequences.offsets[:-1]))
        if len(asked) == 0:
            return ranks
        targets = targets[asked]
        cut = bank.settings.model_copy(update={"time_cut": translation.clock})
        recommender = Recommender(self.recommender.encoder, replace(bank, settings=cut), self.recommender.module)
        _, vectors = recommender.represent(sequences, targets - 1, asked_at=sequences.timestamps[targets] - 1)
        ranks[asked] = recommender.rank(vectors, sequences, targets - 1, 0).rank_masked.numpy()
        return ranks


def unremembered(bank: MemoryBank, translation: Translation, until: int | None = None) -> IntArray:
    """Prefixes without a memory in a carried bank, which `ServedRecommender.refreshed` would add."""
    return np.setdiff1d(translation.proper_prefixes(until), bank.prefixes, assume_unique=True)


def _common_prefix(old: UserSequences, new: UserSequences, today: IntArray) -> IntArray:
    """(U,) number of items, from the start, that are unchanged for each old user.

    Args:
        today: (U,) today's index of each old user, or -1.
    """
    there = today >= 0
    lengths = np.zeros(old.n_users, dtype=np.int64)
    lengths[there] = np.minimum(old.lengths[there], new.lengths[today[there]])
    users = np.repeat(np.arange(old.n_users), lengths)
    starts = np.where(there, new.offsets[today], 0)
    same = old.items[ranges(old.offsets[:-1], lengths)] == new.items[ranges(starts, lengths)]
    place = np.arange(len(users)) - np.repeat(lengths.cumsum() - lengths, lengths)
    np.minimum.at(lengths, users[~same], place[~same])
    return lengths
