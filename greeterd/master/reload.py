"""The reload: a transaction that puts a new configuration in force, or leaves the old one.

`begin` reads the configuration and checks all that can be checked before a worker is touched.  The
supervisor then replaces the workers one by one, and goes back to the old ones if a new one fails.
`conclude` puts in force what has succeeded; only then does the master itself follow it.
"""

import time

from greeterd.config.schema import Config, fixed_differences
from greeterd.errors import ConfigError
from greeterd.master.context import MasterContext
from greeterd.master.generations import policy_of, set_limits
from greeterd.master.mender import Mender
from greeterd.supervisor.events import Reload
from greeterd.supervisor.ids import Ticket


class Reloader:
    """Reloads, one after the other."""

    def __init__(self, context: MasterContext, mender: Mender) -> None:
        self._context = context
        self._mender = mender

    def begin(self, ticket: Ticket) -> None:
        """Read the configuration anew, and have every worker replaced by one that has it.

        Raises:
            GreeterdError: it is wrong, or needs a restart, or something it names cannot be had.

        """
        config = self._context.generations.read()
        self._context.log.open(config).close()
        if fixed := fixed_differences(self._context.config, config):
            raise ConfigError(f"only a restart changes {', '.join(fixed)}")
        self.replace_workers(config, ticket)

    def replace_workers(self, config: Config, ticket: Ticket, command: str = "reload") -> None:
        """Have every worker replaced by one of this configuration, in the name of a command."""
        self._mender.look()
        generation = self._context.generations.begin(config)
        policy = policy_of(config, self._context.escrow.groups.most_slots)
        self._context.feed(Reload(generation, config.worker_count, policy, ticket, command))

    def conclude(self, reason: str) -> None:
        """Put in force what the workers have by now; `reason` is why the reload failed, or empty.

        A reload that has failed can leave another configuration in force: when its undoing failed.
        """
        at = time.clock_gettime(time.CLOCK_REALTIME)
        config = self._context.generations.conclude(self._context.supervisor, reason, at)
        if config is not None:
            set_limits(config)
            self._context.escrow.groups.steer_as(config)
            self._context.log.change(config)
