"""Decides which warnings are told: one per key and period, and how many were kept back.

For what a client can provoke at will. The caller reads the clock; any unit, as long as it is one.
Keys are words of the code, never a client's data: they are remembered for ever.
"""


class RateLimit:
    """At most one record per key every `period`; the others are counted."""

    __slots__ = ("_period", "_seen")

    def __init__(self, period: float) -> None:
        self._period = period
        self._seen: dict[str, tuple[float, int]] = {}  # key -> told at, kept back since

    def admit(self, key: str, now: float) -> int | None:
        """Return how many were kept back since the last one told, or None: keep this back too.

        Zero is a leave to tell, so compare with None:
        `if (suppressed := limit.admit("oversize", now)) is not None: warn(suppressed=suppressed)`.
        """
        told_at, suppressed = self._seen.get(key, (now - self._period, 0))
        if now - told_at < self._period:
            self._seen[key] = told_at, suppressed + 1
            return None
        self._seen[key] = now, 0
        return suppressed
