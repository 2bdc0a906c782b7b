"""A worker's loop: turns, bursts, pauses, upkeep, with real sockets and a real log."""

import errno
import os
import select
import socket
from pathlib import Path

import pytest

from greeterd.sockets.fd_passing import HandoffPair, hand_over
from greeterd.sockets.listener import set_blocking_accept
from greeterd.supervisor.ids import DrainMode, SlotIndex
from greeterd.worker import counters, loop
from greeterd.worker.loop import BURST, RETRY_AFTER
from greeterd.worker.messages import DrainMessage, ExitMessage, LendMessage
from tests.integration.worker.conftest import StartLoop
from tests.integration.worker.loops import INTERVAL, Clock, LoopInTest, largest_file


def pausing(worker: LoopInTest) -> tuple[int, int]:
    """Return why the worker accepts nothing, and how often it has begun to pause."""
    return worker.row[counters.BLOCKED], worker.row[counters.ACCEPTS_PAUSED]


def refuse(worker: LoopInTest, number: int) -> None:
    """Let accept(2) on the worker's listener fail."""

    def accept() -> tuple[int, object]:
        raise OSError(number, os.strerror(number))

    [source] = worker.loop._acceptor.sources.values()
    source.accept = accept


def opens_gates(worker: LoopInTest) -> bool:
    """Tell whether the worker opens the gate of each connection."""
    assert worker.loop._connections is not None
    return worker.loop._connections._gated


# A turn


def test_a_turn_writes_what_it_has_accepted_and_closes_it(
    start_loop: StartLoop, clock: Clock
) -> None:
    worker = start_loop()
    clients = [worker.say(name) for name in (b"Alice", b"Bob", b"")]
    worker.turn()
    assert sorted(worker.greeted()) == ["Alice", "Bob"]
    assert worker.counted() == {"connections": 3, "greetings": 2, "empty": 1}
    assert [client.recv(1) for client in clients] == [b"", b"", b""]
    assert worker.row[counters.TURNS] == worker.row[counters.WAKEUPS] == 1
    assert worker.row[counters.HEARTBEAT_NS] == int(clock.now * 1e9)


def test_a_burst_is_limited_and_the_rest_comes_with_the_next_turn(start_loop: StartLoop) -> None:
    worker = start_loop()
    for number in range(65):
        worker.say(b"%d" % number)
    worker.turn()
    assert len(worker.greeted()) == 64
    worker.turn()
    assert len(worker.greeted()) == 65


def test_others_may_run_before_a_burst_unless_the_last_one_was_full(
    start_loop: StartLoop, monkeypatch: pytest.MonkeyPatch
) -> None:
    yielded: list[int] = []
    monkeypatch.setattr(os, "sched_yield", lambda: yielded.append(1))
    worker = start_loop()
    found = []
    for count in (BURST, 1, 1):
        for _ in range(count):
            worker.say(b"x")
        worker.turn()
        found.append(len(yielded))
    assert found == [1, 1, 2]


def test_a_wakeup_for_nothing_is_counted_as_wasted(start_loop: StartLoop) -> None:
    worker = start_loop(listeners=2)
    worker.say(b"Alice")
    worker.loop._accept(list(worker.loop._acceptor.sources))
    assert worker.row[counters.WAKEUPS] == 2
    assert worker.row[counters.WASTED_WAKEUPS] == 1


def test_a_listener_that_was_closed_meanwhile_is_no_wakeup(start_loop: StartLoop) -> None:
    worker = start_loop()
    [fd] = worker.loop._acceptor.sources
    worker.loop._acceptor.close([fd])
    worker.loop._accept([fd])
    assert worker.row[counters.WAKEUPS] == 0


def test_a_command_is_handled_after_what_the_worker_was_woken_for(start_loop: StartLoop) -> None:
    worker = start_loop()
    worker.say(b"Alice")
    worker.send(DrainMessage(DrainMode.HAND_OVER.value))
    worker.turn()
    assert worker.greeted() == ["Alice"]
    assert not worker.loop._acceptor.sources


