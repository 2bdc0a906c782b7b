"""What the kernel tells of a process: where it sleeps, its listeners, what its epoll waits for.

Linux only, and only of processes that may be traced: descendants, or any by root.
"""

import ctypes
import errno
import os
import re
import socket
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

from greeterd.sockets.listener import local_address

PIDFD_GETFD = 438  # pidfd_getfd(2), Linux 5.6; the same number on every architecture


def sleeps_in(pid: int) -> str:
    """Return the kernel function that the process sleeps in; empty when it runs."""
    name = Path(f"/proc/{pid}/wchan").read_text()
    return "" if name == "0" else name


def links(pid: int) -> Iterator[str]:
    """Yield what the process's descriptors lead to, but for those that are closed meanwhile."""
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(FileNotFoundError):
            yield str(entry.readlink())


def listeners(pid: int) -> dict[int, str]:
    """Return the process's listening sockets: descriptor -> address."""
    found = {}
    for fd, sock in _sockets(pid):
        with sock:
            if sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
                found[fd] = str(local_address(sock))
    return found


def listener_of(pid: int, address: str = "") -> socket.socket:
    """Return a duplicate of the process's listener at an address, or of its first."""
    return _first(
        pid,
        lambda sock: (
            bool(sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))
            and address in {"", str(local_address(sock))}
        ),
    )


def pair_exit_of(pid: int, master: int) -> socket.socket:
    """Return a duplicate of the end at which a worker of mode handoff is handed connections."""
    # Its end of the channel is such a socket, too, but the master does not hold that.
    held = set(links(master))
    return _first(
        pid,
        lambda sock: (
            sock.type == socket.SOCK_SEQPACKET
            and str(Path(f"/proc/self/fd/{sock.fileno()}").readlink()) in held
        ),
    )


def _first(pid: int, wanted: Callable[[socket.socket], bool]) -> socket.socket:
    found = []
    for _, sock in _sockets(pid):
        if wanted(sock):
            found.append(sock)
        else:
            sock.close()
    for other in found[1:]:
        other.close()
    return found[0]


def inodes(pid: int) -> set[str]:
    """Return the inodes of the process's TCP listeners; processes that share one name the same."""
    return {
        str(Path(f"/proc/{pid}/fd/{fd}").readlink())
        for fd, address in listeners(pid).items()
        if not address.startswith("unix:")
    }


def _sockets(pid: int) -> Iterator[tuple[int, socket.socket]]:
    """Yield duplicates of a process's sockets; /proc/net/tcp would list the whole host's."""
    pidfd = os.pidfd_open(pid)
    libc = ctypes.CDLL(None, use_errno=True)
    try:
        for entry in Path(f"/proc/{pid}/fd").iterdir():
            with suppress(FileNotFoundError):
                if not str(entry.readlink()).startswith("socket:"):
                    continue
                copy = libc.syscall(PIDFD_GETFD, pidfd, int(entry.name), 0)
                error = ctypes.get_errno()
                if copy < 0 and error == errno.EBADF:
                    continue  # closed since the link was read
                if copy < 0:
                    raise OSError(error, f"pidfd_getfd {entry}")
                yield int(entry.name), socket.socket(fileno=copy)
    finally:
        os.close(pidfd)


def epoll_masks(pid: int) -> dict[int, int]:
    """Return what the process's epoll sets wait for: descriptor -> event mask."""
    masks: dict[int, int] = {}
    for entry in Path(f"/proc/{pid}/fdinfo").iterdir():
        with suppress(FileNotFoundError):
            found = re.findall(
                r"^tfd: *(\d+) events: *([0-9a-f]+)", entry.read_text(), re.MULTILINE
            )
            masks.update((int(fd), int(mask, 16)) for fd, mask in found)
    return masks


def is_blocking(pid: int, fd: int) -> bool:
    """Tell whether O_NONBLOCK is clear on a descriptor."""
    text = Path(f"/proc/{pid}/fdinfo/{fd}").read_text()
    flags = re.search(r"^flags:\s*([0-7]+)", text, re.MULTILINE)
    assert flags is not None
    return not int(flags[1], 8) & os.O_NONBLOCK


def uids(pid: int) -> set[int]:
    """Return the process's real, effective, saved and file system uid, each once."""
    text = Path(f"/proc/{pid}/status").read_text()
    line = re.search(r"^Uid:\s*(.*)$", text, re.MULTILINE)
    assert line is not None
    return {int(word) for word in line[1].split()}


def terminal_of(pid: int) -> int:
    """Return the device number of the process's controlling terminal, 0 without one.

    Not psutil's way, which knows only the terminals that there were when it was first asked.
    """
    number = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[4])
    # proc_pid_stat(5), tty_nr: the minor number is in bits 31 to 20 and 7 to 0
    return os.makedev(number >> 8 & 0xFFF, number & 0xFF | number >> 12 & 0xFFF00) if number else 0
