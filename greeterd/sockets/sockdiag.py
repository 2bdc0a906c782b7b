"""Reads figures of listeners from the kernel: queue lengths, drops, handshakes under way.

Nothing here changes a socket. Three sources: TCP_INFO and SO_MEMINFO of the socket itself, which
are cheap (about 1 us), and sock_diag(7) over netlink for what no socket option returns. That needs
AF_NETLINK (a sandbox may forbid it) and the kernel's tcp_diag or unix_diag; where they are missing
the functions that use it raise OSError.
"""

import errno
import os
import socket
import struct
from collections.abc import Generator, Iterable, Iterator
from dataclasses import dataclass
from typing import Final, NamedTuple

from greeterd.sockets.address import Address

_SO_MEMINFO: Final = 55  # asm-generic/socket.h, Linux 4.12
_MEMINFO: Final = struct.Struct("@9I")
_MEMINFO_DROPS: Final = 8

# struct tcp_info, linux/tcp.h: a listener uses two of its fields for other things.
_TCP_INFO_QUEUE: Final = struct.Struct("@24xII")  # tcpi_unacked, tcpi_sacked

# linux/netlink.h, linux/sock_diag.h, linux/inet_diag.h, linux/unix_diag.h
_NETLINK_SOCK_DIAG: Final = 4
_SOCK_DIAG_BY_FAMILY: Final = 20
_NLM_F_REQUEST: Final = 0x1
_NLM_F_DUMP: Final = 0x300
_NLMSG_ERROR: Final = 2
_NLMSG_DONE: Final = 3
_NETLINK_HEADER: Final = struct.Struct("=IHHII")  # length, type, flags, sequence, port
_ERROR_NUMBER: Final = struct.Struct("=i")
_REPLY_BYTES: Final = 1 << 16
_TIMEOUT: Final = 1.0
"""Seconds."""

_TCP_SYN_RECV: Final = 3
_INET_REQUEST: Final = struct.Struct("=BBBxI")  # family, protocol, extensions, states
# sport, dport, src, dst, interface with cookie; ports and addresses in network byte order
_INET_ID: Final = struct.Struct("!HH16s16s12s")
_INET_ID_OFFSET: Final = 4
_INET_STATE_OFFSET: Final = 1
_ANY_HOST: Final = bytes(16)
_TCP_LISTEN: Final = 10
_ALL_INET_IDS: Final = bytes(48)
_INET_ANSWER_BYTES: Final = 72
_INODE: Final = struct.Struct("=I")  # the last field of the answer
_INET_DIAG_SHUTDOWN: Final = 8
_INET_DIAG_SKMEMINFO: Final = 7
_INET_TAIL: Final = struct.Struct("=IIII")  # rqueue, wqueue, uid, inode
_INET_TAIL_OFFSET: Final = 56

_UNIX_REQUEST: Final = struct.Struct("=BBHIIIII")  # family, -, -, states, inode, show, cookie
_UNIX_ANSWER_BYTES: Final = 16
_UDIAG_SHOW_RQLEN: Final = 0x10
_UNIX_DIAG_RQLEN: Final = 4
_ATTRIBUTE: Final = struct.Struct("=HH")  # length, type
_ALL: Final = 0xFFFFFFFF


@dataclass(frozen=True, slots=True)
class Queue:
    """An accept queue: connections that wait `now`, and its `limit` (the kernel takes one more)."""

    now: int
    limit: int


class Handshake(NamedTuple):
    """Identifies one handshake; a later one of the same client has another identity."""

    family: int
    ident: bytes
    """struct inet_diag_sockid, as the kernel returned it: addresses, ports, and a cookie."""


def queue_length(listener: socket.socket) -> Queue:
    """Return how full the accept queue is.

    Raises: OSError if the socket is a unix socket and the kernel has no unix_diag.
    """
    if listener.family == socket.AF_UNIX:
        return _unix_queue(listener)
    info = listener.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO_QUEUE.size)
    return Queue(*_TCP_INFO_QUEUE.unpack(info))


