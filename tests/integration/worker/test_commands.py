"""What a worker does at the master's messages, at TERM, and when the master is gone."""

import errno
import os
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from greeterd.sockets.fd_passing import HandoffPair, waiting
from greeterd.supervisor.ids import DrainMode, SlotIndex
from greeterd.worker import commands, counters
from greeterd.worker.messages import (
    ClosedMessage,
    DrainMessage,
    GoMessage,
    LeavingMessage,
    LendMessage,
    RefusedMessage,
    ReopenedMessage,
    ReopenMessage,
    ReturnedMessage,
    RoutedMessage,
    RouteMessage,
    TakeBackMessage,
)
from tests.integration.worker.conftest import StartLoop
from tests.integration.worker.loops import INTERVAL, Clock, FullEpoll


@pytest.fixture
def gated(monkeypatch: pytest.MonkeyPatch) -> list[socket.socket]:
    """Return the listeners that were gated."""
    found: list[socket.socket] = []
    monkeypatch.setattr(commands, "gate_syn", found.append)
    return found


@pytest.fixture
def lent() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setblocking(False)
        yield listener


# TERM


def test_term_makes_a_worker_sweep_and_tell_the_master(start_loop: StartLoop) -> None:
    worker = start_loop()
    worker.signals.send(signal.SIGTERM)
    worker.turn()
    assert worker.heard() == [LeavingMessage()]
    assert worker.loop._drainer.mode is DrainMode.SWEEP
    assert not worker.loop._drainer._to_the_end
    worker.signals.send(signal.SIGTERM)
    worker.turn()
    assert worker.heard() == [], "once"


def test_term_changes_nothing_for_a_worker_that_drains(start_loop: StartLoop) -> None:
    worker = start_loop()
    worker.send(DrainMessage(DrainMode.QUICK.value))
    worker.turn()
    worker.signals.send(signal.SIGTERM)
    worker.turn()
    assert worker.loop._drainer.mode is DrainMode.QUICK
    assert worker.heard() == []


def test_another_signal_means_nothing(start_loop: StartLoop) -> None:
    worker = start_loop()
    worker.signals.send(signal.SIGINT)
    worker.turn()
    assert worker.loop._drainer.mode is None
    worker.signals.send(signal.SIGTERM)
    worker.turn()
    assert worker.loop._drainer.mode is DrainMode.SWEEP


# The master's death


def test_a_worker_whose_master_is_gone_gates_its_listeners_and_sweeps(
    start_loop: StartLoop, gated: list[socket.socket]
) -> None:
    worker = start_loop(listeners=2)
    worker.channel.close()
    worker.turn()
    assert worker.events() == ["the master is gone, draining"]
    assert worker.records.entries[0]["log_level"] == "error"
    assert [sock.fileno() for sock in gated] == list(worker.loop._acceptor.sources)
    assert worker.loop._drainer.mode is DrainMode.SWEEP
    assert worker.loop._drainer._to_the_end
    assert worker.loop._epoll.poll(0) == [], "the channel is at its end, and not reported for ever"
    worker.turn(2)
    assert len(worker.events()) == 1


@pytest.mark.parametrize("kind", ["passed", "unix"])
def test_a_socket_that_others_serve_next_is_not_gated(
    start_loop: StartLoop, gated: list[socket.socket], kind: str
) -> None:
    worker = start_loop(listeners=kind == "passed", context={"passed": kind == "passed"})
    with socket.socket(socket.AF_UNIX) as listener:
        if kind == "unix":
            listener.bind(str(worker.directory / "socket"))
            listener.listen()
            listener.setblocking(False)
            worker.loop._acceptor.add(listener.dup())
        worker.channel.close()
        worker.turn()
    assert gated == []
    assert worker.loop._drainer.mode is DrainMode.SWEEP


def test_a_master_that_dies_later_changes_nothing_for_a_worker_that_drains(
    start_loop: StartLoop, gated: list[socket.socket]
) -> None:
    worker = start_loop()
    worker.send(DrainMessage(DrainMode.SWEEP.value, settled=False))
    worker.turn()
    worker.channel.close()
    worker.turn(2)
    assert (worker.events(), gated) == ([], [])


@pytest.mark.parametrize("draining", [False, True])
def test_an_orphan_leaves_quickly_when_a_master_would_have_ended_it(
    start_loop: StartLoop, gated: list[socket.socket], clock: Clock, *, draining: bool
) -> None:
    worker = start_loop(graceful_timeout=7.0, client_timeout=60.0)
    client = worker.connect()
    worker.turn()
    if draining:
        worker.send(DrainMessage(DrainMode.HAND_OVER.value))
        worker.turn()
    assert len(gated) == 0
    worker.channel.close()
    worker.turn()
    clock.now += 6.99
    worker.turn(2)
    assert worker.row[counters.RESET] == 0
    clock.now += INTERVAL
    worker.turn(2)
    assert worker.loop._drainer.mode is DrainMode.QUICK
    assert worker.counted()["reset"] == 1
    with pytest.raises(ConnectionResetError):
        client.recv(1)
    assert worker.loop._drained


