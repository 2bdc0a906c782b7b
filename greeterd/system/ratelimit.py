"""Rate-limits warnings per key; counts suppressed ones.

For warnings that a client can cause at will. The caller reads the clock, in any unit. Keys are
constants of the code, never a client's data: they are kept for ever.
"""


class RateLimit:
    """Admits one record per key every `period`; counts the others."""

    __slots__ = ("_period", "_seen")

    def __init__(self, period: float) -> None:
        self._period = period
        self._seen: dict[str, tuple[float, int]] = {}  # key -> admitted at, suppressed since

    def admit(self, key: str, now: float) -> int | None:
        """Return how many were suppressed since the last one admitted; None: suppress this one.

        0 admits the record, so compare with None:
        `if (suppressed := limit.admit("oversize", now)) is not None: warn(suppressed=suppressed)`.
        """
        admitted_at, suppressed = self._seen.get(key, (now - self._period, 0))
        if now - admitted_at < self._period:
            self._seen[key] = admitted_at, suppressed + 1
            return None
        self._seen[key] = now, 0
        return suppressed
