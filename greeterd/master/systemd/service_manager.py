"""The client of the service manager: sends `notifications`, and stores our listeners with it.

The master calls `attend` in each turn of its loop, `begin` and `end` around reloads and upgrades,
and `keep` whenever its listeners have changed.  Without a service manager nothing happens.
Resend failed notifications every RETRY_AFTER seconds: the manager would wait for a lost READY=1
until it ends the daemon.
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
"""Variables that stay true until the next of them, so a lost one is resent. All others are sent
anew soon anyway."""


class ServiceManager:
    """Sends notifications, and keeps the manager's descriptor store as it is wanted."""

    def __init__(self, *, upgraded: bool, environ: Mapping[str, str] = os.environ) -> None:
        """`upgraded`: this process was the master before, in an earlier image.

        Raises:
            ConfigError: a variable that the manager has set cannot be parsed.

        """
        self._environ = environ
        self._enabled = bool(environ.get("NOTIFY_SOCKET"))
        period_usec = sd_daemon.watchdog_usec(environ)
        self._notifications = Notifications(
            watchdog=None if period_usec is None else period_usec / 1e6,
            # The exec has kept the pid, but a wrapper around NOTIFY_SOCKET may want it again.
            upgraded=(f"MAINPID={os.getpid()}",) if upgraded else (),
        )
        self._wanted: dict[str, tuple[int, int]] = {}
        """The descriptor and inode that the store is to have, by name."""
        self._stored: dict[str, int] = {}
        """The inode that the store has, by name."""
        self._store_differs = False
        """An update of the store has failed."""
        self._unsent: dict[str, Message] = {}
        """Notifications that have failed, by their first variable, in the order to send them in."""
        self._retry_at = 0.0

    def begin(self) -> None:
        """Notify that a reload or an upgrade begins."""
        self._send(self._notifications.begin(time.monotonic_ns() // 1000))

    def end(self, failure: str) -> None:
        """Note that it has ended; `failure` is what failed and why, or empty."""
        self._notifications.end(failure)

    def attend(
        self, supervisor: Supervisor, *, started: bool, figures: Callable[[], str], now: float
    ) -> None:
        """Send the notifications that are due, and those to be resent."""
        if not self._enabled:
            return
        if (self._unsent or self._store_differs) and now >= self._retry_at:
            self._retry_at = now + RETRY_AFTER
            failed, self._unsent = list(self._unsent.values()), {}
            self._send(failed)
            self._update_store()
        self._send(self._notifications.look(view_of(supervisor, started=started), figures, now))

    def next_deadline(self) -> float | None:
        """Return when to call `attend` at the latest; None: no such time."""
        if not self._enabled:
            return None
        due = self._notifications.next_deadline()
        return min(due, self._retry_at) if self._unsent or self._store_differs else due

    def keep(self, descriptors: Mapping[str, int]) -> None:
        """Have exactly these descriptors stored, by their names, for the process after this one."""
        if self._enabled:
            self._wanted = {name: (fd, os.fstat(fd).st_ino) for name, fd in descriptors.items()}
            self._update_store()

    def _update_store(self) -> None:
        """Make the store as it is wanted; what fails is tried again by `attend`."""
        self._store_differs = False
        # Remove first: the manager ignores a socket that it still stores under another name.
        for name, inode in list(self._stored.items()):
            if self._wanted.get(name, (0, 0))[1] == inode:
                continue
            if sd_daemon.remove_fds(name, self._environ):
                del self._stored[name]
            else:
                self._store_differs = True
        for name, (fd, inode) in self._wanted.items():
            if name in self._stored:
                continue
            if sd_daemon.notify_with_fds(name, [fd], environ=self._environ):
                self._stored[name] = inode
            else:
                self._store_differs = True

    def _send(self, messages: list[Message]) -> None:
        for message in messages:
            variable = message[0].partition("=")[0]
            if variable not in LASTING:
                sd_daemon.notify(*message, environ=self._environ)
            # While another waits to be resent, so does this one: the manager needs their order.
            elif self._unsent or not sd_daemon.notify(*message, environ=self._environ):
                self._unsent.pop(variable, None)
                self._unsent[variable] = message


def view_of(supervisor: Supervisor, *, started: bool) -> View:
    """Return what the notifications depend on."""
    live = supervisor.live_slots
    ready = [slot.ready for slot in live if slot.ready is not None]
    return View(
        started=started,
        stopping=supervisor.stopping is not None,
        slots=len(live),
        ready=len(ready),
        healthy=sum(worker.able and not worker.overdue for worker in ready),
    )
