"""What a worker may say next: whatever else it says is a breach, for which the master ends it.

A worker is a stranger: it has read what clients sent. So all that it may say is counted, and for
most of it the master has to have asked. Nothing is left that could be a flood.

says          how often
ready         once, before all else, with the listeners that it was to open
failed        once, instead of that
exit          MAX_EXITS times once it is ready, if its configuration allows that at all
leaving       once it is ready, once
closed        for each drain by handing over
reopened      for each reopen
returned N    for each take-back N
refused N     for each lend N
routed N      for each route N

Only `ready` carries descriptors, and no worker is asked for any after its start.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Final

from greeterd.supervisor.ids import DrainMode
from greeterd.worker.messages import (
    DrainMessage,
    FailedMessage,
    FromMaster,
    FromWorker,
    LendMessage,
    Message,
    ReadyMessage,
    RefusedMessage,
    ReopenMessage,
    ReturnedMessage,
    RoutedMessage,
    RouteMessage,
    TakeBackMessage,
    tag_of,
)

MAX_EXITS: Final = 512
"""As many as there can be slots: each retires one. More say nothing."""
STRANGERS_CREDIT: Final = 64
"""Of each answer, for a worker of whom the version before has not told what it was asked."""


class Conversation:
    """What one worker may still say; `listeners` are how many it opens itself."""

    def __init__(self, *, listeners: int = 0, may_exit: bool = False) -> None:
        self._listeners = listeners
        self._may_exit = may_exit
        self._credit = Counter({"ready": 1, "failed": 1})
        self.answers_routes = True
        """False for a dispatcher of a version that did not."""

    @classmethod
    def go_on(
        cls, credit: Mapping[str, int] | None, *, may_exit: bool, slots: Iterable[int]
    ) -> "Conversation":
        """Return that of a worker that a predecessor has started, and what `credit` it left."""
        heir = cls(may_exit=may_exit)
        if credit is not None:
            heir._credit = Counter(credit)
            return heir
        # Version 0.1 kept no books, and its workers' settings are not known here.
        keys = ["leaving", "closed", "reopened", *(f"returned {slot}" for slot in slots)]
        heir._credit = Counter(dict.fromkeys(keys, STRANGERS_CREDIT))
        heir._credit["exit"] = MAX_EXITS if may_exit else 0
        heir.answers_routes = False
        return heir

    @property
    def credit(self) -> dict[str, int]:
        """What `go_on` takes."""
        return {key: count for key, count in self._credit.items() if count > 0}

    @property
    def descriptors_due(self) -> int:
        """How many descriptors the next message may carry."""
        return self._listeners if self._credit["ready"] else 0

    def told(self, message: FromMaster) -> None:
        """Note what the worker was sent."""
        match message:
            case DrainMessage(DrainMode.HAND_OVER.value):
                self._credit["closed"] += 1
            case ReopenMessage():
                self._credit["reopened"] += 1
            case TakeBackMessage(slot):
                self._credit[f"returned {slot}"] += 1
            case LendMessage(slot):
                self._credit[f"refused {slot}"] += 1
            case RouteMessage(slot):
                self._credit[f"routed {slot}"] += 1
            case _:
                pass

    def heard(self, message: Message, descriptors: int) -> str:
        """Note what it has said, and with how many; return what is wrong with that, or nothing."""
        key = _key(message)
        if not isinstance(message, FromWorker):
            return f"{key!r} is for the master to say"
        if self._credit[key] <= 0:
            return f"{key!r} is not due"
        if descriptors != (self._listeners if isinstance(message, ReadyMessage) else 0):
            return f"{key!r} with {descriptors} descriptors"
        self._credit[key] -= 1
        match message:
            case ReadyMessage():
                self._credit["failed"] = 0
                self._credit["leaving"] = 1
                self._credit["exit"] = MAX_EXITS if self._may_exit else 0
            case FailedMessage():
                self._credit["ready"] = 0
            case _:
                pass
        return ""


def _key(message: Message) -> str:
    match message:
        case ReturnedMessage(slot) | RefusedMessage(slot) | RoutedMessage(slot):
            return f"{tag_of(message)} {slot}"
        case _:
            return tag_of(message)