def test_a_turn_without_events_ends_with_its_interval(start_loop: StartLoop, clock: Clock) -> None:
    worker = start_loop()
    worker.turn()
    assert worker.loop._next_upkeep == clock.now + INTERVAL
    waited: list[float] = []

    class Epoll:
        """Notes how long it is to wait."""

        def poll(self, timeout: float) -> list[tuple[int, int]]:
            """Report nothing."""
            waited.append(timeout)
            return []

    real, worker.loop._epoll = worker.loop._epoll, Epoll()  # type: ignore[assignment]
    for passed in (0.0, INTERVAL / 2, 0.0, INTERVAL, 0.0):
        clock.now += passed
        worker.turn()
    worker.loop._epoll = real
    assert waited == pytest.approx([INTERVAL, INTERVAL, INTERVAL / 2, INTERVAL / 2, INTERVAL])
    # As of the clock of the turn before.


@pytest.mark.parametrize(
    ("settings", "interval"),
    [
        ({"worker_timeout": 60.0, "client_timeout": 60.0}, 1.0),
        ({"worker_timeout": 60.0, "client_timeout": 0.5}, 0.5),
        ({"worker_timeout": 2.0, "client_timeout": 60.0}, 0.5),
    ],
)
def test_the_interval_keeps_heartbeat_and_timeouts(
    start_loop: StartLoop, clock: Clock, settings: dict[str, float], interval: float
) -> None:
    worker = start_loop(**settings)
    worker.turn()
    assert worker.loop._next_upkeep == clock.now + interval


# Room


def test_a_worker_without_room_pauses_until_there_is_some(
    start_loop: StartLoop, clock: Clock
) -> None:
    worker = start_loop(max_connections=2, client_timeout=60.0)
    silent = [worker.connect() for _ in range(3)]
    worker.turn()
    assert worker.row[counters.CONNECTIONS] == worker.row[counters.OPEN] == 2
    assert pausing(worker) == (counters.BLOCKED_BY_LIMIT, 1)
    clock.now += RETRY_AFTER / 2
    worker.turn(2)
    assert worker.row[counters.CONNECTIONS] == 2
    clock.now += RETRY_AFTER / 2  # exactly when it is due
    worker.turn(2)
    assert pausing(worker) == (counters.BLOCKED_BY_LIMIT, 1), "there is no room yet"
    for client in silent[:2]:
        client.shutdown(socket.SHUT_WR)
    worker.turn_until(lambda: worker.row[counters.EMPTY] == 2)
    assert worker.row[counters.CONNECTIONS] == 2
    clock.now += RETRY_AFTER
    worker.turn(2)
    assert worker.row[counters.CONNECTIONS] == 3
    assert pausing(worker) == (counters.NOT_BLOCKED, 1)


def test_a_pause_is_shorter_than_a_turn_without_events(start_loop: StartLoop, clock: Clock) -> None:
    worker = start_loop(max_connections=1, client_timeout=60.0, worker_timeout=60.0)
    worker.turn()
    worker.connect()
    worker.turn()
    assert pausing(worker) == (counters.BLOCKED_BY_LIMIT, 1)
    assert worker.loop._next_upkeep == clock.now + RETRY_AFTER


def test_room_that_one_listener_has_taken_is_freed_for_the_next(start_loop: StartLoop) -> None:
    worker = start_loop(listeners=2, max_connections=1)
    worker.say(b"Alice", 0)
    worker.say(b"Bob", 1)
    worker.turn()
    assert sorted(worker.greeted()) == ["Alice", "Bob"]
    assert pausing(worker) == (counters.NOT_BLOCKED, 0)


def test_a_paused_worker_takes_nothing_from_any_listener(start_loop: StartLoop) -> None:
    worker = start_loop(listeners=2, max_connections=1)
    silent = [worker.connect(listener) for listener in (0, 1)]
    worker.turn()
    assert worker.row[counters.CONNECTIONS] == 1
    assert pausing(worker) == (counters.BLOCKED_BY_LIMIT, 1)
    assert len(silent) == 2
    with select.epoll() as poll:
        for fd in worker.loop._acceptor.sources:
            poll.register(fd, select.EPOLLIN)
        assert len(poll.poll(0)) == 1, "the other client waits in its queue"


