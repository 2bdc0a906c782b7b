"""Asks the kernel how a listener fares: what waits in its queue, what it lost, what is under way.

Nothing here changes a socket. Three sources: TCP_INFO and SO_MEMINFO of the socket itself, which
are cheap (about 1 us), and sock_diag(7) over netlink for what no socket option tells. That needs
AF_NETLINK (a sandbox may forbid it) and the kernel's tcp_diag or unix_diag; where they are missing
the functions that ask it raise OSError.
"""

import os
import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from greeterd.core.address import Address

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

_TCP_SYN_RECV: Final = 3
_INET_REQUEST: Final = struct.Struct("=BBBxI")  # family, protocol, extensions, states
# sport, dport, src, dst, interface, cookie; ports and addresses in network byte order
_INET_ID: Final = struct.Struct("!HH16s16s12x")
_INET_ID_OFFSET: Final = 4

_UNIX_REQUEST: Final = struct.Struct("=BBHIIIII")  # family, -, -, states, inode, show, cookie
_UNIX_ANSWER_BYTES: Final = 16
_UDIAG_SHOW_RQLEN: Final = 0x10
_UNIX_DIAG_RQLEN: Final = 4
_ATTRIBUTE: Final = struct.Struct("=HH")  # length, type
_ALL: Final = 0xFFFFFFFF


@dataclass(frozen=True, slots=True)
class Queue:
    """An accept queue: connections that wait `now`, of `limit` (the kernel lets in one more)."""

    now: int
    limit: int


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

    Most are connections that found the queue full, each counted again when the client asks again;
    SYNs stopped by a gate count too.

    This is what sock_diag(7) tells as INET_DIAG_SKMEMINFO, without a netlink socket.

    Raises: OSError for a unix socket, which drops nothing but has clients wait, or fail at once; on
    Linux before 4.12.
    """
    if listener.family == socket.AF_UNIX:
        raise OSError("a unix socket counts no drops")
    info = listener.getsockopt(socket.SOL_SOCKET, _SO_MEMINFO, _MEMINFO.size)
    return int(_MEMINFO.unpack(info)[_MEMINFO_DROPS])


def half_open(address: Address) -> int:
    """Return how many handshakes with a TCP address are under way; as `handshakes`."""
    return len(handshakes(address))


def handshakes(address: Address) -> frozenset[bytes]:
    """Return the clients (opaque identities) whose SYN was answered, and whose ACK has not come.

    `address` is a listener's `local_address`. These belong to a listener that was chosen already,
    and closing it loses them. The kernel does not tell which listener of a group that is, but all
    that are not in a later answer have finished or died: after new connections have been steered
    away or gated, a listener may close when none of the first answer is left in the present one.
    Handshakes by SYN cookie (a flood) leave no trace here.

    The kernel walks its whole table of connections: about 10 ms for 262,144 buckets, so ask some
    ten times a second at most.

    Raises: OSError if the kernel has no tcp_diag, or AF_NETLINK is forbidden.
    """
    family = socket.AF_INET6 if address.is_v6 else socket.AF_INET
    ours = socket.inet_pton(family, address.host.partition("%")[0]).ljust(16, b"\0")
    # A listener of both families is of AF_INET6, and so are its handshakes over IPv4.
    request = _INET_REQUEST.pack(family, socket.IPPROTO_TCP, 0, 1 << _TCP_SYN_RECV)
    request += _INET_ID.pack(address.port, 0, b"", b"")  # the kernel filters by this port
    clients = set()
    for answer in _ask(request, _NLM_F_DUMP):
        _, client_port, local, client = _INET_ID.unpack_from(answer, _INET_ID_OFFSET)
        if local == ours or not any(ours):
            clients.add(client + client_port.to_bytes(2, "big"))
    return frozenset(clients)


def _unix_queue(listener: socket.socket) -> Queue:
    inode = os.fstat(listener.fileno()).st_ino
    request = _UNIX_REQUEST.pack(
        socket.AF_UNIX, 0, 0, _ALL, inode & _ALL, _UDIAG_SHOW_RQLEN, _ALL, _ALL
    )
    for answer in _ask(request, 0):
        offset = _UNIX_ANSWER_BYTES
        while offset < len(answer):
            size, kind = _ATTRIBUTE.unpack_from(answer, offset)
            if kind == _UNIX_DIAG_RQLEN:
                return Queue(*struct.unpack_from("=II", answer, offset + _ATTRIBUTE.size))
            offset += _aligned(size)
    raise OSError("the kernel does not tell the queue of a unix socket")


def _ask(request: bytes, flags: int) -> Iterator[bytes]:
    """Send one request to sock_diag and yield the bodies of the answers.

    The kernel has prepared the answers when send() returns, so this does not block.
    """
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_SOCK_DIAG) as netlink:
        size = _NETLINK_HEADER.size
        head = (size + len(request), _SOCK_DIAG_BY_FAMILY, _NLM_F_REQUEST | flags, 1, 0)
        netlink.sendall(_NETLINK_HEADER.pack(*head) + request)
        while True:
            reply = netlink.recv(_REPLY_BYTES)
            while reply:
                length, kind, *_ = _NETLINK_HEADER.unpack_from(reply)
                if kind == _NLMSG_DONE:
                    return
                if kind == _NLMSG_ERROR:
                    (number,) = _ERROR_NUMBER.unpack_from(reply, size)
                    raise OSError(-number, f"sock_diag: {os.strerror(-number)}")
                yield reply[size:length]
                reply = reply[_aligned(length) :]
            if not flags:
                return  # a request for one socket has one answer, and no end mark


def _aligned(size: int) -> int:
    return (size + 3) & ~3