def test_an_orphan_has_exactly_the_masters_patience(
    start_loop: StartLoop, gated: list[socket.socket], clock: Clock
) -> None:
    worker = start_loop(graceful_timeout=7.0)
    worker.loop._commands.hurry_orphan(clock.now + 1e6)
    assert worker.loop._drainer.mode is None, "it is no orphan"
    worker.channel.close()
    worker.turn()
    assert len(gated) == 1
    worker.loop._commands.hurry_orphan(clock.now + 7.0)
    assert worker.loop._drainer.mode is DrainMode.QUICK


def test_what_was_sent_before_the_masters_death_is_read(start_loop: StartLoop) -> None:
    worker = start_loop()
    worker.send(DrainMessage(DrainMode.QUICK.value))
    worker.channel.close()
    worker.turn()
    assert worker.loop._drainer.mode is DrainMode.QUICK
    assert worker.events() == []


# Draining


def test_who_hands_over_closes_its_listeners_and_says_so(start_loop: StartLoop) -> None:
    worker = start_loop(client_timeout=60.0)
    client = worker.connect()
    worker.turn()
    worker.send(DrainMessage(DrainMode.HAND_OVER.value))
    worker.turn()
    assert worker.heard() == [ClosedMessage()]
    assert worker.loop._acceptor.sources == {}
    assert not worker.loop._drained
    client.sendall(b"Alice")
    client.shutdown(socket.SHUT_WR)
    worker.turn_until(lambda: worker.loop._drained)
    assert worker.greeted() == ["Alice"]


@pytest.mark.parametrize("mode", [DrainMode.SWEEP, DrainMode.QUICK])
def test_only_who_hands_over_says_that_it_has_closed(
    start_loop: StartLoop, mode: DrainMode
) -> None:
    worker = start_loop()
    worker.send(DrainMessage(mode.value))
    worker.turn()
    assert worker.heard() == []


def test_a_worker_sweeps_at_the_masters_word(start_loop: StartLoop) -> None:
    worker = start_loop()
    worker.send(DrainMessage(DrainMode.SWEEP.value, settled=False))
    worker.turn(2)
    worker.say(b"Alice")
    worker.turn()
    assert worker.loop._acceptor.sources, "it waits for handshakes, and accepts meanwhile"
    worker.loop._acceptor.watch(on=False)
    worker.say(b"Bob")
    worker.send(DrainMessage(DrainMode.SWEEP.value, settled=True))
    worker.turn()
    assert worker.greeted() == ["Alice", "Bob"]
    assert worker.loop._drained


