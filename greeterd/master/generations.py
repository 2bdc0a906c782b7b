"""The configuration of each generation of workers, and the one in force.

A reload begins a generation: its workers are forked with the new configuration, which comes into
force when the reload has succeeded.  Only then are generations forgotten that have no slot and no
worker any more, because a reload that fails goes back to those before.
"""

import time
from collections.abc import Callable, Iterable
from typing import Final

from greeterd.config.schema import FIXED, Config
from greeterd.control.status import ReloadResult
from greeterd.master.descriptors import most_workers, needed
from greeterd.supervisor.ids import DISPATCHER, Generation
from greeterd.supervisor.policy import Policy
from greeterd.supervisor.supervisor import Supervisor
from greeterd.system import rlimits
from greeterd.system.directories import prepare_directory
from greeterd.system.files import Identity
from greeterd.system.rlimits import allow_files, limit_core_dumps, limit_files, most_files

LOG_DIR_MODE: Final = 0o750


class Generations:
    """The configurations by generation, and the outcome of the latest reload."""

    def __init__(
        self,
        config: Config,
        load: Callable[[], Config],
        identity: Identity | None,
        last: int = 1,
    ) -> None:
        """`load` reads the configuration anew; `last` is the latest generation that was begun."""
        self.current = config
        """The configuration in force."""
        self.last = last
        self.result: ReloadResult | None = None
        self._load = load
        self._identity = identity
        self._configs = {Generation(1): config}
        self._began = 0.0

    def __getitem__(self, generation: Generation) -> Config:
        return self._configs[generation]

    def adopt(self, generations: Iterable[int]) -> None:
        """Take the configuration in force for that of a predecessor's generations.

        Their own is not part of the upgrade state.
        """
        for each in generations:
            self._configs[Generation(each)] = self.current

    def read(self) -> Config:
        """Read the configuration anew, and prepare the files and limits that it needs.

        Raises:
            GreeterdError: it is wrong, or what it names is not available.

        """
        config = self._load()
        prepare_log_dir(config, self._identity)
        allow_files(config.max_files)
        require_files(config)
        return config

    def prepare(self) -> None:
        """Make the log directory of the configuration in force.

        Raises:
            GreeterdError: it cannot be made.

        """
        prepare_log_dir(self.current, self._identity)

    def begin(self, config: Config) -> Generation:
        """Begin the generation of workers with this configuration."""
        self._began = time.monotonic()
        self.last += 1
        generation = Generation(self.last)
        self._configs[generation] = config
        return generation

    def conclude(self, supervisor: Supervisor, reason: str, at: float) -> Config | None:
        """Note how a reload has ended; return the configuration that comes into force, or None.

        `reason` is empty when it has succeeded; `at` is the wall clock.
        """
        generation = supervisor.generation
        config = self._configs[generation]
        self.result = ReloadResult(
            ok=not reason,
            generation=generation,
            at=at,
            took=time.monotonic() - self._began,
            error=reason or None,
        )
        if not reason:
            self._forget(supervisor)
        if config is self.current:
            return None
        self.current = config
        return config

    def _forget(self, supervisor: Supervisor) -> None:
        """Forget the generations without slot and worker: no reload can go back to them now."""
        used = {slot.generation for slot in supervisor.slots.values()}
        used.update(worker.generation for worker in supervisor.workers)
        first = supervisor.generation
        self._configs = {
            each: config for each, config in self._configs.items() if each in used or each >= first
        }


def policy_of(config: Config, most_slots: int | None) -> Policy:
    """Return the part of a configuration that the supervisor decides by."""
    files = most_files(config.max_files)
    addresses = len(config.bind)
    return Policy(
        own_listeners=config.mode != "inherit",
        dispatcher=config.mode == "handoff",
        most_slots=most_slots,
        most_by_files=(
            None if files is None else most_workers(config.mode, addresses=addresses, files=files)
        ),
        rescue=config.rescue,
        graceful_timeout=config.graceful_timeout,
        start_timeout=config.start_timeout,
        worker_timeout=config.worker_timeout,
        max_restarts=config.max_restarts,
        restart_window=config.restart_window,
        shutdown_delay=config.shutdown_delay,
        max_greetings=config.max_greetings,
        max_age=config.max_age,
        max_rss_bytes=config.max_rss * 2**20,
    )


def may_exit(slot: int, config: Config) -> bool:
    """Return whether clients can have this slot's worker exit."""
    return config.allow_exit and slot != DISPATCHER


def fixed_settings(config: Config) -> list[tuple[str, str]]:
    """Return the settings that only a restart changes, as the upgrade state has them."""
    return [(name, str(getattr(config, name))) for name in sorted(FIXED)]


def prepare_log_dir(config: Config, identity: Identity | None) -> None:
    """Make the directory of the logs, for the user that workers become.

    Raises:
        GreeterdError: it cannot be made, or not be written.

    """
    prepare_directory(config.log_dir, identity, LOG_DIR_MODE)


def require_files(config: Config) -> None:
    """Require that the limit of open files allows what a configuration needs.

    Raises:
        GreeterdError: it does not.

    """
    workers, addresses = config.worker_count, len(config.bind)
    need = needed(config.mode, workers=workers, addresses=addresses)
    what = f"mode {config.mode} with workers = {workers}, addresses = {addresses}"
    rlimits.require_files(config.max_files, need, what)


def set_limits(config: Config) -> None:
    """Set the master's own limits to those of a configuration."""
    limit_files(config.max_files)
    limit_core_dumps(allowed=config.core_dumps)
