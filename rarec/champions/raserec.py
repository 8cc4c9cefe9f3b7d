"""A trained recommender among interactions that came after it: memory refreshed without training, later events ranked.

Its encoder knows the items and users of its own training. Interactions of today are translated: users stand as they do
today, items as the encoder knows them, and what it does not know is left out.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

import numpy as np
import pandas as pd

from rarec.data.ids import IdLookup
from rarec.data.sequences import UserSequences, ranges
from rarec.raserec.recommender import Recommender
from rarec.retrieval.memory import MemoryBank
from rarec.types import Float64Array, IntArray


@dataclass(frozen=True)
class Translation:
    """Interactions of today in the words of a served recommender.

    Attributes:
        sequences: of today's users (`user_index`), with the items that the encoder knows.
        positions: (N,) where each interaction stands in them; -1 if its item is unknown.
        user_ids: (U,) of today's users.
        clock: whether timestamps are times, so that "before" has a meaning between users.
    """

    sequences: UserSequences
    positions: IntArray
    user_ids: pd.Series
    clock: bool

    def proper_prefixes(self, until: int | None = None) -> IntArray:
        """Every prefix that has a next item, which came before ``until`` (seconds) if that is given; ascending."""
        ends = self.sequences.offsets[1:][self.sequences.lengths > 0] - 1
        prefixes = np.setdiff1d(np.arange(len(self.sequences.items)), ends, assume_unique=True)
        if until is None:
            return prefixes
        return prefixes[self.sequences.timestamps[prefixes + 1] < until]


@dataclass
class ServedRecommender:
    """A recommender with the ids behind its numbers.

    Attributes:
        recommender: encoder, bank and module.
        item_ids: (I,) as published, in the encoder's order.
        user_ids: (U,) as published, in the order of ``sequences``.
        sequences: in which the bank's memories stand.
    """

    recommender: Recommender
    item_ids: pd.Series
    user_ids: pd.Series
    sequences: UserSequences

    @classmethod
    def load(
        cls, encoder: Path, bank: Path, module: Path, items: Path, users: Path, sequences: Path, fingerprint: str
    ) -> Self:
        """Read the artifacts' folders; ``fingerprint`` is the encoder's.

        Raises:
            InputError: bank or module belong to another encoder, or the encoder to another catalogue.
        """
        item_ids = pd.read_parquet(items / "items.parquet", columns=["item_id"])["item_id"]
        user_ids = pd.read_parquet(users / "users.parquet", columns=["user_id"])["user_id"]
        recommender = Recommender.load(encoder, bank, module, fingerprint, len(item_ids))
        return cls(recommender, item_ids, user_ids, UserSequences.load(sequences))

    def translate(self, interactions: pd.DataFrame, clock: bool) -> Translation:
        """``interactions``: the clean table, sorted by user and time (see `rarec.data.tables`)."""
        items = IdLookup(self.item_ids).rows(interactions["item_id"])
        known = items >= 0
        opens = np.diff(interactions["user_index"].to_numpy(np.int64), prepend=-1) != 0
        users = opens.cumsum() - 1  # without gaps, also where the table is a part of all interactions
        counts = np.bincount(users[known], minlength=int(opens.sum()))
        sequences = UserSequences(
            np.concatenate([[0], counts.cumsum()]),
            items[known],
            interactions["timestamp"].to_numpy(np.int64)[known],
            len(self.item_ids),
        )
        positions = np.where(known, known.cumsum() - 1, -1)
        return Translation(sequences, positions, interactions["user_id"][opens].reset_index(drop=True), clock)

    def carried(self, translation: Translation) -> MemoryBank:
        """The bank as it is, its memories where they stand today.

        A memory stays valid while its user's items up to its next one are today what they were: events that came late
        end those behind them.
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
        """The bank with everything that happened since, before ``until`` if that is given; nothing is trained.

        Only prefixes that no valid memory holds are encoded.
        """
        bank = self.carried(translation)
        new = unremembered(bank, translation, until)
        if len(new):
            encoded = self.recommender.encoder.encode(translation.sequences, new)
            bank.append(translation.sequences, new, encoded.cpu().numpy())
        return bank

    def ranks(self, translation: Translation, events: IntArray, bank: MemoryBank) -> Float64Array:
        """(E,) rank of each event's item among all items of the encoder but those its user already had.

        The question is asked just before the event: the query is what stands before it in the user's history, and where
        there is a clock every memory is older than the event. Where the user did several things at one time, the query
        holds those that come first in the data, though no memory of that time is seen. Infinite where the item is
        unknown, or the user did nothing known before.

        Args:
            events: (E,) rows of the translated interactions, ascending.
            bank: `carried` or `refreshed` for the same translation.
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
    """The prefixes that no memory of a carried bank holds, which `ServedRecommender.refreshed` would add."""
    return np.setdiff1d(translation.proper_prefixes(until), bank.prefixes, assume_unique=True)


def _common_prefix(old: UserSequences, new: UserSequences, today: IntArray) -> IntArray:
    """(U,) how many of each old user's items are unchanged from the start; ``today``: (U,) their users now, or -1."""
    there = today >= 0
    lengths = np.zeros(old.n_users, dtype=np.int64)
    lengths[there] = np.minimum(old.lengths[there], new.lengths[today[there]])
    users = np.repeat(np.arange(old.n_users), lengths)
    starts = np.where(there, new.offsets[today], 0)
    same = old.items[ranges(old.offsets[:-1], lengths)] == new.items[ranges(starts, lengths)]
    place = np.arange(len(users)) - np.repeat(lengths.cumsum() - lengths, lengths)
    np.minimum.at(lengths, users[~same], place[~same])
    return lengths
