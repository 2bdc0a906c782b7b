"""Opens the sockets that clients connect to, and guards their addresses.

In mode inherit the master opens one shared listener per address. In mode reuseport it keeps a guard
per address, and each worker opens a member; a member listens later, because the order of the
listen() calls is the index order of `greeterd.sockets.steering`.

Every socket is non-blocking and close-on-exec. O_NONBLOCK and SO_RCVTIMEO belong to the file
description: what one process sets holds for all that share the listener. IPv6 listeners take IPv6
only, so `[::]:80` and `0.0.0.0:80` may both be given. A host name means the first address that the
resolver returns for it.

All sockets of a reuseport group must be of one effective user: open members before privileges are
dropped, or give the guard to the user that workers become, with fchown on its descriptor.
"""

import contextlib
import errno
import math
import os
import socket
import stat
import struct
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from greeterd.errors import ListenError
from greeterd.sockets.address import MAX_PATH_BYTES, Address
from greeterd.system.socket_file import place_of

_SOMAXCONN: Final = Path("/proc/sys/net/core/somaxconn")
_PRIVILEGED_PORTS: Final = 1024  # net.ipv4.ip_unprivileged_port_start, unless an operator moved it

_LINGER_RESET: Final = struct.pack("ii", 1, 0)
"""SO_LINGER on, 0 s: close(2) sends RST instead of FIN."""

TCP_CLOSE: Final = 7  # include/net/tcp_states.h: neither connected nor listening

_REASONS: Final = {
    errno.EACCES: "permission denied",
    errno.EADDRINUSE: "another process uses this address",
    errno.EADDRNOTAVAIL: "no interface of this machine has this address",
    errno.EAFNOSUPPORT: "the kernel does not support addresses of this kind",
    errno.EEXIST: "the path exists and is not a socket",
    errno.ENOENT: "the directory does not exist",
    errno.ENOTDIR: "a part of the path is not a directory",
    errno.EROFS: "the file system is read-only",
}


def resolve(address: Address) -> Address:
    """Return the address with numbers for a host name; may block long for the resolver.

    Raises: ListenError naming the address and the reason.
    """
    if address.is_unix:
        return address
    _, where = _look_up(address)
    host, _ = socket.getnameinfo(where, socket.NI_NUMERICHOST | socket.NI_NUMERICSERV)
    return replace(address, host=host)


def open_shared(address: Address, *, backlog: int, unix_mode: int) -> socket.socket:
    """Return a listener that every worker inherits.

    `unix_mode` are the permissions of a unix socket's file. A file that a dead daemon left is
    replaced: one where no process listens.

    Raises: ListenError naming the address and the reason.
    """
    if address.is_unix:
        return _open_unix(address, backlog, unix_mode)
    with _tcp_socket(address) as (sock, where):
        # Without it, connections in TIME_WAIT of an earlier run block the address for a minute. On
        # Linux it never lets two sockets listen.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(where)
        sock.listen(backlog)
    return sock


def guard_address(address: Address) -> socket.socket:
    """Return a bound socket that keeps the address for members, and never takes a connection.

    It proves first that no other process has the address; with SO_REUSEPORT alone a second daemon
    of the same user would join unnoticed and take half of the clients. It finds every listener of
    another process, whatever its options, and other guards. A process that has only bound, with
    SO_REUSEADDR, is not found (Linux lets both bind); its listen() fails, unless it has set
    SO_REUSEPORT as our user. Port 0 becomes a free port; `local_address` returns it.

    Raises: ListenError naming the address and the reason.
    """
    if address.is_unix:
        raise _refusal(address, "the kernel does not balance unix sockets; use the mode inherit")
    with _tcp_socket(address) as (sock, where):
        if address.port == 0:
            # The kernel never picks a port that another socket has bound, however it is shared.
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            sock.bind(where)
            return sock
        # The same socket proves and guards, so that no second daemon can come between. bind() with
        # SO_REUSEADDR ignores connections in TIME_WAIT; listen() then fails if there is any other
        # listener or guard.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(where)
        sock.listen(0)
        # The address is ours. Without SO_REUSEADDR the guard makes other daemons' proof fail also
        # when it no longer listens; with SO_REUSEPORT it lets our members bind. The kernel reads
        # both flags when it compares two sockets, so they count after bind() too.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 0)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        sock.shutdown(socket.SHUT_RDWR)  # no longer listens, and keeps the port that it was given
    return sock


def open_member(address: Address) -> socket.socket:
    """Return a socket bound to a guarded address, for one worker; it does not listen yet.

    `address` is the guard's `local_address`: a port of 0 would make a group of its own.

    Raises: ListenError naming the address and the reason.
    """
    with _tcp_socket(address) as (sock, where):
        # SO_REUSEADDR too: its connections inherit it, so those in TIME_WAIT do not refuse a later
        # start in the mode inherit.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        sock.bind(where)
    return sock