def test_the_word_for_a_sweep_means_nothing_to_who_drains_otherwise(
    start_loop: StartLoop, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = start_loop()
    settled: list[int] = []
    monkeypatch.setattr(worker.loop._drainer, "settle", lambda: settled.append(1))
    worker.send(DrainMessage(DrainMode.SWEEP.value, settled=True))
    worker.turn()
    assert (worker.loop._drainer.mode, settled) == (None, [])


# Logs


def test_logs_are_reopened_at_the_masters_word(start_loop: StartLoop) -> None:
    worker = start_loop()
    worker.say(b"Alice")
    worker.turn()
    (worker.directory / "worker-1.log").rename(worker.directory / "moved")
    worker.send(ReopenMessage())
    worker.turn()
    assert worker.heard() == [ReopenedMessage("")]
    assert worker.daemon_log.reopened == 1
    assert worker.greeted() == []
    assert worker.events() == []


def test_why_logs_cannot_be_reopened_is_told(start_loop: StartLoop) -> None:
    worker = start_loop()
    worker.turn()
    worker.daemon_log.error = OSError(errno.EACCES, "no", "/daemon.log")
    path = worker.directory / "worker-1.log"
    path.unlink()
    path.mkdir()
    worker.send(ReopenMessage())
    worker.turn()
    [answer] = worker.heard()
    assert isinstance(answer, ReopenedMessage)
    reasons = answer.reason.split("; ")
    assert "/daemon.log" in reasons[0]
    assert str(path) in reasons[1]
    assert [entry["reason"] for entry in worker.records.entries] == reasons
    assert set(worker.events()) == {"cannot reopen a log"}


# Loans


def test_a_lent_listener_is_served_until_it_is_taken_back(
    start_loop: StartLoop, lent: socket.socket, clock: Clock
) -> None:
    worker = start_loop(drain_grace=3.0)
    worker.send(LendMessage(2), [lent.fileno()])
    worker.turn()
    assert len(worker.loop._acceptor.lent_from(2)) == 1
    worker.send(TakeBackMessage(2))
    worker.turn()
    clock.now += 2.99
    worker.turn(2)
    assert worker.heard() == []
    clock.now += 0.01 + 1e-9
    worker.turn(2)
    assert worker.heard() == [ReturnedMessage(2)]
    assert len(worker.loop._acceptor.sources) == 1


def test_a_loan_is_taken_whole_or_not_at_all(start_loop: StartLoop, lent: socket.socket) -> None:
    worker = start_loop()
    before = open_files()
    with Path(os.devnull).open("rb") as none:
        worker.send(LendMessage(2), [lent.fileno(), none.fileno(), lent.fileno()])
        worker.turn()
    [answer] = worker.heard()
    assert isinstance(answer, RefusedMessage)
    assert answer == RefusedMessage(2, os.strerror(errno.ENOTSOCK))
    assert worker.loop._acceptor.lent_from(2) == []
    assert open_files() == before


def open_files() -> set[str]:
    """Return the descriptors of this process."""
    return {path.name for path in Path("/proc/self/fd").iterdir()}


# Routes


def test_a_dispatcher_hands_on_by_a_route_that_it_is_sent(start_loop: StartLoop) -> None:
    worker = start_loop(routes={})
    pair = HandoffPair.make()
    row = os.memfd_create("row")
    os.ftruncate(row, 4096)
    os.pwrite(row, (1).to_bytes(8, "little"), counters.BLOCKED * 8)
    worker.send(RouteMessage(3), [*pair.fds, row])
    worker.turn()
    assert worker.heard() == [RoutedMessage(3)]
    assert worker.loop._dispatcher is not None
    assert worker.loop._dispatcher._routes[3].paused, "its row can be read"
    os.close(row)
    worker.say(b"Alice")
    worker.turn()
    assert waiting(pair.exit) == 1
    pair.close()


def test_a_route_of_an_older_worker_has_no_row(start_loop: StartLoop) -> None:
    worker = start_loop(routes={})
    pair = HandoffPair.make()
    worker.send(RouteMessage(3), [*pair.fds])
    worker.turn()
    assert worker.heard() == [RoutedMessage(3)]
    assert worker.loop._dispatcher is not None
    assert worker.loop._dispatcher._routes[3].row is None
    pair.close()


def test_why_a_route_cannot_be_taken_is_told(start_loop: StartLoop) -> None:
    worker = start_loop(routes={})
    assert worker.loop._dispatcher is not None
    worker.loop._dispatcher._epoll = FullEpoll()  # type: ignore[assignment]
    before = open_files()
    pair = HandoffPair.make()
    worker.send(RouteMessage(3), [*pair.fds])
    pair.close()
    worker.turn()
    assert worker.heard() == [RoutedMessage(3, os.strerror(errno.ENOSPC))]
    assert open_files() == before
    assert worker.loop._dispatcher._slots == {}


# Mistakes


@pytest.mark.parametrize("message", [GoMessage(), RouteMessage(1)])
def test_a_message_that_is_not_for_this_worker_is_logged_and_its_descriptors_closed(
    start_loop: StartLoop, message: GoMessage | RouteMessage
) -> None:
    worker = start_loop()
    before = open_files()
    pair = HandoffPair.make()
    worker.send(message, [*pair.fds])
    pair.close()
    worker.turn()
    [record] = worker.records.entries
    assert (record["event"], record["log_level"]) == ("unexpected message", "error")
    assert record["message"] == type(message).__name__
    assert open_files() == before


def test_a_message_that_cannot_be_sent_is_logged(
    start_loop: StartLoop, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = start_loop()
    monkeypatch.setattr(type(worker.context.channel), "send", lambda *_: "no buffers")
    worker.context.send(ClosedMessage())
    [record] = worker.records.entries
    assert record["event"] == "the master does not listen"
    assert (record["message"], record["reason"]) == ("ClosedMessage", "no buffers")


def test_a_descriptor_that_is_none_of_its_own_is_ignored(start_loop: StartLoop) -> None:
    worker = start_loop()
    worker.loop._commands.on_readable(worker.loop._epoll.fileno())
    assert worker.events() == []
    worker.channel.close()
    worker.turn()
    worker.loop._commands.on_readable(worker.context.channel.fileno())
    assert worker.events() == ["the master is gone, draining"]


def test_a_route_to_the_first_slot(start_loop: StartLoop) -> None:
    pair = HandoffPair.make()
    worker = start_loop(routes={SlotIndex(1): pair})
    assert worker.loop._dispatcher is not None
    assert list(worker.loop._dispatcher._routes) == [1]
