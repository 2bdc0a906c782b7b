"""Keeps the daemon log for the master: opens it, reopens it, changes it at a reload.

A log file belongs to the user that workers become, since they reopen it, too.
"""

import os

from structlog.typing import FilteringBoundLogger

from greeterd.config import Config
from greeterd.errors import ConfigError
from greeterd.files import Identity
from greeterd.logs import DaemonLog, open_daemon_log


class MasterLog:
    """The daemon log of the configuration in force, and the latest failure that it tells of."""

    def __init__(self, config: Config, identity: Identity | None) -> None:
        """Open it.

        Raises:
            ConfigError: it cannot be opened.

        """
        self._identity = identity
        self._config = config
        self.file = self.open(config)
        """What workers inherit."""
        self.logger = self._bind()
        """The master's own; another one after `change`."""
        self.last_error: str | None = None
        """In one line, for the status."""

    def open(self, config: Config) -> DaemonLog:
        """Open the log that a configuration names, which need not be the one in force.

        Raises:
            ConfigError: it cannot be opened.

        """
        path = config.log_dir / "greeterd.log" if config.daemonize else None
        try:
            log = open_daemon_log(path=path, format=config.log_format, level=config.log_level)
        except OSError as error:
            raise ConfigError(f"daemon log {path}: {error.strerror}") from error
        self._own(log, config)
        return log

    def of(self, config: Config) -> DaemonLog:
        """Return the log for a worker of this configuration.

        It is one of its own in a reload that is under way: the master goes over to it when that has
        succeeded.

        Raises:
            ConfigError: it cannot be opened.

        """
        return self.file if _place(config) == _place(self._config) else self.open(config)

    def reopen(self) -> str:
        """Open its file anew; return why that failed, or nothing."""
        try:
            self.file.reopen()
            self._own(self.file, self._config)
        except OSError as error:
            self.logger.warning("cannot reopen the daemon log", reason=str(error))
            return str(error)
        return ""

    def change(self, config: Config) -> None:
        """Write where and what a reload says; go on as before where that cannot be had any more."""
        self._config = config
        before = self.file
        try:
            self.file = self.open(config)
        except ConfigError as error:
            self.logger.warning("cannot change the daemon log", reason=str(error))
            return
        self.logger = self._bind()
        before.close()

    def _bind(self) -> FilteringBoundLogger:
        return self.file.logger.bind(process="master", pid=os.getpid())

    def _own(self, log: DaemonLog, config: Config) -> None:
        """Give a log file to the user that workers become; standard error is not ours to give."""
        if self._identity is not None and config.daemonize:
            os.fchown(log.fd, self._identity.uid, self._identity.gid)


def _place(config: Config) -> tuple[object, ...]:
    return config.log_dir, config.log_format, config.log_level
