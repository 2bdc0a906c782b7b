"""Keeps the service manager informed, and has it keep our listeners; `core.notices` decides what.

The master calls `attend` in each turn of its loop, `begin` and `end` around reloads and upgrades,
and `keep` whenever its listeners have changed.  Without a service manager nothing happens.
What the manager does not take is told again, once in `RETRY_AFTER` seconds: it would wait for a
lost READY=1 until it ends the daemon.
"""

import os
import time
from collections.abc import Callable, Mapping
from typing import Final

from greeterd.master.systemd.notifications import Message, Notifications, View
from greeterd.supervisor.supervisor import Supervisor
from greeterd.system import sd_daemon

RETRY_AFTER: Final = 1.0
LASTING: Final = frozenset({"READY", "RELOADING", "STOPPING", "STATUS"})
"""What stays true until there is another such word; all others are soon told anew."""


class ServiceManager:
    """The service manager, as the master knows it."""

    def __init__(self, *, upgraded: bool, environ: Mapping[str, str] = os.environ) -> None:
        """`upgraded`: this process has served already, as an earlier image.

        Raises:
            ConfigError: what the manager has set cannot be read.

        """
        self._environ = environ
        self._there = bool(environ.get("NOTIFY_SOCKET"))
        period_usec = sd_daemon.watchdog_usec(environ)
        self._notices = Notifications(
            watchdog=None if period_usec is None else period_usec / 1e6,
            # The exec has kept the pid; it is told all the same, for those who look after it.
            upgraded=(f"MAINPID={os.getpid()}",) if upgraded else (),
        )
        self._wanted: dict[str, tuple[int, int]] = {}
        """Descriptor and inode, by name."""
        self._kept: dict[str, int] = {}
        """The inodes of what is in the store, by name."""
        self._behind = False
        """The store is not as it is wanted."""
        self._untold: dict[str, Message] = {}
        """What has not been taken, by its first word, in the order in which it is to be told."""
        self._retry_at = 0.0

    def begin(self) -> None:
        """Tell that a reload or an upgrade begins."""
        self._send(self._notices.begin(time.monotonic_ns() // 1000))

    def end(self, failure: str) -> None:
        """Note that it has ended; `failure` says what failed, and why."""
        self._notices.end(failure)

    def attend(
        self, supervisor: Supervisor, *, started: bool, figures: Callable[[], str], now: float
    ) -> None:
        """Tell what is due."""
        if not self._there:
            return
        if (self._untold or self._behind) and now >= self._retry_at:
            self._retry_at = now + RETRY_AFTER
            again, self._untold = list(self._untold.values()), {}
            self._send(again)
            self._settle()
        self._send(self._notices.look(view_of(supervisor, started=started), figures, now))

    def next_deadline(self) -> float | None:
        """Return when `attend` is to be called at the latest; None for no such."""
        if not self._there:
            return None
        due = self._notices.next_deadline()
        return min(due, self._retry_at) if self._untold or self._behind else due

    def keep(self, descriptors: Mapping[str, int]) -> None:
        """Have exactly these kept, by their names, for the process that follows this one."""
        if self._there:
            self._wanted = {name: (fd, os.fstat(fd).st_ino) for name, fd in descriptors.items()}
            self._settle()

    def _settle(self) -> None:
        """Bring the store in line; what cannot be told now is told at a later turn."""
        self._behind = False
        # The old ones first: a socket that is still there under another name would not be taken.
        for name, inode in list(self._kept.items()):
            if self._wanted.get(name, (0, 0))[1] == inode:
                continue
            if sd_daemon.remove_fds(name, self._environ):
                del self._kept[name]
            else:
                self._behind = True
        for name, (fd, inode) in self._wanted.items():
            if name in self._kept:
                continue
            if sd_daemon.notify_with_fds(name, [fd], environ=self._environ):
                self._kept[name] = inode
            else:
                self._behind = True

    def _send(self, messages: list[Message]) -> None:
        for message in messages:
            word = message[0].partition("=")[0]
            if word not in LASTING:
                sd_daemon.notify(*message, environ=self._environ)
            # In their order: none overtakes another that waits.
            elif self._untold or not sd_daemon.notify(*message, environ=self._environ):
                self._untold.pop(word, None)
                self._untold[word] = message


def view_of(supervisor: Supervisor, *, started: bool) -> View:
    """Return what the manager's notices depend on."""
    live = supervisor.live_slots
    ready = [slot.ready for slot in live if slot.ready is not None]
    return View(
        started=started,
        stopping=supervisor.stopping is not None,
        slots=len(live),
        ready=len(ready),
        healthy=sum(worker.able and not worker.overdue for worker in ready),
    )