def test_a_connection_that_is_handed_over_finds_a_descriptor(
    start_loop: StartLoop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "spare_files", lambda: 16 + 5)
    pair = HandoffPair.make()
    assert start_loop(max_connections=100, listeners=1).loop._handler.room == 100
    worker = start_loop(max_connections=100, listeners=0, exits=[pair.exit.dup()])
    assert worker.loop._handler.room == 5
    worker = start_loop(max_connections=100, listeners=1, exits=[pair.exit.dup()])
    assert worker.loop._handler.room == 5, "though a listener loses nothing"
    worker = start_loop(max_connections=3, listeners=1, exits=[pair.exit.dup()])
    assert worker.loop._handler.room == 3
    monkeypatch.setattr(loop, "spare_files", lambda: 0)
    worker = start_loop(max_connections=3, listeners=0, exits=[pair.exit.dup()])
    assert worker.loop._handler.room == 1
    pair.close()


# Trouble


def test_a_log_that_cannot_be_written_holds_all_back_and_accepts_no_more(
    start_loop: StartLoop, clock: Clock
) -> None:
    worker = start_loop(reply=True)
    worker.turn()
    client = worker.say(b"Alice")
    with largest_file(0):
        worker.turn()
        assert pausing(worker) == (counters.BLOCKED_BY_LOG, 1)
        assert worker.row[counters.LOG_ERRORS] == 1
        assert worker.row[counters.LOG_ERRNO] == errno.EFBIG
        assert worker.row[counters.OPEN] == 1
        assert worker.row[counters.GREETINGS] == worker.row[counters.REPLIES] == 0
        [record] = worker.records.entries
        assert (record["event"], record["log_level"]) == ("cannot write greetings", "warning")
        assert record["path"] == str(worker.directory / "worker-1.log")
        assert record["reason"] == os.strerror(errno.EFBIG)
        worker.say(b"Bob")
        clock.now += RETRY_AFTER
        worker.turn(2)
        assert worker.row[counters.CONNECTIONS] == 1
        assert pausing(worker) == (counters.BLOCKED_BY_LOG, 1)
        assert len(worker.records.entries) == 1, "a warning is not repeated within a second"
        assert select.select([client], [], [], 0)[0] == [], "no reply without a line"
    clock.now += RETRY_AFTER
    worker.turn(2)
    assert worker.greeted() == ["Alice", "Bob"]
    assert client.recv(100) == b"Hello, Alice\n"
    assert worker.events() == ["cannot write greetings", "greetings are written again"]
    assert pausing(worker) == (counters.NOT_BLOCKED, 1)
    assert worker.row[counters.LOG_ERRNO] == 0
    assert worker.row[counters.GREETINGS] == 2


def test_without_descriptors_a_worker_waits_and_tries_again(
    start_loop: StartLoop, clock: Clock
) -> None:
    worker = start_loop()
    [source] = worker.loop._acceptor.sources.values()
    accept = source.accept
    refuse(worker, errno.EMFILE)
    worker.say(b"Alice")
    worker.turn()
    assert pausing(worker) == (counters.BLOCKED_BY_DESCRIPTORS, 1)
    assert worker.row[counters.ACCEPT_ERRORS] == 1
    [record] = worker.records.entries
    assert (record["event"], record["reason"]) == ("cannot accept", os.strerror(errno.EMFILE))
    source.accept = accept
    clock.now += RETRY_AFTER
    worker.turn(2)
    assert worker.greeted() == ["Alice"]
    assert worker.events() == ["cannot accept"], "only of the log it is said that it is well again"


def test_an_error_of_one_connection_stops_nothing(start_loop: StartLoop) -> None:
    worker = start_loop()
    [source] = worker.loop._acceptor.sources.values()
    accept = source.accept
    refuse(worker, errno.ECONNABORTED)
    worker.say(b"Alice")
    worker.turn()
    assert pausing(worker) == (counters.NOT_BLOCKED, 0)
    source.accept = accept
    worker.turn()
    assert worker.greeted() == ["Alice"]


@pytest.mark.parametrize("number", [errno.EINVAL, errno.EBADF])
def test_a_socket_that_is_no_listener_any_more_is_closed(
    start_loop: StartLoop, number: int
) -> None:
    worker = start_loop()
    refuse(worker, number)
    worker.say(b"Alice")
    worker.turn()
    assert worker.loop._acceptor.sources == {}
    assert pausing(worker) == (counters.NOT_BLOCKED, 0)


