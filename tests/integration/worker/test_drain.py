"""A worker that drains: what closes when, with real listeners and a clock that the test moves."""

import socket

import pytest

from greeterd.sockets.fd_passing import HandoffPair, hand_over
from greeterd.supervisor.ids import DrainMode
from greeterd.worker import counters, drain
from greeterd.worker.acceptor import Source
from greeterd.worker.drain import Drainer
from greeterd.worker.handshakes import limit_of
from tests.integration.worker.conftest import StartLoop
from tests.integration.worker.loops import Clock, LoopInTest


class SettlingStub:
    """Stands for the wait for handshakes: over when the test says so."""

    made: "list[SettlingStub]" = []  # noqa: RUF012

    def __init__(self, addresses: object, config: object, now: float) -> None:
        self.arguments = addresses, config, now
        self.due = now + 0.25
        self.is_over = False
        self.asked: list[float] = []
        self.made.append(self)

    def over(self, now: float) -> bool:
        """Tell whether it is."""
        self.asked.append(now)
        return self.is_over


@pytest.fixture
def settlings(monkeypatch: pytest.MonkeyPatch) -> list[SettlingStub]:
    """Return the waits that were begun."""
    monkeypatch.setattr(drain, "Settling", SettlingStub)
    SettlingStub.made = []
    return SettlingStub.made


@pytest.fixture
def titles(monkeypatch: pytest.MonkeyPatch) -> list[tuple[object, ...]]:
    """Return what the process was named."""
    found: list[tuple[object, ...]] = []
    monkeypatch.setattr(drain, "title_worker", lambda *words: found.append(words))
    return found


class Bursts:
    """Stands for the loop's bursts: their results are given, and then one connection each."""

    def __init__(self, worker: LoopInTest, results: list[int | None]) -> None:
        self.count = 0
        self._acceptor = worker.loop._acceptor
        self._results = results
        self.drainer = Drainer(worker.context, self._acceptor, worker.loop._handler, self._take)

    def _take(self, fd: int, source: Source) -> int | None:
        assert self._acceptor.sources[fd] is source
        self.count += 1
        return self._results.pop(0) if self._results else 1

    def sweep(self) -> None:
        """Begin a sweep, and do what is due of it."""
        self.drainer.begin(DrainMode.SWEEP, settled=False)
        self.drainer.settle()
        self.drainer.do_due(1000.0)


# Sweeping


def test_who_sweeps_by_itself_waits_for_handshakes_first(
    start_loop: StartLoop, settlings: list[SettlingStub], clock: Clock
) -> None:
    worker = start_loop()
    drainer = worker.loop._drainer
    drainer.begin(DrainMode.SWEEP)
    [settling] = settlings
    assert settling.arguments == (worker.addresses, worker.config, clock.now)
    assert drainer.deadlines() == [settling.due]
    worker.say(b"Alice")
    drainer.do_due(clock.now + 0.25)
    assert settling.asked == [clock.now + 0.25]
    assert worker.loop._acceptor.sources, "a handshake is in flight"
    assert worker.row[counters.CONNECTIONS] == 0
    settling.is_over = True
    drainer.do_due(clock.now + 0.3)
    assert worker.loop._acceptor.sources == {}
    assert worker.greeted() == ["Alice"]
    assert drainer.deadlines() == []
    drainer.do_due(clock.now + 0.4)
    assert len(settling.asked) == 2


def test_who_sweeps_at_the_masters_word_waits_for_no_handshakes_itself(
    start_loop: StartLoop, settlings: list[SettlingStub], clock: Clock
) -> None:
    worker = start_loop()
    drainer = worker.loop._drainer
    drainer.begin(DrainMode.SWEEP, settled=False)
    assert settlings == []
    last = clock.now + limit_of(worker.config) + 1.0
    assert drainer.deadlines() == [last]
    drainer.do_due(last - 0.001)
    assert worker.loop._acceptor.sources
    drainer.do_due(last)
    assert worker.loop._acceptor.sources == {}, "the word has not come"
    assert drainer.deadlines() == []


