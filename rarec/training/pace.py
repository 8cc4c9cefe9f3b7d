"""How long the rest takes, at the pace of the last minute."""

from collections import deque

WINDOW_S = 60.0


class Pace:
    """Seconds that a step takes now: over the looks of the last minute, or the last two if they are further apart.

    The mean since the start would tell for long of a machine that was busy, or of libraries that warmed up.
    """

    def __init__(self, step: int, now: float) -> None:
        self._looks = deque([(now, step)])

    def look(self, step: int, now: float) -> float | None:
        """Seconds a step at time ``now``, when ``step`` steps are done; None if none is known to have been done."""
        looks = self._looks
        looks.append((now, step))
        while len(looks) > 2 and now - looks[1][0] >= WINDOW_S:
            looks.popleft()
        then, first = looks[0]
        return (now - then) / (step - first) if step > first else None
