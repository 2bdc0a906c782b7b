"""Receives the sockets that the service manager passes at a start, as `activation` decides.

Descriptors are plain numbers here: the receiver of the SocketAssignment owns those in it.  Stale
ones are closed here, and gates are removed, which is safe because no worker serves at a start.
"""

import os
import socket
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Final

from msgspec import structs
from structlog.typing import FilteringBoundLogger

from greeterd.config.schema import Config
from greeterd.master.escrow import Escrow
from greeterd.master.systemd.activation import Passed, SocketAssignment, Stale, Terms, assign
from greeterd.master.upgrade.state import InheritedListeners
from greeterd.sockets import steering
from greeterd.sockets.address import Address
from greeterd.sockets.listener import local_address
from greeterd.system import sd_daemon

BARRIER_TIMEOUT: Final = 5.0


def receive(config: Config) -> SocketAssignment:
    """Receive what the service manager has passed to this process; call it once, at the start.

    Stale descriptors are out of the store when this returns, and the others have no gate.

    Raises:
        ConfigError: the sockets do not fit the configuration, or LISTEN_FDS is garbled.

    """
    passed = [_describe(name, fd) for name, fd in sd_daemon.listen_fds()]
    assignment = assign(passed, config, uid=os.geteuid())
    _drop(assignment.stale)
    listeners = assignment.listeners
    if listeners is None or listeners.passed:
        return assignment
    gates = [_ungate(fd) for fd in listeners.listening()]
    return replace(assignment, listeners=structs.replace(listeners, gated=any(gates)))


def bind_by(
    listeners: InheritedListeners | None, config: Config, reload: Callable[[], Config]
) -> tuple[Config, Callable[[], Config]]:
    """Return the configuration, and a function that reads it anew, fitted to these listeners.

    Raises:
        ConfigError: as Terms.impose; the function may raise it, too.

    """
    terms = terms_of(listeners)
    if terms is None:
        return config, reload
    return terms.impose(config), lambda: terms.impose(reload())


def terms_of(listeners: InheritedListeners | None) -> Terms | None:
    """Return the terms of listeners that a socket unit has opened; None for others."""
    if listeners is None or not listeners.passed:
        return None
    slots = listeners.slots
    fds = slots[listeners.order[0]] if slots else listeners.listening()
    return Terms(bind=tuple(map(_address_text, fds)), workers=len(slots) or None)


def arrange(sockets: SocketAssignment, escrow: Escrow, log: FilteringBoundLogger) -> None:
    """Set up listeners that were open before this daemon started, and log them."""
    for stale in sockets.stale:
        log.warning("stored descriptor dropped", name=stale.name, reason=stale.reason)
    given = sockets.listeners
    if given is not None:
        escrow.arrange()
        queued = escrow.queues.by_owner().total()
        what = "sockets passed" if given.passed else "listeners restored"
        addresses = [str(address) for address in escrow.addresses]
        log.info(what, addresses=addresses, sockets=len(given.listening()), queued=queued)


def _describe(name: str, fd: int) -> Passed:
    with socket.socket(fileno=fd) as sock:
        passed = Passed(
            name=name,
            fd=fd,
            address=_address_of(sock),
            type=int(sock.type),
            listens=bool(sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)),
            connected=_is_connected(sock),
            shares=_option(sock, socket.SO_REUSEPORT),
            uid=os.fstat(fd).st_uid,
        )
        sock.detach()
    if passed.address is not None and passed.address.is_unix:
        return replace(passed, file=_file_at(passed.address.path))
    return passed


def _address_of(sock: socket.socket) -> Address | None:
    if sock.family in {socket.AF_INET, socket.AF_INET6}:
        return local_address(sock) if sock.proto == socket.IPPROTO_TCP else None
    return local_address(sock) if sock.family == socket.AF_UNIX and sock.getsockname() else None


def _address_text(fd: int) -> str:
    with socket.socket(fileno=fd) as sock:
        text = str(local_address(sock))
        sock.detach()
    return text


def _is_connected(sock: socket.socket) -> bool:
    try:
        sock.getpeername()
    except OSError:
        return False
    return True


def _option(sock: socket.socket, number: int) -> bool:
    with suppress(OSError):
        return bool(sock.getsockopt(socket.SOL_SOCKET, number))
    return False


def _file_at(path: str) -> tuple[int, int] | None:
    with suppress(OSError, ValueError):  # an abstract address has a NUL byte
        status = os.lstat(path)
        return status.st_dev, status.st_ino
    return None


def _ungate(fd: int) -> bool:
    """Remove a listener's gate; return whether connections in its queue still have it."""
    with socket.socket(fileno=fd) as sock:
        deaf = steering.ungate(sock)
        sock.detach()
    return deaf


def _drop(stale: Sequence[Stale]) -> None:
    """Close descriptors in every process, and wait until the service manager has, too."""
    for each in stale:
        with suppress(OSError), socket.socket(fileno=each.fd) as sock:
            sock.shutdown(socket.SHUT_RDWR)
    for name in {each.name for each in stale}:
        sd_daemon.remove_fds(name)
    if stale:
        # Else the address could still be in use when it is opened anew.
        sd_daemon.barrier(BARRIER_TIMEOUT)
