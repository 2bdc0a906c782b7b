"""ActionRunner: which part of the master carries out which action."""

from typing import Any

import pytest

from greeterd.master import actions as module
from greeterd.master.actions import ActionRunner
from greeterd.supervisor.actions import (
    Action,
    CloseSlot,
    Drain,
    EndPreflight,
    Exit,
    Finished,
    GateAll,
    Kill,
    Lend,
    Replace,
    Say,
    Spawn,
    Started,
    StartPreflight,
    SteerAway,
    TakeBack,
)
from greeterd.supervisor.ids import (
    DISPATCHER,
    NO_TICKET,
    DrainMode,
    Generation,
    Signal,
    SlotIndex,
    Ticket,
    WorkerId,
)
from greeterd.worker.messages import DrainMessage
from tests.unit.master.parts import Parts

SLOT, WORKER = SlotIndex(1), WorkerId(1)
SPAWN = Spawn(WORKER, SLOT, 0, Generation(1))
FINISHED = Finished(NO_TICKET, "scale", "", Generation(1), 2)


class Part:
    """Notes each call as (part.method, *arguments)."""

    def __init__(self, name: str, calls: list[tuple[object, ...]], **results: object) -> None:
        self._name = name
        self._calls = calls
        self._results = results

    def __getattr__(self, method: str) -> Any:
        def call(*given: object) -> object:
            self._calls.append((f"{self._name}.{method}", *given))
            return self._results.get(method)

        return call


class Run:
    """An ActionRunner whose parts note what they are asked for."""

    def __init__(self, *, pending: bool = False) -> None:
        self.calls: list[tuple[object, ...]] = []
        escrow: Any = Part("escrow", self.calls, holdings={"name": 3})
        escrow.addresses = ["127.0.0.1:7"]
        escrow.pairs = Part("escrow.pairs", self.calls)
        service_manager = Part("service_manager", self.calls)
        self.parts = Parts(workers=2, escrow=escrow, service_manager=service_manager)
        self.parts.start()
        names = ("workers", "sweeps", "commands", "upgrader", "readiness")
        given: dict[str, Any] = {name: Part(name, self.calls) for name in names}
        given["spawner"] = Part("spawner", self.calls, renounce=pending)
        self.runner = ActionRunner(self.parts.context, **given)

    def __call__(self, action: Action) -> list[tuple[object, ...]]:
        """Perform an action; return the calls that it led to."""
        self.calls.clear()
        self.runner.perform(action)
        return self.calls


@pytest.mark.parametrize(
    ("action", "call"),
    [
        (SPAWN, ("spawner.ask", SPAWN)),
        (Lend(SLOT, WORKER), ("workers.lend", SLOT, WORKER)),
        (TakeBack(SLOT, WORKER), ("workers.take_back", SLOT, WORKER)),
        (SteerAway(SLOT), ("escrow.steer_away", SLOT)),
        (StartPreflight(), ("upgrader.start_preflight",)),
        (EndPreflight(), ("upgrader.end_preflight",)),
        (Replace(Ticket(3)), ("upgrader.replace", Ticket(3))),
        (FINISHED, ("commands.finish", FINISHED)),
    ],
    ids=lambda given: type(given).__name__,
)
def test_an_action_is_one_parts(action: Action, call: tuple[object, ...]) -> None:
    assert Run()(action) == [call]


@pytest.mark.parametrize("how", [DrainMode.HAND_OVER, DrainMode.QUICK])
def test_a_worker_drains_as_it_is_to(how: DrainMode) -> None:
    run = Run()
    assert run(Drain(WORKER, how)) == [
        ("spawner.renounce", WORKER),
        ("workers.send", WORKER, DrainMessage(how.value)),
    ]


def test_a_worker_that_sweeps_waits_until_the_handshakes_are_over() -> None:
    run = Run()
    assert run(Drain(WORKER, DrainMode.SWEEP)) == [
        ("spawner.renounce", WORKER),
        ("workers.send", WORKER, DrainMessage(DrainMode.SWEEP.value, settled=False)),
        ("sweeps.add", WORKER),
        ("escrow.pairs.shut_unused", SLOT),
    ]
    gone = WorkerId(99)
    assert run(Drain(gone, DrainMode.SWEEP))[-1] == ("sweeps.add", gone)


@pytest.mark.parametrize(
    "action", [Drain(WORKER, mode) for mode in DrainMode] + [Kill(WORKER, Signal.KILL, "late")]
)
def test_a_worker_that_is_not_forked_yet_is_not_forked_at_all(action: Action) -> None:
    assert Run(pending=True)(action) == [("spawner.renounce", WORKER)]


def test_a_worker_is_killed_for_a_reason() -> None:
    assert Run()(Kill(WORKER, Signal.ABORT, "it hangs")) == [
        ("spawner.renounce", WORKER),
        ("workers.kill", WORKER, Signal.ABORT, "it hangs"),
    ]


def test_a_slot_that_closes_leaves_the_descriptor_store_and_is_logged() -> None:
    run = Run()
    assert run(CloseSlot(SLOT)) == [
        ("escrow.close_slot", SLOT),
        ("escrow.holdings",),
        ("service_manager.keep", {"name": 3}),
    ]
    assert run.parts.log.records == [("info", "worker retired", {"worker": SLOT})]
    run(CloseSlot(DISPATCHER))
    assert len(run.parts.log.records) == 1, "the dispatcher retires with the daemon only"


def test_gates_are_shut_and_the_title_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    titles: list[tuple[object, ...]] = []
    monkeypatch.setattr(module, "title_master", lambda *given: titles.append(given))
    assert Run()(GateAll()) == [("escrow.gate",)]
    assert titles == [("inherit", ["127.0.0.1:7"], "stopping")]


def test_a_start_that_is_done_is_told_to_the_shell_that_waits() -> None:
    run = Run()
    before = run.runner.started
    assert run(Started()) == [("readiness.ready",)]
    assert not before
    assert run.runner.started
    [(level, event, fields)] = run.parts.log.records
    assert (level, event) == ("info", "ready")
    assert fields == {"addresses": ["127.0.0.1:7"], "mode": "inherit", "workers": 2}


def test_the_end_is_left_to_the_loop() -> None:
    run = Run()
    assert run.runner.exit is None
    assert run(Exit(70, "why")) == []
    assert run.runner.exit == Exit(70, "why")


def test_the_supervisors_records_are_logged_as_they_are() -> None:
    run = Run()
    run(Say("warning", "it happened", (("worker", 3),)))
    assert run.parts.log.records == [("warning", "it happened", {"worker": 3})]
