"""Whether every rank of a training is alive."""

import time
from dataclasses import dataclass
from pathlib import Path

from rarec.training.worker.worker_files import ENDED, alive_file

LOOK_INTERVAL_S = 1.0


@dataclass(frozen=True)
class Silence:
    """A rank that shows no sign of life."""

    rank: int
    seconds: float
    doing: str  # what it last reported


class Pulse:
    """Watches the `alive` files. Any change is a sign of life, so the clocks of the machines need not agree."""

    def __init__(self, folder: Path, ranks: int) -> None:
        now = time.monotonic()
        self._files = {rank: alive_file(folder, rank) for rank in range(ranks)}
        self._signs: dict[int, tuple[int, str]] = {}
        self._changed = dict.fromkeys(self._files, now)
        self._looked_at = -float("inf")

    def all_ended(self) -> bool:
        """Whether every rank has finished."""
        now = time.monotonic()
        for rank in self._files:
            self._look(rank, now)
        return all(self._doing(rank) == ENDED for rank in self._files)

    def silent(self, limit_s: float) -> list[Silence]:
        """Unfinished ranks that have not changed their file for `limit_s` seconds, the longest silent first.

        Looks at most once a second; in between it returns nothing.
        """
        now = time.monotonic()
        if now - self._looked_at < LOOK_INTERVAL_S:
            return []
        self._looked_at = now
        for rank in self._files:
            self._look(rank, now)
        found = [
            Silence(rank, now - since, self._doing(rank))
            for rank, since in self._changed.items()
            if now - since > limit_s and self._doing(rank) != ENDED
        ]
        return sorted(found, key=lambda one: -one.seconds)

    def _look(self, rank: int, now: float) -> None:
        try:
            with self._files[rank].open(encoding="utf-8") as file:
                sign = (self._files[rank].stat().st_mtime_ns, file.read())
        except OSError:  # not there yet, or the shared folder is unavailable for a moment
            return
        if self._signs.get(rank) != sign:
            self._signs[rank], self._changed[rank] = sign, now

    def _doing(self, rank: int) -> str:
        if rank not in self._signs:
            return "nothing: it never started"
        return self._signs[rank][1].partition(" ")[2]
