"""Looks after the names of what the master holds by descriptor, and makes those anew that are lost.

A name can be taken away from under a living daemon: by `rm`, or by what cleans /tmp. What is held
goes on working, but nobody finds it any more. So each is looked at every `PERIOD`, by an lstat(2),
as the postmaster of PostgreSQL does. A name that is gone is made anew where that can be done, and
one that a living daemon has taken is left to it. Each change is told once in the daemon log, and
what is lost is in the status while it lasts. Names that are ours get their times set to now every
`TOUCH_AFTER`, so that they do not look forgotten.

Workers hold the unix listeners, too: when one is opened anew, those that were there before are
replaced.
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
    """A name that is to lead to what the master holds."""

    what: str
    path: Path
    file: FileId | None
    """What is held; None for a directory, of which any will do."""
    renew: Callable[[], None]
    """Make the name anew; GreeterdError when it cannot be had."""

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
        """Let the name not look forgotten."""
        if self.file is not None:
            with suppress(OSError), place_of(self.path) as place:
                place.refresh(self.file, TOUCH_AFTER)


class Names:
    """The names, which of them are lost, and the workers that are older than a listener."""

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
        """Why, as it was told last."""
        self._next_look = 0.0

    @property
    def lost(self) -> list[str]:
        """What could not be made anew and why, a line each."""
        return [f"{what} {path}: {reason}" for (what, path), reason in self._lost.items()]

    def attend(self, now: float) -> None:
        """Look when it is time to."""
        if now >= self._next_look:
            self._next_look = now + PERIOD
            self.look()

    def look(self) -> None:
        """Look at every name, and do what can be done about those that are lost."""
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
        """Look, since workers are to be started: they are to serve every address.

        Raises:
            ListenError: nobody could reach them at one, whose name is lost.

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
        """Make a name anew; return why that cannot be done, empty when it is."""
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
        """Make the log directory, but no parent: a release that was removed is not to come back."""
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
