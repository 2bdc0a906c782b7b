"""The messages between the master and a worker: one JSON object each, distinguished by `type`.

`decode` never raises, whatever comes. A later version may add a field, with a default, or a message
that is only sent to processes that understand it: after an upgrade the workers of the version
before live on.
"""

from dataclasses import dataclass
from typing import Annotated, Final

import msgspec
from msgspec import Meta, Struct

MAX_MESSAGE_BYTES: Final = 64 * 1024
MAX_BREACH: Final = 100
"""Characters of a breach's reason, since the sender may have chosen them."""

Slot = Annotated[int, Meta(ge=0, le=65535)]
Reason = Annotated[str, Meta(max_length=8192)]
"""Room for a path and what is wrong with it."""


class ReadyMessage(Struct, frozen=True, tag="ready"):
    """Worker: serves now; the descriptors are the listeners it has opened, one an address."""


class FailedMessage(Struct, frozen=True, tag="failed"):
    """Worker: cannot start, for this reason."""

    code: Annotated[int, Meta(ge=1, le=255)]
    reason: Reason


class ExitMessage(Struct, frozen=True, tag="exit"):
    """Worker: a client has sent `exit`."""


class LeavingMessage(Struct, frozen=True, tag="leaving"):
    """Worker: was sent TERM, and drains although the master did not ask for it."""


class ClosedMessage(Struct, frozen=True, tag="closed"):
    """Worker: has closed its listeners to hand over, and serves what it has accepted."""


class ReopenedMessage(Struct, frozen=True, tag="reopened"):
    """Worker: has reopened its log files; `reason` says why not, if it failed."""

    reason: Reason


class ReturnedMessage(Struct, frozen=True, tag="returned"):
    """Worker: the lent listener of this slot is emptied and closed here."""

    slot: Slot


class RefusedMessage(Struct, frozen=True, tag="refused"):
    """Worker: cannot serve what was lent from this slot, and has closed it."""

    slot: Slot
    reason: Reason


class RoutedMessage(Struct, frozen=True, tag="routed"):
    """Dispatcher: hands on to this slot from now on; `reason` says why not, if it failed."""

    slot: Slot
    reason: Reason = ""


class GoMessage(Struct, frozen=True, tag="go"):
    """Master: the listeners that the worker has opened listen now."""


class DrainMessage(Struct, frozen=True, tag="drain"):
    """Master: drain; `how` is the value of a DrainMode.

    `settled` is for a sweep: no handshake is in flight any more.  After False the same message
    comes with True.  None, from an earlier version: the worker waits for handshakes itself.
    """

    how: str
    settled: bool | None = None


class LendMessage(Struct, frozen=True, tag="lend"):
    """Master: serve this slot's listeners, too; the descriptors are duplicates."""

    slot: Slot


class TakeBackMessage(Struct, frozen=True, tag="take-back"):
    """Master: empty and close the listeners that were lent from this slot."""

    slot: Slot


class RouteMessage(Struct, frozen=True, tag="route"):
    """Master to the dispatcher: hand on to this slot, too.

    The descriptors are its pair's ends, and its newest worker's row unless an older build has it.
    """

    slot: Slot


class ReopenMessage(Struct, frozen=True, tag="reopen"):
    """Master: open the log file anew."""


FromWorker = (
    ReadyMessage
    | FailedMessage
    | ExitMessage
    | LeavingMessage
    | ClosedMessage
    | ReopenedMessage
    | ReturnedMessage
    | RefusedMessage
    | RoutedMessage
)
FromMaster = GoMessage | DrainMessage | LendMessage | TakeBackMessage | RouteMessage | ReopenMessage
Message = FromWorker | FromMaster

_DECODER: Final = msgspec.json.Decoder(Message)


@dataclass(frozen=True, slots=True)
class Breach:
    """A record that violates the protocol, and why."""

    reason: str


def decode(data: bytes) -> Message | Breach:
    """Return the message, or what is wrong with it."""
    try:
        return _DECODER.decode(data)
    except msgspec.ValidationError as error:
        return Breach(f"not a message: {str(error)[:MAX_BREACH]}")
    except (ValueError, RecursionError):  # a DecodeError of msgspec is a ValueError
        return Breach("not JSON")


def tag_of(message: Message) -> str:
    """Return what the message is called on the wire."""
    return str(type(message).__struct_config__.tag)