def drops(listener: socket.socket) -> int:
    """Return how many packets a TCP listener has dropped since it was made (modulo 2**32).

    Most are connections that found the queue full, each counted again when the client tries again;
    SYNs that a gate dropped count too.

    The same figure as INET_DIAG_SKMEMINFO of sock_diag(7), without a netlink socket.

    Raises: OSError for a unix socket, which drops nothing (its clients wait, or fail at once); on
    Linux before 4.12.
    """
    if listener.family == socket.AF_UNIX:
        raise OSError("a unix socket counts no drops")
    info = listener.getsockopt(socket.SOL_SOCKET, _SO_MEMINFO, _MEMINFO.size)
    return int(_MEMINFO.unpack(info)[_MEMINFO_DROPS])


def handshakes(addresses: Iterable[Address]) -> Generator[list[Handshake], None, None]:
    """Yield, in batches, the handshakes with these TCP addresses that are under way.

    `addresses` are `local_address`es of listeners. A SYN was answered, and the ACK has not come:
    such a handshake belongs to a listener that was chosen already, and closing that loses it. The
    kernel does not report which listener of a group it is. Handshakes by SYN cookie (a flood) leave
    no trace.

    This takes one dump a family, however many addresses there are: the kernel walks through its
    whole table of connections (10 ms for 262,144 buckets). A batch is one recv(2), for which the
    kernel walks on until 64 KiB are full or the table ends; the iterator may be closed between two.

    Raises: OSError if the kernel has no tcp_diag, or AF_NETLINK is forbidden.
    """
    wanted: dict[int, set[tuple[int, bytes]]] = {}
    for address in addresses:
        # A listener for both families is AF_INET6, and so are its handshakes over IPv4.
        family = int(socket.AF_INET6 if address.is_v6 else socket.AF_INET)
        host = socket.inet_pton(family, address.host.partition("%")[0]).ljust(16, b"\0")
        wanted.setdefault(family, set()).add((address.port, host))
    for family, ours in wanted.items():
        ports = {port for port, _ in ours}
        only = next(iter(ports)) if len(ports) == 1 else 0  # the kernel filters by one port at most
        request = _INET_REQUEST.pack(family, socket.IPPROTO_TCP, 0, 1 << _TCP_SYN_RECV)
        request += _INET_ID.pack(only, 0, b"", b"", b"")
        for answers in _ask(request, _NLM_F_DUMP):
            found = []
            for answer in answers:
                port, _, host, _, _ = _INET_ID.unpack_from(answer, _INET_ID_OFFSET)
                if (port, host) in ours or (port, _ANY_HOST) in ours:
                    ident = answer[_INET_ID_OFFSET : _INET_ID_OFFSET + _INET_ID.size]
                    found.append(Handshake(family, ident))
            yield found


def is_under_way(handshake: Handshake) -> bool:
    """Return whether the client's ACK has still not come; one lookup, some 15 us.

    Raises: OSError as `handshakes`.
    """
    request = _INET_REQUEST.pack(handshake.family, socket.IPPROTO_TCP, 0, _ALL) + handshake.ident
    try:
        [[answer]] = _ask(request, 0)
    except OSError as error:
        if error.errno in {errno.ENOENT, errno.ESTALE}:
            return False
        raise
    # The connection that a handshake becomes keeps its identity.
    return answer[_INET_STATE_OFFSET] == _TCP_SYN_RECV


def spoiled_listeners() -> set[int]:
    """Return the inodes of TCP listeners, of any process, whose new connections are reset at once.

    That is a socket which was shut down twice and then listens again; its own options look normal.

    Raises: OSError as `handshakes`.
    """
    found = set()
    for family in (socket.AF_INET, socket.AF_INET6):
        request = _INET_REQUEST.pack(family, socket.IPPROTO_TCP, 0, 1 << _TCP_LISTEN)
        for answers in _ask(request + _ALL_INET_IDS, _NLM_F_DUMP):
            for answer in answers:
                mark = _attribute(answer, _INET_ANSWER_BYTES, _INET_DIAG_SHUTDOWN)
                if mark is not None and mark != b"\0":
                    found.add(_INODE.unpack_from(answer, _INET_ANSWER_BYTES - _INODE.size)[0])
    return found


