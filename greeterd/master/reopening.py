"""Waits until every worker has opened its log files anew, for whoever asked for that."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from greeterd.supervisor.ids import WorkerId


@dataclass(slots=True)
class _Round:
    waiting: set[WorkerId]
    done: Callable[[str], None]
    reasons: list[str] = field(default_factory=list)


class Reopening:
    """The rounds that are not complete; each worker answers them in their order."""

    def __init__(self) -> None:
        self._rounds: list[_Round] = []

    def begin(self, workers: Iterable[WorkerId], reason: str, done: Callable[[str], None]) -> None:
        """Call `done` once these workers have answered or are gone, with all reasons or nothing.

        `reason` is that of the master, which has reopened its own log before.
        """
        self._rounds.append(_Round(set(workers), done, [reason] if reason else []))
        self._settle()

    def heard(self, worker: WorkerId, reason: str) -> None:
        """Take a worker's answer to the earliest round that waits for it."""
        for each in self._rounds:
            if worker in each.waiting:
                each.waiting.remove(worker)
                if reason:
                    each.reasons.append(reason)
                break
        self._settle()

    def gone(self, worker: WorkerId) -> None:
        """Wait no longer for a worker that is dead: its successor opens the files anyway."""
        for each in self._rounds:
            each.waiting.discard(worker)
        self._settle()

    def _settle(self) -> None:
        complete = [each for each in self._rounds if not each.waiting]
        self._rounds = [each for each in self._rounds if each.waiting]
        for each in complete:
            each.done("; ".join(dict.fromkeys(each.reasons)))
