"""Counts who has the connections of a TCP port: by process, from outside, of any server.

sock_diag(7) lists the port's sockets, and /proc/PID/fd says which processes have them open
(proc(5): `socket:[INODE]`).  Nothing is changed and the server is not asked.  A connection that no
process has is in an accept queue still.  A listening socket that several processes have is shared;
what waits in its queue waits for any of them.  Processes of other users are seen by root alone:
`unseen` counts the connections that were accepted by a process that could not be looked into.
"""

import os
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final

from msgspec import Struct

from greeterd.balance import Balance, balance
from greeterd.sockets.sockdiag import TcpSocket, tcp_sockets

_TICK: Final = os.sysconf("SC_CLK_TCK")
_PROC: Final = Path("/proc")
_ESTABLISHED: Final = 1  # include/net/tcp_states.h
_LISTEN: Final = 10


class Member(Struct, frozen=True, kw_only=True):
    """A process that has connections of the port, or listens on it."""

    pid: int
    name: str
    established: int
    listeners: list[int] = []
    """Inodes of the listening sockets that it has open."""
    cpu_seconds: float = 0.0
    """User and system, since its start."""


class Listening(Struct, frozen=True, kw_only=True):
    """A listening socket."""

    inode: int
    address: str
    queued: int
    limit: int
    drops: int | None
    """None where the kernel does not tell."""
    pids: list[int]


class Census(Struct, frozen=True, kw_only=True):
    """Who has what of a port."""

    port: int
    members: list[Member]
    listening: list[Listening]
    queued: int
    """Established, and in no process: in an accept queue."""
    unseen: int = 0
    """Accepted, by a process that may not be looked into."""

    @property
    def workers(self) -> dict[int, int]:
        """Connections by pid, of those that take them.

        A process that listens and has none is one that could have had some, unless it is a master:
        the parent of others that have the same socket.
        """
        listens = {one.pid for one in self.members if one.listeners}
        masters = {parent for pid in listens if (parent := _parent(pid)) in listens}
        return {
            one.pid: one.established
            for one in self.members
            if one.established or (one.listeners and one.pid not in masters)
        }

    @property
    def balance(self) -> Balance | None:
        """How even the workers are; None where there is none."""
        return balance(self.workers) if self.workers else None


def take(port: int, pids: Iterable[int] | None = None) -> Census:
    """Return the census of a port; of these processes, or of all that may be looked into.

    Raises:
        OSError: the kernel has no tcp_diag, or AF_NETLINK is forbidden.
    """
    sockets = tcp_sockets(port, 1 << _ESTABLISHED | 1 << _LISTEN)
    owners = owners_of({one.inode for one in sockets if one.inode}, pids)
    established: Counter[int] = Counter()
    listeners: dict[int, list[int]] = {}
    queued = unseen = 0
    listens = []
    for one in sockets:
        pids_ = owners.get(one.inode, [])
        if one.state == _LISTEN:
            listens.append(_listening(one, pids_))
            for pid in pids_:
                listeners.setdefault(pid, []).append(one.inode)
        elif not one.inode:
            queued += 1
        elif pids_:
            # Inherited by several: whoever was forked last serves it, as with a process for each.
            established[max(pids_)] += 1
        else:
            unseen += 1
    members = [
        Member(
            pid=pid,
            name=_name(pid),
            established=established[pid],
            listeners=listeners.get(pid, []),
            cpu_seconds=_cpu_seconds(pid),
        )
        for pid in sorted({*established, *listeners})
    ]
    return Census(port=port, members=members, listening=listens, queued=queued, unseen=unseen)


def listening(port: int) -> list[TcpSocket]:
    """Return the listening sockets of a port.  Raises: as `take`."""
    return tcp_sockets(port, 1 << _LISTEN)


def owners_of(inodes: set[int], pids: Iterable[int] | None = None) -> dict[int, list[int]]:
    """Return which processes have each of these sockets open."""
    wanted = {f"socket:[{inode}]": inode for inode in inodes}
    found: dict[int, list[int]] = {}
    if not wanted:
        return found
    numbers = (int(one.name) for one in _PROC.iterdir() if one.name.isdigit())
    for pid in sorted(numbers if pids is None else pids):
        seen = set()
        for link in _links(pid):
            inode = wanted.get(link)
            if inode is not None and inode not in seen:
                seen.add(inode)
                found.setdefault(inode, []).append(pid)
    return found


def _links(pid: int) -> Iterator[str]:
    try:
        links = list((_PROC / str(pid) / "fd").iterdir())
    except OSError:
        return  # it has gone, or is another user's
    for link in links:
        with suppress(OSError):
            yield str(link.readlink())


def _listening(one: TcpSocket, pids: list[int]) -> Listening:
    return Listening(
        inode=one.inode,
        address=one.address,
        queued=one.queued,
        limit=one.limit,
        drops=one.drops,
        pids=pids,
    )


def process_stat(pid: int) -> list[str]:
    """Return /proc/PID/stat behind the command, the state first; empty when it has gone."""
    try:
        return (_PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []


def _parent(pid: int) -> int:
    stat = process_stat(pid)
    return int(stat[1]) if stat else 0


def _cpu_seconds(pid: int) -> float:
    stat = process_stat(pid)
    return (int(stat[11]) + int(stat[12])) / _TICK if stat else 0.0


def _name(pid: int) -> str:
    try:
        title = (_PROC / str(pid) / "cmdline").read_bytes().replace(b"\0", b" ").strip()
        return title.decode(errors="backslashreplace") or (_PROC / str(pid) / "comm").read_text()
    except OSError:
        return ""