class TcpSocket(NamedTuple):
    """A TCP socket of this network namespace."""

    inode: int
    """0 while no process has it: in an accept queue, or past its end."""
    state: int
    """As include/net/tcp_states.h numbers it."""
    address: str
    """Its own."""
    peer: str
    queued: int
    """Of a listener, how many connections wait; else bytes that were not read."""
    limit: int
    drops: int | None


def tcp_sockets(port: int, states: int = _ALL) -> list[TcpSocket]:
    """Return the sockets whose own port this is; `states` has a bit for each wanted state.

    Raises: OSError as `handshakes`.
    """
    found = []
    for family in (socket.AF_INET, socket.AF_INET6):
        request = _INET_REQUEST.pack(
            family, socket.IPPROTO_TCP, 1 << (_INET_DIAG_SKMEMINFO - 1), states
        )
        for answers in _ask(request + _INET_ID.pack(port, 0, b"", b"", b""), _NLM_F_DUMP):
            for answer in answers:
                own, other, host, peer, _ = _INET_ID.unpack_from(answer, _INET_ID_OFFSET)
                queued, limit, _, inode = _INET_TAIL.unpack_from(answer, _INET_TAIL_OFFSET)
                memory = _attribute(answer, _INET_ANSWER_BYTES, _INET_DIAG_SKMEMINFO)
                if own == port:
                    found.append(
                        TcpSocket(
                            inode,
                            answer[_INET_STATE_OFFSET],
                            str(Address(_host(family, host), own)),
                            str(Address(_host(family, peer), other)),
                            queued,
                            limit,
                            _MEMINFO.unpack(memory)[_MEMINFO_DROPS] if memory else None,
                        )
                    )
    return found


def _host(family: int, packed: bytes) -> str:
    size = 4 if family == socket.AF_INET else 16
    return socket.inet_ntop(socket.AddressFamily(family), packed[:size])


def _unix_queue(listener: socket.socket) -> Queue:
    inode = os.fstat(listener.fileno()).st_ino
    request = _UNIX_REQUEST.pack(
        socket.AF_UNIX, 0, 0, _ALL, inode & _ALL, _UDIAG_SHOW_RQLEN, _ALL, _ALL
    )
    for [answer] in _ask(request, 0):
        queue = _attribute(answer, _UNIX_ANSWER_BYTES, _UNIX_DIAG_RQLEN)
        if queue is not None:
            return Queue(*struct.unpack("=II", queue))
    raise OSError("the kernel does not report the queue of a unix socket")


def _attribute(answer: bytes, offset: int, wanted: int) -> bytes | None:
    """Return the value of an attribute behind the fixed part of an answer, or None."""
    while offset < len(answer):
        size, kind = _ATTRIBUTE.unpack_from(answer, offset)
        if kind == wanted:
            return answer[offset + _ATTRIBUTE.size : offset + size]
        offset += _aligned(size)
    return None


def _ask(request: bytes, flags: int) -> Iterator[list[bytes]]:
    """Send one request to sock_diag and yield the bodies of the answers, by datagrams.

    The kernel prepares the first datagram in send(), and each further one in the recv() before it,
    so this never waits; the timeout is for a kernel that does otherwise.
    """
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_SOCK_DIAG) as netlink:
        netlink.settimeout(_TIMEOUT)
        size = _NETLINK_HEADER.size
        head = (size + len(request), _SOCK_DIAG_BY_FAMILY, _NLM_F_REQUEST | flags, 1, 0)
        netlink.sendall(_NETLINK_HEADER.pack(*head) + request)
        while True:
            reply = netlink.recv(_REPLY_BYTES)
            bodies: list[bytes] = []
            while reply:
                length, kind, *_ = _NETLINK_HEADER.unpack_from(reply)
                if kind == _NLMSG_DONE:
                    if bodies:
                        yield bodies
                    return
                if kind == _NLMSG_ERROR:
                    (number,) = _ERROR_NUMBER.unpack_from(reply, size)
                    raise OSError(-number, f"sock_diag: {os.strerror(-number)}")
                bodies.append(reply[size:length])
                reply = reply[_aligned(length) :]
            yield bodies
            if not flags:
                return  # a request for one socket has one answer, and no end mark


def _aligned(size: int) -> int:
    return (size + 3) & ~3
