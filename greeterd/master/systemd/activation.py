"""Decides how to use sockets that the service manager passes at a start (not at an upgrade).

Two kinds, told apart by their names:
- Sockets of a socket unit stay the unit's. Their addresses replace `bind`, and they are never
  gated, shut down or unlinked here, or no client would start the service again.
- Descriptors that an earlier process of ours has put into the store (`fdstore`) are used where they
  fit the configuration; the rest is closed and removed from the store.
With sockets of a unit, nothing in the store is used.  All here is pure; `receive` has the real
descriptors.
"""

import socket
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

from greeterd.config.schema import MAX_WORKERS, Config, contradictions
from greeterd.errors import ConfigError
from greeterd.master.systemd.fdstore import PREFIX, Stored, label_of, parse_name
from greeterd.master.upgrade.state import InheritedListeners
from greeterd.sockets.address import Address, parse_address

_TYPES: Final[dict[int, str]] = {
    socket.SOCK_DGRAM: "a datagram socket",
    socket.SOCK_SEQPACKET: "a socket of packets",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Passed:
    """A socket that was passed, as the kernel describes it."""

    name: str
    fd: int
    address: Address | None
    """None: it is neither a TCP nor a unix socket."""
    type: int = socket.SOCK_STREAM
    listens: bool = True
    connected: bool = False
    shares: bool = False
    """It has SO_REUSEPORT."""
    uid: int = 0
    """Its owner; the kernel lets only sockets of one user share an address."""
    file: tuple[int, int] | None = None
    """Device and inode of the file that is now at a unix socket's path."""


@dataclass(frozen=True, slots=True)
class Stale:
    """A stored descriptor that does not fit, and why."""

    name: str
    fd: int
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """What the sockets of a socket unit prescribe, also to a configuration that is read later."""

    bind: tuple[str, ...]
    workers: int | None
    """In mode reuseport: one for each socket of an address."""

    def impose(self, config: Config) -> Config:
        """Return the configuration with the addresses of the sockets, and as many workers.

        Raises:
            ConfigError: it contradicts these sockets.

        """
        bound = replace(config, bind=self.bind)
        if self.workers is not None:
            if config.workers not in {"auto", self.workers}:
                raise ConfigError(
                    f"workers = {config.workers}, and the service manager has passed"
                    f" {self.workers} sockets for {self.bind[0]}; each worker needs one of its own:"
                    ' repeat ListenStream= for each, or leave it to them with workers = "auto"'
                )
            bound = replace(bound, workers=self.workers)
        for one in contradictions(bound):
            names = ", ".join(one.names)
            raise ConfigError(f"{names}, with the sockets of the service manager: {one.reason}")
        return bound


@dataclass(frozen=True, slots=True, kw_only=True)
class SocketAssignment:
    """How the passed sockets are used."""

    listeners: InheritedListeners | None = None
    """None: open all of them."""
    stale: tuple[Stale, ...] = ()


def assign(passed: Sequence[Passed], config: Config, *, uid: int) -> SocketAssignment:
    """Return how each socket is used; `uid` is the user that this process opens sockets as.

    Raises:
        ConfigError: a socket unit's sockets do not fit the mode; the reason says how to mend it.

    """
    stored = [one for one in passed if one.name.startswith(PREFIX)]
    of_unit = [one for one in passed if not one.name.startswith(PREFIX)]
    if of_unit:
        stale = tuple(Stale(one.name, one.fd, "a socket unit has passed others") for one in stored)
        return SocketAssignment(listeners=_of_unit(of_unit, config), stale=stale)
    if not stored:
        return SocketAssignment()
    return _of_store(stored, config, uid)


# Of a socket unit ---------------------------------------------------------------------------


def _of_unit(passed: Sequence[Passed], config: Config) -> InheritedListeners:
    by_address: dict[Address, list[Passed]] = {}
    for each in passed:
        by_address.setdefault(_require_listener(each), []).append(each)
    if config.mode != "reuseport":
        for address, several in by_address.items():
            if len(several) > 1:
                raise ConfigError(
                    f"{len(several)} sockets for {address} were passed by {several[0].name}, and"
                    f' mode = "{config.mode}" has one: remove the others, or set'
                    ' mode = "reuseport"'
                )
        return InheritedListeners(shared=[one.fd for one in passed], passed=True)
    for address, several in by_address.items():
        _require_group(address, several)
    counts = {str(address): len(several) for address, several in by_address.items()}
    if len(set(counts.values())) > 1:
        listed = ", ".join(f"{count} for {address}" for address, count in counts.items())
        raise ConfigError(f"each worker needs a socket for each address, and there are {listed}")
    count = next(iter(counts.values()))
    if count > MAX_WORKERS:
        raise ConfigError(f"{count} sockets were passed, for {MAX_WORKERS} workers at most")
    # A socket unit lets its sockets listen in the order in which it passes them.
    rows = zip(*by_address.values(), strict=True)
    slots = {slot: [one.fd for one in row] for slot, row in enumerate(rows, start=1)}
    return InheritedListeners(slots=slots, order=list(slots), passed=True)


def _require_listener(each: Passed) -> Address:
    """Return the address of a socket that clients can connect to.

    Raises:
        ConfigError: it is another kind of socket.

    """
    what = f"descriptor {each.fd}, passed by {each.name},"
    if each.type != socket.SOCK_STREAM:
        kind = _TYPES.get(each.type, "no stream socket")
        raise ConfigError(f"{what} is {kind}: ListenStream= makes one that greeterd can use")
    if each.address is None:
        raise ConfigError(f"{what} is neither of TCP nor a unix socket")
    if each.connected:
        raise ConfigError(f"{what} is a connection: the socket unit needs Accept=no")
    if not each.listens:
        raise ConfigError(f"{what} does not listen")
    try:
        return parse_address(str(each.address))
    except ValueError as error:
        raise ConfigError(f"{what} is of no use: {error}") from error


def _require_group(address: Address, several: Sequence[Passed]) -> None:
    if address.is_unix:
        raise ConfigError(
            f'{address}, passed by {several[0].name}: mode = "reuseport" takes no unix sockets,'
            " the kernel does not balance them"
        )
    for each in several:
        if not each.shares:
            raise ConfigError(
                f"{address}, passed by {each.name}, is for one socket alone:"
                ' mode = "reuseport" needs ReusePort=yes in the socket unit'
            )


# Of the descriptor store --------------------------------------------------------------------


def _of_store(stored: Sequence[Passed], config: Config, uid: int) -> SocketAssignment:
    stale: list[Stale] = []
    found: dict[str, tuple[Passed, Stored]] = {}
    labels = [label_of(text) for text in config.bind]
    for each in stored:
        what = parse_name(each.name)
        reason = _flaw(each, what, config, labels, uid)
        if what is None or reason:
            stale.append(Stale(each.name, each.fd, reason))
        elif each.name in found:
            stale.append(Stale(each.name, each.fd, "another one has the same name"))
        else:
            found[each.name] = each, what
    adopt = _adopt_group if config.mode == "reuseport" else _adopt_shared
    return adopt(list(found.values()), labels, stale)


def _flaw(
    each: Passed, what: Stored | None, config: Config, labels: Sequence[str], uid: int
) -> str:
    """Return why a stored descriptor does not fit; empty when it does."""
    if what is None:
        return "its name is of another version"
    own = what.guard or what.slot is not None
    if own != (config.mode == "reuseport") or what.label not in labels:
        return "the mode or the addresses are others now"
    if each.address is None or each.listens == what.guard:
        return "it is not what its name says"
    if each.file != what.file:
        return "the file of the unix socket has gone"
    foreign = own and (not each.shares or each.uid != uid)
    return "it is another user's" if foreign else ""


def _adopt_shared(
    found: Sequence[tuple[Passed, Stored]], labels: Sequence[str], stale: list[Stale]
) -> SocketAssignment:
    by_label = {what.label: each for each, what in found}
    kept = [by_label.get(label) for label in labels]
    listeners = InheritedListeners(
        shared=[one.fd if one is not None else None for one in kept],
        unix_files={one.address.path: one.file for one in kept if one and one.address and one.file},
    )
    return SocketAssignment(listeners=listeners if found else None, stale=tuple(stale))


def _adopt_group(
    found: Sequence[tuple[Passed, Stored]], labels: Sequence[str], stale: list[Stale]
) -> SocketAssignment:
    guards = {what.label: each.fd for each, what in found if what.guard}
    members: dict[int, dict[str, tuple[Passed, Stored]]] = {}
    for each, what in found:
        if what.slot is not None:
            members.setdefault(what.slot, {})[what.label] = each, what
    if guards.keys() != set(labels):
        everything = (Stale(one.name, one.fd, "an address has no guard") for one, _ in found)
        return SocketAssignment(stale=(*stale, *everything))
    indexes = {slot: min(what.index for _, what in row.values()) for slot, row in members.items()}
    order = sorted(members, key=lambda slot: indexes[slot])
    for slot in [slot for slot in order if members[slot].keys() != set(labels)]:
        row = members.pop(slot).values()
        stale += [Stale(one.name, one.fd, "its slot has no listener elsewhere") for one, _ in row]
        _close_hole(order, slot)
    listeners = InheritedListeners(
        guards=[guards[label] for label in labels],
        slots={slot: [row[label][0].fd for label in labels] for slot, row in members.items()},
        order=order,
    )
    return SocketAssignment(listeners=listeners, stale=tuple(stale))


def _close_hole(order: list[int], slot: int) -> None:
    """Renumber as the kernel does when a listener closes: the last takes its index."""
    order[order.index(slot)] = order[-1]
    order.pop()