def test_the_masters_word_is_for_a_sweep_that_waits(start_loop: StartLoop, clock: Clock) -> None:
    worker = start_loop()
    drainer = worker.loop._drainer
    drainer.settle()
    assert drainer.deadlines() == []
    drainer.begin(DrainMode.SWEEP, settled=False)
    clock.now += 1.0
    drainer.settle()
    assert drainer.deadlines() == [clock.now]
    drainer.do_due(clock.now)
    drainer.settle()
    assert drainer.deadlines() == []


def test_a_later_mode_replaces_the_wait_of_the_former(
    start_loop: StartLoop, settlings: list[SettlingStub]
) -> None:
    worker = start_loop()
    drainer = worker.loop._drainer
    drainer.begin(DrainMode.SWEEP)
    drainer.begin(DrainMode.SWEEP, settled=False)
    assert len(drainer.deadlines()) == 1
    drainer.begin(DrainMode.SWEEP)
    assert drainer.deadlines() == [settlings[1].due]
    drainer.begin(DrainMode.HAND_OVER)
    assert drainer.deadlines() == []


@pytest.mark.parametrize("mode", DrainMode)
def test_a_draining_process_is_named_so(
    start_loop: StartLoop, titles: list[tuple[object, ...]], mode: DrainMode
) -> None:
    worker = start_loop()
    assert worker.loop._drainer.mode is None
    worker.loop._drainer.begin(mode)
    assert titles == [(1, 1, "draining")]
    assert worker.loop._drainer.mode is mode


# The queue


@pytest.mark.parametrize(
    ("results", "count"), [([], 6), ([3], 4), ([0], 6), ([6], 1), ([5], 2), ([7], 1)]
)
def test_a_queue_is_taken_up_to_what_it_can_have_held_when_the_sweep_began(
    start_loop: StartLoop, results: list[int | None], count: int
) -> None:
    """One more than its backlog; a burst that took nothing counts as one."""
    worker = start_loop(backlog=5)
    bursts = Bursts(worker, results)
    worker.connect()  # it stays in the queue, since nothing is accepted
    bursts.sweep()
    assert bursts.count == count
    assert worker.loop._acceptor.sources == {}


def test_an_empty_queue_is_not_accepted_from(start_loop: StartLoop) -> None:
    """A blocking accept would wait for ever."""
    worker = start_loop()
    bursts = Bursts(worker, [])
    bursts.sweep()
    assert bursts.count == 0
    assert worker.loop._acceptor.sources == {}


def test_a_sweep_that_has_to_pause_is_gone_on_with(start_loop: StartLoop) -> None:
    worker = start_loop()
    bursts = Bursts(worker, [1, None])
    worker.connect()
    bursts.sweep()
    assert bursts.count == 2
    assert worker.loop._acceptor.sources
    assert bursts.drainer.deadlines() == [1000.0]


def test_a_listener_that_a_burst_closes_is_swept_no_further(start_loop: StartLoop) -> None:
    worker = start_loop(listeners=2)
    for listener, sock in enumerate(worker.listeners):
        worker.connect(listener)
        sock.shutdown(socket.SHUT_RD)  # it is readable, and accept(2) fails with EINVAL
    worker.loop._drainer.begin(DrainMode.SWEEP, settled=False)
    worker.loop._drainer.settle()
    worker.loop._drainer.do_due(1000.0)
    assert worker.loop._acceptor.sources == {}


# Loans


