"""Steers connections inside the kernel with classic BPF: which listener takes them, or none.

Two kinds of program, both unprivileged, both pure functions from numbers to instructions:
- a *selection* runs for each SYN to an SO_REUSEPORT group and returns the index of the listener
  that takes it. Indexes are the order of the listen() calls. When a listener closes, the last one
  moves into its place, so whoever closes one must renumber and attach again. An index that no
  listener has makes the kernel fall back to its hash. One program serves the whole group, and any
  listening member may attach it.
- the *SYN gate* is a socket filter on one listener: it drops packets that open a connection.
  Handshakes that had begun, and connections that wait in the queue, pass.

Connections belong to the listener that was chosen for their SYN: a new program moves none of them.
"""

import array
import errno
import socket
import struct
from collections.abc import Iterable
from typing import Final, TypeAlias

# asm-generic/socket.h; the socket module of CPython names none of them.
SO_ATTACH_FILTER: Final = 26
SO_ATTACH_REUSEPORT_CBPF: Final = 51
SO_DETACH_REUSEPORT_BPF: Final = 68

# linux/filter.h: loads from these offsets answer from the kernel instead of from the packet.
_AD_CPU: Final = 0xFFFFF000 + 36
_AD_RANDOM: Final = 0xFFFFF000 + 56

# linux/bpf_common.h, class | size or operation | mode or source
LOAD_WORD: Final = 0x20
LOAD_BYTE: Final = 0x30
ADD: Final = 0x04
MODULO: Final = 0x94
JUMP_IF_AT_LEAST: Final = 0x35
JUMP_IF_ANY_BIT: Final = 0x45
RETURN: Final = 0x06
RETURN_ACCUMULATOR: Final = 0x16

MAX_INSTRUCTIONS: Final = 4096  # BPF_MAXINSNS
_TCP_FLAGS_OFFSET: Final = 13  # a socket filter of TCP sees the packet from its TCP header on
_TCP_SYN: Final = 0x02
_IP_MINTTL: Final = 21  # linux/in.h
_IPV6_MINHOPCOUNT: Final = 73  # linux/in6.h
_UNTOUCHED_TTL: Final = 255
_WHOLE_PACKET: Final = 0xFFFFFFFF
_NO_INDEX: Final = 0xFFFFFFFF

Instruction: TypeAlias = tuple[int, int, int, int]
"""Operation, instructions to skip if true, if false, operand."""

Program: TypeAlias = tuple[Instruction, ...]


def random_over(indexes: Iterable[int]) -> Program:
    """Return a selection that gives each of `indexes` the same chance.

    A random number modulo their count is the rank of the chosen index; each gap between the
    indexes, in ascending order, then lifts it by the gap's width. Leaving out one of 512 listeners
    costs two instructions; a table of jumps would take two for each that stays. 2**32 is not
    always a multiple of the count, so some indexes are favoured by one part in 2**32 / count.

    Raises: ValueError if there is no index, or if they leave more gaps than a program can hold.
    """
    allowed = sorted(set(indexes))
    if not allowed or allowed[0] < 0:
        raise ValueError("steering needs at least one index, and none below 0")
    if len(allowed) == 1:
        return ((RETURN, 0, 0, allowed[0]),)
    program: list[Instruction] = [(LOAD_WORD, 0, 0, _AD_RANDOM), (MODULO, 0, 0, len(allowed))]
    expected = 0
    for index in allowed:
        if index > expected:
            program += [(JUMP_IF_AT_LEAST, 0, 1, expected), (ADD, 0, 0, index - expected)]
        expected = index + 1
    program.append((RETURN_ACCUMULATOR, 0, 0, 0))
    if len(program) > MAX_INSTRUCTIONS:
        raise ValueError(f"{len(program)} instructions; the kernel takes {MAX_INSTRUCTIONS}")
    return tuple(program)


