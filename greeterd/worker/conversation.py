"""Which messages a worker may send next: the master ends a worker that sends any other.

A worker is not trusted: it has read what clients sent. So each message that it may send is counted,
and most are answers to a message of the master's. No worker can flood the master.

message       how often
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
"""As many as there can be slots, since each makes one retire; more would have no effect."""
STRANGERS_CREDIT: Final = 64
"""Answers of each kind, for a worker of an older image that did not pass on what it had asked."""


class Conversation:
    """What one worker may still send; `listeners` is how many it opens itself."""

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
        """Continue that of a worker that a predecessor has started; `credit` is what that left."""
        continued = cls(may_exit=may_exit)
        if credit is not None:
            continued._credit = Counter(credit)
            return continued
        # An older image did not count, and its workers' settings are not known here.
        keys = ["leaving", "closed", "reopened", *(f"returned {slot}" for slot in slots)]
        continued._credit = Counter(dict.fromkeys(keys, STRANGERS_CREDIT))
        continued._credit["exit"] = MAX_EXITS if may_exit else 0
        continued.answers_routes = False
        return continued

    @property
    def credit(self) -> dict[str, int]:
        """What `go_on` takes."""
        return {key: count for key, count in self._credit.items() if count > 0}

    @property
    def descriptors_due(self) -> int:
        """How many descriptors the next message may carry."""
        return self._listeners if self._credit["ready"] else 0

    def told(self, message: FromMaster) -> None:
        """Note a message to the worker: it may send the answer."""
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
        """Note a message from the worker; return why it may not send that, or nothing."""
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
