"""What the parts of a master share, around a real supervisor: no process, socket or clock."""

from types import SimpleNamespace
from typing import Any, cast

from structlog.typing import FilteringBoundLogger

from greeterd.config.schema import Config
from greeterd.master.context import MasterContext
from greeterd.master.generations import Generations
from greeterd.supervisor.actions import Spawn
from greeterd.supervisor.events import Event, Ready, Spawned, Tick
from greeterd.supervisor.ids import Pid
from greeterd.supervisor.policy import Policy
from greeterd.supervisor.supervisor import Supervisor


class FakeLog:
    """A MasterLog that keeps what it was given: (level, event, fields)."""

    def __init__(self) -> None:
        self.records: list[tuple[str, str, dict[str, Any]]] = []
        self.last_error: str | None = None
        self.logger = cast("FilteringBoundLogger", self)
        self.file = SimpleNamespace(fd=2, logger=self)
        self.changed: list[Config] = []
        self.failure = ""

    def __getattr__(self, level: str) -> Any:
        if level not in {"debug", "info", "warning", "error", "exception"}:
            raise AttributeError(level)
        return lambda event, **fields: self.records.append((level, event, fields))

    def bind(self, **_fields: object) -> "FakeLog":
        """Return itself."""
        return self

    def open(self, _config: Config) -> Any:
        """Return what can be closed."""
        return SimpleNamespace(close=lambda: None)

    def of(self, _config: Config) -> Any:
        """Return the log of a worker."""
        return self.file

    def change(self, config: Config) -> None:
        """Note the configuration."""
        self.changed.append(config)

    def reopen(self) -> str:
        """Return why it fails, or nothing."""
        return self.failure

    def events(self) -> list[str]:
        """Return the events' names."""
        return [event for _, event, _ in self.records]


class FakeServiceManager:
    """Notes what it is told."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    def begin(self) -> None:
        """Note it."""
        self.calls.append("begin")

    def end(self, failure: str) -> None:
        """Note it."""
        self.calls.append(f"end {failure}".strip())

    def keep(self, _descriptors: object) -> None:
        """Note it."""
        self.calls.append("keep")


class Parts:
    """A context whose supervisor is real, and what was fed to it and came of that."""

    def __init__(
        self,
        *,
        workers: int = 1,
        config: Config | None = None,
        policy: Policy | None = None,
        **given: Any,
    ) -> None:
        """`given` are parts of the context; those that are missing must not be needed."""
        self.config = config or Config(workers=workers)
        self.log = FakeLog()
        self.service_manager = FakeServiceManager()
        self.supervisor = Supervisor(workers=workers, policy=policy or Policy(), jitter=lambda: 0.0)
        self.fed: list[Event] = []
        self.actions: list[Any] = []
        """What the supervisor has asked for, and nobody has done."""
        self.now = 0.0
        parts: dict[str, Any] = {
            "supervisor": self.supervisor,
            "generations": Generations(self.config, lambda: self.config, None),
            "service_manager": self.service_manager,
            "log": self.log,
            "feed": self.feed,
            "scoreboard": None,
            "escrow": None,
            "identity": None,
            "selector": None,
        }
        self.context = MasterContext(**(parts | given))

    def feed(self, event: Event) -> None:
        """Note the event, and let the supervisor handle it."""
        self.fed.append(event)
        self.actions += self.supervisor.handle(event, self.now)

    def take(self, kind: type[Any]) -> list[Any]:
        """Return the actions of a kind that have come since the last call."""
        found = [each for each in self.actions if isinstance(each, kind)]
        self.actions = [each for each in self.actions if not isinstance(each, kind)]
        return found

    def start(self) -> list[Spawn]:
        """Have every worker that is asked for ready at once; return those."""
        started: list[Spawn] = []
        self.feed(Tick())
        while spawned := self.take(Spawn):
            for each in spawned:
                self.feed(Spawned(each.worker, Pid(100 + each.worker)))
                self.feed(Ready(each.worker, rss_bytes=0))
            started += spawned
        return started