def cpu_modulo(count: int) -> Program:
    """Return a selection by the CPU that handles the SYN: index = CPU modulo `count`.

    Raises: ValueError if `count` is below 1.
    """
    if count < 1:
        raise ValueError("steering by CPU needs at least one listener")
    return (
        (LOAD_WORD, 0, 0, _AD_CPU),
        (MODULO, 0, 0, count),
        (RETURN_ACCUMULATOR, 0, 0, 0),
    )


def drop_syn() -> Program:
    """Return a socket filter that drops segments with the SYN flag and passes all others whole."""
    return (
        (LOAD_BYTE, 0, 0, _TCP_FLAGS_OFFSET),
        (JUMP_IF_ANY_BIT, 0, 1, _TCP_SYN),
        (RETURN, 0, 0, 0),
        (RETURN, 0, 0, _WHOLE_PACKET),
    )


def steer(member: socket.socket, indexes: Iterable[int] | None) -> None:
    """Spread the new connections of `member`'s group evenly over `indexes`; None: the hash again.

    Raises: ValueError as `random_over`; OSError if `member` is not of an SO_REUSEPORT group.
    """
    if indexes is not None:
        _attach(member, SO_ATTACH_REUSEPORT_CBPF, random_over(indexes))
        return
    try:
        member.setsockopt(socket.SOL_SOCKET, SO_DETACH_REUSEPORT_BPF, 0)
    except OSError as error:
        if error.errno == errno.ENOENT:  # nothing was attached
            return
        if error.errno != errno.ENOPROTOOPT:
            raise
        # Linux before 5.3 cannot detach; an index that nobody has is the hash too.
        _attach(member, SO_ATTACH_REUSEPORT_CBPF, ((RETURN, 0, 0, _NO_INDEX),))


def steer_by_cpu(member: socket.socket, count: int) -> None:
    """Give each new connection of `member`'s group to index CPU modulo `count`.

    Raises: ValueError as `cpu_modulo`; OSError if `member` is not of an SO_REUSEPORT group.
    """
    _attach(member, SO_ATTACH_REUSEPORT_CBPF, cpu_modulo(count))


def gate_syn(listener: socket.socket) -> None:
    """Leave new connections to `listener` unanswered; those under way or queued go on.

    The kernel of a client that was not answered asks again after a second, so it finds whoever
    listens by then. The gate belongs to the file description: it holds in every process that shares
    it, and the connections accepted later inherit it, which harms none (a SYN has no place there).
    """
    try:
        _attach(listener, SO_ATTACH_FILTER, drop_syn())
    except PermissionError:
        # Kernels of 2026 (6.18.44 does it) let only CAP_NET_ADMIN filter a TCP socket. Nobody needs
        # a privilege to ask for packets that no router has touched, though, and a client's SYN has
        # a smaller TTL than this. The ACK of a handshake under way is not looked at.
        listener.setsockopt(*_ttl_option(listener), _UNTOUCHED_TTL)


def is_gated_by_ttl(listener: socket.socket) -> bool:
    """Tell whether the connections that `listener` will accept need `open_gate` to be heard."""
    if listener.family == socket.AF_UNIX:
        return False
    return listener.getsockopt(*_ttl_option(listener)) == _UNTOUCHED_TTL


def open_gate(fd: int) -> None:
    """Let the packets of an accepted connection in, if it inherited a gate that looks at TTLs.

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


def assemble(program: Program) -> bytes:
    """Return the program as an array of struct sock_filter, in the machine's byte order."""
    return b"".join(struct.pack("=HBBI", *instruction) for instruction in program)


def _attach(sock: socket.socket, option: int, program: Program) -> None:
    code = array.array("B", assemble(program))
    address, _ = code.buffer_info()  # `code` must outlive the call; the kernel copies it
    fprog = struct.pack("@HP", len(program), address)  # struct sock_fprog
    sock.setsockopt(socket.SOL_SOCKET, option, fprog)
