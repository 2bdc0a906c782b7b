"""Finds what a worker has changed about a shared listener, and undoes it.

A hijacked worker shares the file description of its listener with the master and other workers:
shutdown(2), O_NONBLOCK, socket options and filters that it sets hold for all of them, and most
options for each connection that is accepted later. What can be read is compared here with what it
should be; greeterd/README.md, Limits, names what cannot be read.
It costs about 20 us a listener, or 1 us for `listens` alone.
"""

import errno
import fcntl
import os
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, NamedTuple

from greeterd.sockets.fd_passing import has_filter, receives_no_more
from greeterd.sockets.sockdiag import queue_length
from greeterd.sockets.steering import SO_DETACH_FILTER


class _Option(NamedTuple):
    level: int
    number: int
    size: int
    """Bytes when it is read."""
    written: int = 0
    """Bytes when it is set, if more: it is padded."""


_TIMEVAL: Final = 16
_INT: Final = 4
_EVERYWHERE: Final = {
    "SO_RCVTIMEO": _Option(socket.SOL_SOCKET, socket.SO_RCVTIMEO, _TIMEVAL),
    "SO_SNDTIMEO": _Option(socket.SOL_SOCKET, socket.SO_SNDTIMEO, _TIMEVAL),
    # Without the time, which stays when this is off, and means nothing then.
    "SO_LINGER": _Option(socket.SOL_SOCKET, socket.SO_LINGER, _INT, 2 * _INT),
    "SO_RCVLOWAT": _Option(socket.SOL_SOCKET, socket.SO_RCVLOWAT, _INT),
}
_TCP: Final = {
    "SO_DONTROUTE": _Option(socket.SOL_SOCKET, socket.SO_DONTROUTE, _INT),
    "SO_BINDTOIFINDEX": _Option(socket.SOL_SOCKET, 62, _INT),  # asm-generic/socket.h, Linux 5.1
    "TCP_DEFER_ACCEPT": _Option(socket.IPPROTO_TCP, socket.TCP_DEFER_ACCEPT, _INT),
    "TCP_CORK": _Option(socket.IPPROTO_TCP, socket.TCP_CORK, _INT),
    "TCP_USER_TIMEOUT": _Option(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, _INT),
}
_OPTIONS: Final[dict[int, dict[str, _Option]]] = {
    socket.AF_UNIX: _EVERYWHERE,
    socket.AF_INET: {
        **_EVERYWHERE,
        **_TCP,
        "IP_TTL": _Option(socket.IPPROTO_IP, socket.IP_TTL, _INT),
        "IP_MINTTL": _Option(socket.IPPROTO_IP, 21, _INT),  # linux/in.h
    },
    socket.AF_INET6: {
        **_EVERYWHERE,
        **_TCP,
        "IPV6_UNICAST_HOPS": _Option(socket.IPPROTO_IPV6, socket.IPV6_UNICAST_HOPS, _INT),
        "IPV6_MINHOPCOUNT": _Option(socket.IPPROTO_IPV6, 73, _INT),  # linux/in6.h
    },
}
"""The options that would keep clients out or harm accepted ones, by the socket's family."""


@dataclass(frozen=True, slots=True)
class ListenerTerms:
    """The state that a listener should have."""

    blocking: bool
    backlog: int | None
    """In force; None where it cannot be read."""
    options: dict[str, bytes]


def terms_of(sock: socket.socket) -> ListenerTerms:
    """Return the present state of a listener."""
    try:
        backlog = queue_length(sock).limit
    except OSError:
        backlog = None
    return ListenerTerms(_blocks(sock), backlog, dict(_options_of(sock)))


def listens(sock: socket.socket) -> bool:
    """Return whether clients can connect."""
    if not sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
        return False
    # A unix socket that was shut down still reports SO_ACCEPTCONN.
    return sock.family != socket.AF_UNIX or not receives_no_more(sock)


def set_right(sock: socket.socket, terms: ListenerTerms) -> list[str]:
    """Undo what was changed about a listener that listens; return the names of the changes.

    Raises:
        OSError: one cannot be undone, or an option cannot be read.

    """
    changed = []
    if _blocks(sock) != terms.blocking:
        flags = fcntl.fcntl(sock, fcntl.F_GETFL) & ~os.O_NONBLOCK
        fcntl.fcntl(sock, fcntl.F_SETFL, flags | (0 if terms.blocking else os.O_NONBLOCK))
        changed.append("O_NONBLOCK")
    for name, value in _options_of(sock):
        if value != terms.options[name]:
            option = _OPTIONS[sock.family][name]
            right = terms.options[name].ljust(option.written, b"\0")
            sock.setsockopt(option.level, option.number, right)
            changed.append(name)
    if sock.family != socket.AF_UNIX and has_filter(sock):
        sock.setsockopt(socket.SOL_SOCKET, SO_DETACH_FILTER, 0)
        changed.append("SO_ATTACH_FILTER")
    if terms.backlog is not None and queue_length(sock).limit != terms.backlog:
        sock.listen(terms.backlog)  # it listens: this changes the length only
        changed.append("backlog")
    return changed


def _blocks(sock: socket.socket) -> bool:
    # Not sock.getblocking(), which reports the last setting of this object.
    return not fcntl.fcntl(sock, fcntl.F_GETFL) & os.O_NONBLOCK


def _options_of(sock: socket.socket) -> Iterator[tuple[str, bytes]]:
    for name, option in _OPTIONS[sock.family].items():
        try:
            yield name, sock.getsockopt(option.level, option.number, option.size)
        except OSError as error:
            if error.errno != errno.ENOPROTOOPT:  # an older kernel
                raise
