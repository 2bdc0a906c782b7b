"""The master's daemon log: opened at the start, reopened on request, changed by a reload.

A log file belongs to the user that workers become, because they reopen it, too.  It is opened as
that user and never chowned: the user owns the directory, and could put anything in its place.
A file that was moved or removed is reopened at the latest by the next `look`.
"""

import os

from structlog.typing import FilteringBoundLogger

from greeterd.config.schema import Config
from greeterd.errors import GreeterdError, reason_of, refusal
from greeterd.system.daemon_log import DaemonLog, open_daemon_log
from greeterd.system.files import Identity


class MasterLog:
    """The daemon log of the configuration in force, and the latest failure in it."""

    def __init__(
        self, config: Config, identity: Identity | None, inherited: int | None = None
    ) -> None:
        """Open it; if that fails, go on with the descriptor that a predecessor has left.

        Raises:
            GreeterdError: as `open`, and there is none.

        """
        self._identity = identity
        self._config = config
        self._failure = ""
        """Why the file could not be reopened, as it was logged last."""
        self.last_error: str | None = None
        """In one line, for the status; others set it, too."""
        self.file = self._open_or_inherit(config, inherited)
        """The log that workers inherit."""
        self.logger = self._bind()
        """The master's logger; another one after `change`."""

    def open(self, config: Config) -> DaemonLog:
        """Open the log that a configuration names, which need not be the one in force.

        Raises:
            ConfigError: it cannot be opened.
            ResourceError: the same, for a reason that may pass.

        """
        try:
            return self._open(config)
        except OSError as error:
            raise refusal("daemon log", error) from error

    def of(self, config: Config) -> DaemonLog:
        """Return the log for a worker of this configuration.

        While a reload is under way its workers have one of their own: the master changes to it when
        the reload has succeeded.

        Raises:
            GreeterdError: as `open`.

        """
        return self.file if _place(config) == _place(self._config) else self.open(config)

    def reopen(self) -> str:
        """Reopen its file; return why that failed, or nothing."""
        try:
            self.file.reopen()
        except OSError as error:
            return self._fail(error)
        self._failure = ""
        return ""

    def look(self) -> None:
        """Reopen its file if it was moved or removed; log a failure once."""
        try:
            if self.file.reopen_if_moved():
                self.logger.info("log reopened", reason="its file was moved or removed")
                self._failure = ""
        except OSError as error:
            if reason_of(error) != self._failure:
                self._fail(error)

    def change(self, config: Config) -> None:
        """Follow a reload; if the new log cannot be opened, go on with the old one."""
        self._config = config
        before = self.file
        try:
            self.file = self.open(config)
        except GreeterdError as error:
            self.logger.warning("cannot change the daemon log", reason=str(error))
            return
        self.logger = self._bind()
        before.close()

    def _open_or_inherit(self, config: Config, inherited: int | None) -> DaemonLog:
        try:
            found = self.open(config)
        except GreeterdError:
            if inherited is None:
                raise
            return self._open(config, inherited)  # the first `look` tells why
        if inherited is not None:
            os.close(inherited)
        return found

    def _open(self, config: Config, fd: int | None = None) -> DaemonLog:
        return open_daemon_log(
            path=config.log_dir / "greeterd.log" if config.daemonize else None,
            format=config.log_format,
            level=config.log_level,
            owner=self._identity,
            fd=fd,
        )

    def _fail(self, error: OSError) -> str:
        self._failure = reason_of(error)
        self.last_error = f"daemon log {self._failure}"
        self.logger.warning("cannot reopen the daemon log", reason=self._failure)
        return self._failure

    def _bind(self) -> FilteringBoundLogger:
        return self.file.logger.bind(process="master", pid=os.getpid())


def _place(config: Config) -> tuple[object, ...]:
    return config.log_dir, config.log_format, config.log_level