def listen_again(sock: socket.socket, address: Address, *, backlog: int) -> None:
    """Make a TCP socket listen at its address again after a worker has shut it down.

    What was queued is lost.  Raises: OSError if it cannot, or only at another address.
    """
    # Twice: shutdown() of one that does not listen marks it, and the connections that are accepted
    # from it later inherit the mark, and are reset. Shutdown of one that listens takes it off.
    for _ in range(2):
        with contextlib.suppress(OSError):
            sock.shutdown(socket.SHUT_RDWR)
        # A port that the kernel had chosen was released. EINVAL: this one is still bound.
        with contextlib.suppress(OSError):
            sock.bind((address.host, address.port))
        sock.listen(backlog)
    if local_address(sock) != address:
        sock.shutdown(socket.SHUT_RDWR)
        raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))


def is_member(fd: int, address: Address) -> bool:
    """Return whether a descriptor from an untrusted process is what `open_member` returns.

    Never blocks, and changes nothing about it.
    """
    if not stat.S_ISSOCK(os.fstat(fd).st_mode):
        return False
    try:
        sock = socket.socket(fileno=fd)
    except OSError:
        return False
    try:
        return (
            sock.family in {socket.AF_INET, socket.AF_INET6}
            and sock.type == socket.SOCK_STREAM
            and sock.proto == socket.IPPROTO_TCP
            and local_address(sock) == address
            and bool(sock.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT))
            and _tcp_state(sock) == TCP_CLOSE
        )
    except OSError:
        return False
    finally:
        sock.detach()


def _tcp_state(sock: socket.socket) -> int:
    return sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0]


def local_address(sock: socket.socket) -> Address:
    """Return the address that the socket is bound to, with its real port."""
    name = sock.getsockname()
    if sock.family == socket.AF_UNIX:
        return Address(path=os.fsdecode(name))
    return Address(host=name[0], port=name[1])


def effective_backlog(backlog: int) -> int:
    """Return the backlog in force: the kernel silently caps it at net.core.somaxconn.

    The accept queue holds one more than that.
    """
    try:
        return min(backlog, int(_SOMAXCONN.read_text()))
    except (OSError, ValueError):
        return backlog  # no /proc: the kernel caps it, and the cap cannot be read


def set_blocking_accept(sock: socket.socket, timeout: float) -> None:
    """Make accept() on the listener block, for at most `timeout` seconds (more than 0).

    Then accept() raises BlockingIOError. Accepted sockets inherit the limit for their own reads.
    """
    # Not settimeout(): Python would poll first, and all waiters would wake for one connection.
    microseconds = math.ceil(timeout * 1_000_000)
    if microseconds <= 0:
        raise ValueError("to the kernel, a timeout of 0 means to wait for ever")
    limit = struct.pack("@ll", *divmod(microseconds, 1_000_000))  # struct timeval
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, limit)
    sock.setblocking(True)


def _open_unix(address: Address, backlog: int, mode: int) -> socket.socket:
    path = Path(address.path)
    if len(os.fsencode(path)) > MAX_PATH_BYTES:
        raise _refusal(address, f"the path is longer than {MAX_PATH_BYTES} bytes")
    with _new_socket(address, socket.AF_UNIX) as sock, place_of(path) as place:
        place.clear()
        # bind() creates the file, and only the umask can set its permissions in that moment; a
        # later chmod could be led elsewhere by a user who may write in the directory. The umask is
        # the whole process's: the master has one thread.
        before = os.umask(0o777 & ~mode)
        try:
            sock.bind(address.path)
        finally:
            os.umask(before)
        # Not bound through the open directory: getsockname() would show that path for ever.
        made = place.look()
        if made is None or not stat.S_ISSOCK(made.st_mode) or made.st_uid != os.geteuid():
            raise _refusal(address, "the directory was replaced meanwhile by another user")
        sock.listen(backlog)
    return sock


@contextmanager
def _tcp_socket(address: Address) -> Iterator[tuple[socket.socket, tuple[Any, ...]]]:
    """Give a new socket and the resolved address to bind it to, as `_new_socket`."""
    family, where = _look_up(address)
    with _new_socket(address, family) as sock:
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        yield sock, where


def _look_up(address: Address) -> tuple[int, tuple[Any, ...]]:
    try:
        found = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)
    except socket.gaierror as error:
        raise _refusal(address, f"the host cannot be resolved: {error.strerror}") from error
    family, _, _, _, where = found[0]
    return family, where


@contextmanager
def _new_socket(address: Address, family: int) -> Iterator[socket.socket]:
    """Give a new non-blocking socket; if the block fails close it, and explain an OSError."""
    with ExitStack() as undo:
        try:
            sock = undo.enter_context(socket.socket(family, socket.SOCK_STREAM))
            sock.setblocking(False)
            yield sock
        except OSError as error:
            raise _refusal(address, _reason(address, error)) from error
        undo.pop_all()


def _reason(address: Address, error: OSError) -> str:
    reason = _REASONS.get(error.errno or 0) or error.strerror or str(error)
    if error.errno == errno.EACCES and not address.is_unix and address.port < _PRIVILEGED_PORTS:
        reason += f": a port below {_PRIVILEGED_PORTS} needs root or CAP_NET_BIND_SERVICE"
    return reason


def _refusal(address: Address, reason: str) -> ListenError:
    return ListenError(f"cannot listen on {address}: {reason}")


def close_with_reset(fd: int) -> None:
    """Close a connection so that its client sees a reset."""
    with contextlib.suppress(OSError), socket.socket(fileno=fd) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_RESET)
