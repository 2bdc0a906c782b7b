"""Attaches the programs of `bpf` to listeners: which one takes a connection, or none (the gate).

A *selection* belongs to an SO_REUSEPORT group: one program serves the whole group, and any
listening member may attach it. Indexes are the order of the listen() calls. When a listener closes,
the last one moves into its place, so after closing one, renumber and attach again.
The *SYN gate* belongs to one listener: it drops packets that open a connection. Handshakes that had
begun, and connections that wait in the queue, pass.

Connections belong to the listener that was chosen for their SYN: a new program moves none of them.
Nothing here takes a privilege.
"""

import array
import errno
import socket
import struct
from typing import Final

from greeterd.sockets.bpf import HASH, Program, assemble, drop_syn

# asm-generic/socket.h; the socket module of CPython names none of them.
SO_ATTACH_FILTER: Final = 26
SO_DETACH_FILTER: Final = 27
SO_ATTACH_REUSEPORT_CBPF: Final = 51
SO_DETACH_REUSEPORT_BPF: Final = 68

_IP_MINTTL: Final = 21  # linux/in.h
_IPV6_MINHOPCOUNT: Final = 73  # linux/in6.h
_UNTOUCHED_TTL: Final = 255


def steer(member: socket.socket, selection: Program | None) -> None:
    """Have `selection` choose for new connections of `member`'s group; None: the kernel's hash.

    Raises: OSError if `member` is not of an SO_REUSEPORT group.
    """
    if selection is not None:
        _attach(member, SO_ATTACH_REUSEPORT_CBPF, selection)
        return
    try:
        member.setsockopt(socket.SOL_SOCKET, SO_DETACH_REUSEPORT_BPF, 0)
    except OSError as error:
        if error.errno == errno.ENOENT:  # nothing was attached
            return
        if error.errno != errno.ENOPROTOOPT:
            raise
        # Linux before 5.3 cannot detach.
        _attach(member, SO_ATTACH_REUSEPORT_CBPF, HASH)


def gate_syn(listener: socket.socket) -> None:
    """Drop the SYNs of new connections to `listener`; those under way or queued go on.

    The client's kernel repeats a SYN that was not answered after a second, and so finds the next
    listener of the address. The gate belongs to the file description: it holds in every process
    that shares it. Connections accepted later inherit it, harmlessly: they receive no SYN.
    """
    try:
        _attach(listener, SO_ATTACH_FILTER, drop_syn())
    except PermissionError:
        # Kernels of 2026 (6.18.44 does it) let only CAP_NET_ADMIN filter a TCP socket. Without a
        # privilege a minimum TTL can be set, and 255 is more than any SYN of a client has. The ACK
        # of a handshake under way is not checked.
        listener.setsockopt(*_ttl_option(listener), _UNTOUCHED_TTL)


def ungate(listener: socket.socket) -> bool:
    """Remove any gate from `listener`.

    Return True if connections in its queue may need `open_gate`: they were made while a gate by
    TTL stood, and inherited it.

    Raises: OSError if the kernel does not remove a filter.
    """
    if listener.family == socket.AF_UNIX:
        return False
    try:
        listener.setsockopt(socket.SOL_SOCKET, SO_DETACH_FILTER, 0)
    except OSError as error:
        if error.errno != errno.ENOENT:  # nothing was attached
            raise
    if not is_gated_by_ttl(listener):
        return False
    listener.setsockopt(*_ttl_option(listener), 0)
    return True


def is_gated_by_ttl(listener: socket.socket) -> bool:
    """Return whether connections that `listener` accepts inherit a gate by TTL (`open_gate`)."""
    if listener.family == socket.AF_UNIX:
        return False
    return listener.getsockopt(*_ttl_option(listener)) == _UNTOUCHED_TTL


def open_gate(fd: int) -> None:
    """Remove a gate by TTL from an accepted connection.

    What its client sent before was dropped, and comes again after a retransmission timeout.
    """
    with socket.socket(fileno=fd) as sock:
        if sock.family != socket.AF_UNIX:
            sock.setsockopt(*_ttl_option(sock), 0)
        sock.detach()


def _ttl_option(sock: socket.socket) -> tuple[int, int]:
    if sock.family == socket.AF_INET6:
        return socket.IPPROTO_IPV6, _IPV6_MINHOPCOUNT
    return socket.IPPROTO_IP, _IP_MINTTL


def _attach(sock: socket.socket, option: int, program: Program) -> None:
    code = array.array("B", assemble(program))
    address, _ = code.buffer_info()  # `code` must outlive the call; the kernel copies it
    fprog = struct.pack("@HP", len(program), address)  # struct sock_fprog
    sock.setsockopt(socket.SOL_SOCKET, option, fprog)