def test_the_end_of_a_pair_is_no_error(start_loop: StartLoop) -> None:
    pair = HandoffPair.make()
    worker = start_loop(listeners=1, exits=[pair.exit.dup()])
    client = worker.say(b"Alice")
    fd, _ = worker.listeners[0].accept()
    hand_over(pair.entry, fd.fileno(), "127.0.0.1:1")
    fd.close()
    pair.close_entry()
    worker.turn(2)
    assert worker.greeted() == ["Alice"]
    assert client.recv(1) == b""
    assert len(worker.loop._acceptor.sources) == 1
    assert worker.row[counters.ACCEPT_ERRORS] == 0
    pair.close()


# Lent listeners and gates


def test_what_is_accepted_from_a_lent_listener_is_counted_as_rescued(
    start_loop: StartLoop,
) -> None:
    worker = start_loop()
    with socket.create_server(("127.0.0.1", 0)) as lent:
        lent.setblocking(False)
        worker.send(LendMessage(2), [lent.fileno()])
        worker.turn()
        with socket.create_connection(lent.getsockname()) as client:
            client.sendall(b"Alice")
            client.shutdown(socket.SHUT_WR)
            worker.say(b"Bob")
            worker.turn_until(lambda: worker.row[counters.GREETINGS] == 2)
    assert worker.row[counters.RESCUED] == 1


def test_gates_are_opened_until_every_queue_was_found_empty(start_loop: StartLoop) -> None:
    worker = start_loop(listeners=2, context={"gated": True}, max_connections=4)
    assert opens_gates(worker)
    worker.say(b"Alice", 0)
    worker.turn()
    assert opens_gates(worker), "the other queue may hold such connections"
    refuse_on = list(worker.loop._acceptor.sources.values())[1]
    accept, refuse_on.accept = refuse_on.accept, no_buffers
    worker.say(b"Bob", 1)
    worker.turn()
    assert opens_gates(worker), "an error says nothing of the queue"
    refuse_on.accept = accept
    worker.loop._resume()
    worker.turn()
    assert not opens_gates(worker)
    assert sorted(worker.greeted()) == ["Alice", "Bob"]


def no_buffers() -> tuple[int, object]:
    raise OSError(errno.ENOBUFS, "no buffers")


@pytest.mark.parametrize("limit", [1, 2])
def test_a_full_burst_says_nothing_of_the_queue(start_loop: StartLoop, limit: int) -> None:
    worker = start_loop(context={"gated": True})
    worker.loop._burst_limit = limit
    worker.say(b"Alice")
    worker.turn()
    assert opens_gates(worker) is (limit == 1)


def test_a_full_worker_does_not_take_its_queue_for_empty(start_loop: StartLoop) -> None:
    worker = start_loop(context={"gated": True}, max_connections=1)
    silent = worker.connect()
    worker.turn()
    assert silent.fileno() >= 0
    assert opens_gates(worker)


def test_a_draining_worker_goes_on_opening_gates(start_loop: StartLoop) -> None:
    worker = start_loop(context={"gated": True})
    worker.loop._drainer.mode = DrainMode.SWEEP
    worker.say(b"Alice")
    worker.turn()
    assert opens_gates(worker)


def test_without_a_gate_none_is_opened(start_loop: StartLoop) -> None:
    worker = start_loop()
    assert not opens_gates(worker)
    assert worker.loop._gated == set()


# Upkeep


def test_a_silent_client_is_closed_when_its_time_is_up(start_loop: StartLoop, clock: Clock) -> None:
    worker = start_loop(client_timeout=5.0)
    client = worker.connect()
    worker.turn()
    clock.now += 4.99
    worker.turn(2)
    assert worker.row[counters.TIMEOUT] == 0
    assert worker.loop._next_upkeep == pytest.approx(clock.now + 0.01)
    clock.now += 0.01
    worker.turn(2)
    assert worker.counted() == {"connections": 1, "timeout": 1}
    assert client.recv(1) == b""