def test_a_loan_is_given_back_when_its_grace_is_over(start_loop: StartLoop, clock: Clock) -> None:
    worker = start_loop(drain_grace=3.0)
    drainer = worker.loop._drainer
    with socket.create_server(("127.0.0.1", 0)) as lent:
        lent.setblocking(False)
        worker.loop._acceptor.add(lent.dup(), 2)
        drainer.give_back(2)
        assert drainer.deadlines() == [clock.now + 3.0]
        with socket.create_connection(lent.getsockname()) as client:
            client.sendall(b"Alice")
            client.shutdown(socket.SHUT_WR)
            assert drainer.do_due(clock.now + 2.999) == []
            assert drainer.do_due(clock.now + 3.0) == [2]
            assert worker.greeted() == ["Alice"]
    assert worker.row[counters.RESCUED] == 1
    assert drainer.deadlines() == []
    assert len(worker.loop._acceptor.sources) == 1
    assert drainer.do_due(clock.now + 9.0) == []


def test_a_loan_whose_queue_cannot_be_emptied_is_not_given_back(start_loop: StartLoop) -> None:
    worker = start_loop(drain_grace=3.0)
    drainer = Bursts(worker, [None]).drainer
    with socket.create_server(("127.0.0.1", 0)) as lent:
        worker.loop._acceptor.add(lent.dup(), 2)
        drainer.give_back(2)
        with socket.create_connection(lent.getsockname()):
            assert drainer.do_due(1003.0) == []
            assert drainer.deadlines() == [1003.0]
            assert len(worker.loop._acceptor.lent_from(2)) == 1


# Pairs


@pytest.mark.parametrize("to_the_end", [True, False])
def test_what_is_handed_over_is_taken_to_its_end_or_left_to_the_next_worker(
    start_loop: StartLoop, *, to_the_end: bool
) -> None:
    pair = HandoffPair.make()
    worker = start_loop(exits=[pair.exit.dup()])
    drainer = worker.loop._drainer
    drainer.begin(DrainMode.SWEEP, to_the_end=to_the_end, settled=False)
    drainer.settle()
    drainer.do_due(1000.0)
    sources = list(worker.loop._acceptor.sources.values())
    assert [source.ends for source in sources] == ([True] if to_the_end else [])
    pair.close()


@pytest.mark.parametrize("kind", ["listener", "gated", "pair"])
def test_gates_are_opened_where_a_sweep_may_meet_some(
    start_loop: StartLoop, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    pair = HandoffPair.make()
    monkeypatch.setattr(drain, "is_gated_by_ttl", lambda _sock: kind == "gated")
    worker = start_loop(exits=[pair.exit.dup()] if kind == "pair" else [])
    worker.loop._drainer.begin(DrainMode.SWEEP, settled=False)
    assert worker.loop._connections is not None
    assert worker.loop._connections._gated is (kind != "listener")
    pair.close()


@pytest.mark.parametrize("mode", [DrainMode.HAND_OVER, DrainMode.QUICK])
def test_a_listener_that_others_hold_is_left_at_once(
    start_loop: StartLoop, mode: DrainMode
) -> None:
    worker = start_loop(client_timeout=60.0)
    worker.connect()
    worker.turn()
    worker.loop._drainer.begin(mode)
    assert worker.loop._acceptor.sources == {}
    assert worker.loop._handler.idle is (mode is DrainMode.QUICK)
    assert worker.row[counters.RESET] == (mode is DrainMode.QUICK)


def test_a_pair_that_holds_connections_is_emptied_by_a_sweep(start_loop: StartLoop) -> None:
    pair = HandoffPair.make()
    worker = start_loop(exits=[pair.exit.dup()])
    client = worker.say(b"Alice")
    fd, _ = worker.listeners[0].accept()
    hand_over(pair.entry, fd.fileno(), "127.0.0.1:1")
    fd.close()
    worker.loop._drainer.begin(DrainMode.SWEEP, to_the_end=False, settled=False)
    worker.loop._drainer.settle()
    worker.loop._drainer.do_due(1000.0)
    assert worker.greeted() == ["Alice"]
    assert client.recv(1) == b""
    pair.close()
