"""Restores the file names of what the master holds by descriptor: pid file, sockets, log directory.

`rm`, or a cleaner of /tmp, can remove a name while the daemon runs.  What is held goes on working,
but clients do not find it any more.  So each name is checked every `PERIOD` by an lstat(2), as
PostgreSQL's postmaster does for its lock file.  A name that is gone is restored where that is
possible; one that another living daemon has taken is left alone.  Each change is logged once, and
the status shows a lost name while it is lost.  The times of our files are set to now every
`TOUCH_AFTER`, so that a cleaner does not take them for forgotten.

Workers hold the unix listeners, too: when one is opened anew, the workers that have the old one
are replaced (`outdated`).
"""

from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

from greeterd.control import ControlServer
from greeterd.errors import GreeterdError, ListenError, ResourceError
from greeterd.master.context import MasterContext
from greeterd.master.outdated import OutdatedWorkers
from greeterd.system.pidfile import PidLock
from greeterd.system.socket_file import FileId, file_at, place_of

PERIOD: Final = 1.0
TOUCH_AFTER: Final = 600.0
REPLACED: Final = "to be replaced, since a unix listener was opened anew"

GONE: Final = "it is gone"
TAKEN: Final = "another file has its name"


@dataclass(frozen=True, slots=True)
class Name:
    """A file name that is to lead to what the master holds."""

    what: str
    path: Path
    file: FileId | None
    """Device and inode of what is held; None for a directory, of which any will do."""
    renew: Callable[[], None]
    """Restore the name.  Raises: GreeterdError, OSError if that is impossible."""

    def look(self) -> str:
        """Return what is wrong, empty when nothing is."""
        if self.file is None:
            with suppress(OSError):
                return "" if self.path.is_dir() else GONE
            return GONE
        found = file_at(self.path)
        if found is None:
            return GONE
        return "" if found == self.file else TAKEN

    def touch(self) -> None:
        """Set the file's times to now if they are old."""
        if self.file is not None:
            with suppress(OSError), place_of(self.path) as place:
                place.refresh(self.file, TOUCH_AFTER)


class Names:
    """The names, and which of them are lost."""

    def __init__(
        self,
        context: MasterContext,
        lock: PidLock,
        control: ControlServer,
        outdated: OutdatedWorkers,
    ) -> None:
        self._context = context
        self._outdated = outdated
        self._lock = lock
        self._control = control
        self._lost: dict[tuple[str, Path], str] = {}
        """The reason, as it was logged last."""
        self._next_look = 0.0

    @property
    def lost(self) -> list[str]:
        """The names that could not be restored, with the reason, a line each."""
        return [f"{what} {path}: {reason}" for (what, path), reason in self._lost.items()]

    def attend(self, now: float) -> None:
        """Check every name if PERIOD is over."""
        if now >= self._next_look:
            self._next_look = now + PERIOD
            self.look()

    def look(self) -> None:
        """Check every name, and restore those that are lost."""
        before, self._lost = self._lost, {}
        for name in self._all():
            key = (name.what, name.path)
            reason = name.look()
            if reason:
                reason = self._renew(name, reason, before.get(key, ""))
            elif key in before:
                self._context.logger.info("name is back", what=name.what, path=str(name.path))
            if reason:
                self._lost[key] = reason
            else:
                name.touch()

    def require_listeners(self) -> None:
        """Check that workers that are started now can be reached at every address.

        Raises:
            ListenError: the name of a unix listener is lost, and cannot be restored.

        """
        self.look()
        for (what, path), reason in self._lost.items():
            if path in self._context.escrow.shared.unix_files:
                raise ListenError(f"{what} {path}: {reason}")

    def _all(self) -> Iterator[Name]:
        log_dir = self._context.config.log_dir
        yield Name("run lock", self._lock.path, self._lock.file, self._lock.renew)
        yield Name("control socket", self._control.path, self._control.file, self._control.renew)
        yield Name("log directory", log_dir, None, self._remake_log_dir)
        for path, file in list(self._context.escrow.shared.unix_files.items()):
            yield Name("unix listener", path, file, partial(self._reopen, path))

    def _renew(self, name: Name, reason: str, told: str) -> str:
        """Restore a name; return why that is impossible, empty when it is done."""
        path = str(name.path)
        try:
            name.renew()
        except (GreeterdError, OSError) as error:
            why = f"{reason}; {error}"
            if why != told:
                self._context.logger.warning("name is lost", what=name.what, path=path, reason=why)
            return why
        self._context.logger.warning("name made anew", what=name.what, path=path, reason=reason)
        return ""

    def _remake_log_dir(self) -> None:
        """Make the log directory, but no parent: a release that was removed must not come back."""
        parent = self._context.config.log_dir.parent
        if not parent.is_dir():
            raise ResourceError(f"{parent} is gone, too")
        self._context.generations.prepare()

    def _reopen(self, path: Path) -> None:
        if file_at(path) is not None:
            raise ListenError("that is not ours to replace")
        self._context.escrow.shared.reopen(path)
        self._context.service_manager.keep(self._context.escrow.holdings())
        self._outdated.mark(None, REPLACED)