def test_logs_are_looked_after_once_a_second(start_loop: StartLoop, clock: Clock) -> None:
    worker = start_loop()
    worker.turn()
    assert worker.daemon_log.looked_at == 1
    clock.now += 1.0 - INTERVAL
    worker.turn(2)
    assert worker.daemon_log.looked_at == 1
    clock.now += INTERVAL
    worker.turn(2)
    assert worker.daemon_log.looked_at == 2


def test_a_log_without_a_name_stops_an_idle_worker(
    start_loop: StartLoop, clock: Clock, tmp_path: Path
) -> None:
    worker = start_loop()
    worker.turn()
    (tmp_path / "worker-1.log").unlink()
    (tmp_path / "worker-1.log").mkdir()
    clock.now += 1.0
    worker.turn(2)
    assert pausing(worker) == (counters.BLOCKED_BY_LOG, 1)
    assert worker.events() == ["cannot write greetings"]
    worker.say(b"Alice")
    clock.now += RETRY_AFTER
    worker.turn(2)
    assert worker.row[counters.CONNECTIONS] == 0
    (tmp_path / "worker-1.log").rmdir()
    clock.now += 1.0
    worker.turn(3)
    assert worker.greeted() == ["Alice"]
    assert pausing(worker) == (counters.NOT_BLOCKED, 1)


def test_a_draining_worker_is_not_stopped_by_a_log_that_it_has_nothing_for(
    start_loop: StartLoop, clock: Clock, tmp_path: Path
) -> None:
    worker = start_loop()
    worker.turn()
    (tmp_path / "worker-1.log").unlink()
    (tmp_path / "worker-1.log").mkdir()
    worker.send(DrainMessage(DrainMode.SWEEP.value, settled=False))
    worker.turn()
    clock.now += 1.0
    worker.turn(2)
    assert pausing(worker) == (counters.NOT_BLOCKED, 0)


def test_a_connection_that_no_worker_was_woken_for_is_taken_at_the_next_check(
    start_loop: StartLoop, clock: Clock
) -> None:
    worker = start_loop(wait="exclusive")
    worker.turn()
    [fd] = worker.loop._acceptor.sources
    worker.loop._epoll.unregister(fd)
    worker.loop._epoll.register(fd, 0)  # it is never reported
    worker.say(b"Alice")
    worker.turn(2)
    assert worker.row[counters.CONNECTIONS] == 0
    clock.now += 1.0
    worker.turn()
    assert worker.greeted() == ["Alice"]


# Blocking accept


def test_a_blocking_worker_waits_in_accept_while_it_has_nothing_else(
    start_loop: StartLoop,
) -> None:
    worker = start_loop(wait="blocking")
    set_blocking_accept(worker.listeners[0], INTERVAL)
    for name in (b"Alice", b"Bob"):
        worker.say(name)
    worker.turn()
    assert worker.greeted() == ["Alice"], "one at a time, since a second accept could wait"
    assert not worker.loop._acceptor._registered
    worker.turn()
    assert worker.greeted() == ["Alice", "Bob"]
    assert worker.row[counters.WAKEUPS] == 0
    worker.turn()  # accept(2) gives up after its time
    assert worker.row[counters.CONNECTIONS] == 2


def test_a_blocking_worker_waits_by_epoll_while_a_client_is_slow(start_loop: StartLoop) -> None:
    worker = start_loop(wait="blocking", client_timeout=60.0)
    set_blocking_accept(worker.listeners[0], INTERVAL)
    slow = worker.connect()
    worker.turn()
    slow.sendall(b"Alice")
    worker.say(b"Bob")
    worker.say(b"Carol")
    worker.turn()
    assert worker.loop._acceptor._registered
    assert worker.row[counters.WAKEUPS] == 1
    assert worker.greeted() == ["Bob"], "a second accept could wait"
    worker.turn()
    assert worker.greeted() == ["Bob", "Carol"]
    slow.shutdown(socket.SHUT_WR)
    worker.turn_until(lambda: worker.row[counters.GREETINGS] == 3)
    worker.turn()
    assert not worker.loop._acceptor._registered


