"""What /proc tells of a process: where it sleeps, its listeners, what its epoll waits for.

Linux only, and only of processes that may be inspected (own ones, or any by root).
"""

import os
import re
from contextlib import suppress
from pathlib import Path

import psutil


def sleeps_in(pid: int) -> str:
    """Return the kernel function that the process sleeps in; empty when it runs."""
    name = Path(f"/proc/{pid}/wchan").read_text()
    return "" if name == "0" else name


def listeners(pid: int) -> dict[int, str]:
    """Return the process's listening TCP sockets: descriptor -> host:port."""
    found = psutil.Process(pid).net_connections("tcp")
    return {
        one.fd: f"{one.laddr.ip}:{one.laddr.port}"
        for one in found
        if one.status == psutil.CONN_LISTEN
    }


def inodes(pid: int) -> set[str]:
    """Return the socket inodes behind the process's listeners: one socket has one, if shared."""
    return {str(Path(f"/proc/{pid}/fd/{fd}").readlink()) for fd in listeners(pid)}


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