@pytest.mark.parametrize("settings", [{"listeners": 2}, {"wait": "epoll"}])
def test_only_the_one_listener_of_a_blocking_worker_is_waited_for_in_accept(
    start_loop: StartLoop, settings: dict[str, object]
) -> None:
    worker = start_loop(**{"wait": "blocking", **settings})
    for sock in worker.listeners:
        set_blocking_accept(sock, INTERVAL)
    worker.turn()
    assert worker.loop._acceptor._registered


@pytest.mark.parametrize("state", ["paused", "draining"])
def test_a_blocking_worker_that_pauses_or_drains_does_not_wait_in_accept(
    start_loop: StartLoop, state: str
) -> None:
    worker = start_loop(wait="blocking")
    set_blocking_accept(worker.listeners[0], INTERVAL)
    if state == "paused":
        worker.loop._pause(counters.BLOCKED_BY_DESCRIPTORS)
    else:
        worker.loop._drainer.mode = DrainMode.SWEEP
    worker.say(b"Alice")
    worker.loop._wait()
    assert worker.row[counters.CONNECTIONS] == 0
    assert worker.loop._acceptor._registered is (state == "draining")


# The dispatcher


def test_a_dispatcher_hands_on_and_logs_nothing(start_loop: StartLoop) -> None:
    pair = HandoffPair.make()
    worker = start_loop(routes={SlotIndex(1): pair})
    worker.say(b"Alice")
    worker.turn()
    assert worker.counted() == {"connections": 1, "handed_over": 1}
    assert worker.events() == []


def test_a_dispatcher_without_routes_pauses_until_it_has_one(
    start_loop: StartLoop, clock: Clock
) -> None:
    worker = start_loop(routes={})
    worker.say(b"Alice")
    worker.turn()
    assert pausing(worker) == (counters.BLOCKED_BY_WORKERS, 1)
    assert worker.row[counters.OPEN] == 1
    clock.now += RETRY_AFTER
    worker.turn(2)
    assert pausing(worker) == (counters.BLOCKED_BY_WORKERS, 1)
    pair = HandoffPair.make()
    assert worker.loop._dispatcher is not None
    worker.loop._dispatcher.add_route(1, pair)
    assert pausing(worker) == (counters.NOT_BLOCKED, 1), "at once"


# The end


def test_a_worker_runs_until_it_is_drained(start_loop: StartLoop, tmp_path: Path) -> None:
    worker = start_loop()
    worker.loop._acceptor.watch(on=False)
    slow = worker.connect()
    worker.loop._watch()
    worker.turn()
    worker.send(DrainMessage(DrainMode.HAND_OVER.value))
    slow.sendall(b"Alice")
    slow.shutdown(socket.SHUT_WR)
    worker.turn()
    (tmp_path / "worker-1.log").rename(tmp_path / "moved")
    before = worker.daemon_log.looked_at
    worker.loop.run()
    assert worker.daemon_log.looked_at == before + 1, "a last time"
    assert worker.events() == ["log reopened"]
    assert worker.greetings is not None
    assert worker.greetings._file.fd == -1


def test_a_worker_that_runs_takes_what_waits_before_it_drains(start_loop: StartLoop) -> None:
    worker = start_loop()
    worker.loop._acceptor.watch(on=False)  # as it is before a worker runs
    worker.say(b"Alice")
    worker.send(DrainMessage(DrainMode.HAND_OVER.value))
    worker.loop.run()
    assert worker.greeted() == ["Alice"]


@pytest.mark.parametrize("left", ["listener", "client", "mode"])
def test_a_worker_is_not_drained_while_anything_is_left(start_loop: StartLoop, left: str) -> None:
    worker = start_loop()
    client = worker.connect()
    worker.turn()
    if left != "client":
        client.close()
        worker.turn_until(lambda: worker.loop._handler.idle)
    if left != "listener":
        worker.loop._acceptor.close(list(worker.loop._acceptor.sources))
    if left != "mode":
        worker.loop._drainer.mode = DrainMode.HAND_OVER
    assert not worker.loop._drained


def test_exits_are_reported_as_often_as_the_master_believes(
    start_loop: StartLoop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "MAX_EXITS", 2)
    worker = start_loop(allow_exit=True)
    for _ in range(3):
        worker.say(b"exit")
    worker.turn()
    assert worker.heard() == [ExitMessage(), ExitMessage()]
    assert worker.row[counters.EXIT] == 3
