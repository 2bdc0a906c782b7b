"""A child: what the master makes of its messages, whatever they are, and how it is reaped."""

import errno
import fcntl
import os
import resource
import select
import selectors
import signal
import socket
import sys
import time
from typing import Any, NoReturn

import pytest
import structlog
from hypothesis import given, settings
from hypothesis import strategies as st

from greeterd.master import children
from greeterd.master.children import (
    MAX_STACK_BYTES,
    RECORDS_A_TURN,
    SPARE_FDS,
    Child,
    ChildExit,
    ChildMain,
    any_ended,
    fork,
    reap_strangers,
)
from greeterd.sockets import rights
from greeterd.supervisor.actions import Spawn
from greeterd.supervisor.ids import Generation, SlotIndex
from greeterd.system.signals import MASTER_SIGNALS, SignalPipe
from greeterd.worker.channel import Channel
from greeterd.worker.conversation import Conversation
from greeterd.worker.messages import (
    ExitMessage,
    FailedMessage,
    GoMessage,
    LeavingMessage,
    Message,
    ReadyMessage,
    ReopenedMessage,
    ReopenMessage,
)
from tests.integration.master.parts import WORKER, heard_child, open_fds
from tests.integration.sockets.test_rights import lingering, room_for
from tests.support import until
from tests.unit.worker.test_messages import ENCODED

# What is due


def test_what_is_due_is_heard() -> None:
    with heard_child() as one:
        for message in (ExitMessage(), LeavingMessage()):
            one.channel.send(message)
        one.turn()
        assert (one.heard, one.child.reason) == ([(ExitMessage(), 0), (LeavingMessage(), 0)], "")


def test_an_answer_is_due_once_it_was_asked_for_and_sent() -> None:
    with heard_child() as one:
        assert one.child.send(ReopenMessage()) == ""
        one.channel.send(ReopenedMessage(""))
        one.turn()
        assert (one.heard, one.child.reason) == ([(ReopenedMessage(""), 0)], "")


def test_what_could_not_be_sent_is_told_and_needs_no_answer() -> None:
    with heard_child() as one:
        sent = 0
        while not (reason := one.child.send(ReopenMessage())):
            sent += 1
        assert reason == "Resource temporarily unavailable"
        assert one.child.conversation.credit["reopened"] == sent


def test_listeners_come_with_ready_and_with_nothing_else() -> None:
    with heard_child(listeners=2, ready=False) as one:
        one.channel.send(ReadyMessage(), [0, 0])
        one.turn()
        assert (one.heard, one.child.reason) == ([(ReadyMessage(), 2)], "")
    with heard_child(listeners=2, ready=False) as one:
        one.channel.send(FailedMessage(70, "no"), [0, 0])
        one.turn()
        assert one.child.reason == "protocol error: 'failed' with 2 descriptors"


@pytest.mark.parametrize(
    ("sent", "reason"),
    [
        (1, "protocol error: 'ready' with 1 descriptors"),
        (3, "the master has no descriptors free for its listeners"),
    ],
)
def test_other_listeners_than_are_due_are_none(sent: int, reason: str) -> None:
    with heard_child(listeners=2, ready=False) as one:
        one.channel.send(ReadyMessage(), [0] * sent)
        one.turn()
        assert (one.heard, one.child.reason) == ([], reason)


def test_listeners_that_find_no_descriptor_free_end_the_start_with_71() -> None:
    with heard_child(listeners=2, ready=False) as one:
        one.channel.send(ReadyMessage(), [0, 0])
        with room_for(1):
            one.turn()
        assert one.child.failure == FailedMessage(
            71, "the master has no descriptors free for its listeners"
        )
        assert one.heard == []


# What is not


def test_a_breach_ends_the_worker_once_and_nothing_more_is_read() -> None:
    with heard_child() as one:
        for data in (b"garbage", b'{"type":"leaving"}', b"garbage"):
            rights.send(one.theirs, data)
        one.turn()
        one.turn()
        assert (one.child.killed, one.heard) == ([signal.SIGKILL], [])
        assert one.child.reason == "protocol error: not JSON"
        assert one.child.hung_up is not None


@pytest.mark.parametrize("data", [b'{"type":"leaving"}', b"", b"x" * 100_000])
def test_descriptors_that_nobody_asked_for_are_never_open_here(data: bytes) -> None:
    with heard_child() as one:
        rights.send(one.theirs, data, [0] * rights.MAX_FDS)
        with room_for(0):
            one.turn()
        assert (one.child.reason, one.heard) == ("protocol error: descriptors that are not due", [])


def test_descriptors_that_linger_hold_nobody_up() -> None:
    with heard_child() as one:
        began = time.monotonic()
        for _ in range(3):
            with lingering() as fd:
                rights.send(one.theirs, b'{"type":"leaving"}', [fd])
                os.close(fd)
        one.turn()
        assert one.child.reason == "protocol error: descriptors that are not due"
        assert time.monotonic() - began < 30.0


def test_a_turn_reads_so_many_records_at_most() -> None:
    with heard_child() as one:
        for _ in range(RECORDS_A_TURN + 1):
            one.channel.send(ExitMessage())
        one.turn()
        assert len(one.heard) == RECORDS_A_TURN
        one.turn()
        assert len(one.heard) == RECORDS_A_TURN + 1


@pytest.mark.parametrize("how", ["close", "shutdown", "empty"])
def test_a_channel_that_is_closed_is_noted(how: str) -> None:
    with heard_child() as one:
        assert one.child.hung_up is None
        if how == "close":
            one.theirs.close()
        elif how == "shutdown":
            one.theirs.shutdown(socket.SHUT_WR)
        else:
            one.theirs.send(b"")
        one.turn()
        assert (one.child.hung_up is not None, one.child.reason) == (True, "")
        assert one.child.send(GoMessage()) == "", "it hears nothing, and is not waited for"


Fds = st.lists(st.sampled_from([0, 1, 2]), max_size=4)


@given(
    st.lists(
        st.tuples(st.one_of(st.binary(max_size=50), st.sampled_from(ENCODED)), Fds), max_size=6
    ),
    st.integers(0, 2),
    st.booleans(),
)
@settings(max_examples=300)
def test_no_records_raise_or_leave_anything_behind(
    records: list[tuple[bytes, list[int]]], listeners: int, ready: bool
) -> None:
    with heard_child(listeners=listeners, ready=ready) as one:
        for data, fds in records:
            rights.send(one.theirs, data, fds)
        for _ in range(3):
            one.turn()
        assert len(one.child.killed) <= 1
        assert all(count in {0, listeners} for _, count in one.heard)


@given(st.sampled_from(ENCODED), st.data())
@settings(max_examples=200)
def test_no_mutation_of_a_message_raises(message: bytes, data: st.DataObject) -> None:
    start = data.draw(st.integers(0, len(message)))
    stop = data.draw(st.integers(start, len(message)))
    record = message[:start] + data.draw(st.binary(max_size=8)) + message[stop:]
    with heard_child(listeners=1, ready=data.draw(st.booleans())) as one:
        rights.send(one.theirs, record, data.draw(Fds))
        one.turn()
        one.turn()


# The stack


def test_a_stack_is_read_up_to_its_end() -> None:
    fd = children._open_stack()
    os.write(fd, b"Fatal Python error: Aborted\n\x1b[2J")
    assert children._read_stack(fd) == "Fatal Python error: Aborted\n\\x1b[2J"
    os.close(fd)


def test_a_stack_that_nobody_wrote_is_empty() -> None:
    fd = children._open_stack()
    assert children._read_stack(fd) == ""
    os.close(fd)


def test_the_file_of_a_stack_does_not_grow() -> None:
    fd = children._open_stack()
    with pytest.raises(PermissionError):
        os.ftruncate(fd, 2**45)
    with pytest.raises(PermissionError):
        os.ftruncate(fd, 0)
    with pytest.raises(PermissionError):
        os.pwrite(fd, b"x", MAX_STACK_BYTES)
    os.close(fd)


def test_of_a_file_of_32_tib_little_is_read() -> None:
    fd = os.memfd_create("as of the version before")
    os.ftruncate(fd, 2**45)
    os.pwrite(fd, b"\xff" * 2 * MAX_STACK_BYTES, 0)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert len(children._read_stack(fd)) == MAX_STACK_BYTES
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 8 * 1024
    os.close(fd)


# The process


def forked(main: ChildMain, **given: Any) -> Child:
    """Fork a child that runs `main`, as a worker of slot 1."""
    spawn = Spawn(WORKER, SlotIndex(1), 0, Generation(1))
    given = {"keep": [], "conversation": Conversation(), "log": structlog.get_logger()} | given
    return fork(spawn, main, **given)


def ended(child: Child) -> ChildExit:
    """Wait until a child has ended; return how."""
    found = until(child.reap, what="the child to end")
    assert found is not None
    return found


def test_a_child_is_reaped_once_and_leaves_nothing_open() -> None:
    before = open_fds()
    child = forked(lambda channel, _pipe, _lock: len(channel.send(ExitMessage())))
    found = ended(child)
    assert (found.exitcode, found.reason, found.stack) == (0, "exit status 0", "")
    assert open_fds() == before
    with pytest.raises(ChildProcessError):
        os.waitpid(child.pid, os.WNOHANG)


def test_a_child_that_lives_is_not_reaped_and_is_heard_before_it_is() -> None:
    heard: list[Message] = []
    conversation = Conversation()
    go, stay = os.pipe()

    def main(channel: Channel, _pipe: SignalPipe, _lock: int) -> int:
        os.read(go, 1)
        channel.send(FailedMessage(3, "as it was told"))
        return 3

    with selectors.DefaultSelector() as selector:
        child = forked(main, keep=[go], conversation=conversation)
        child.listen(selector, lambda _child, message, _fds: heard.append(message))
        assert child.reap() is None
        assert not any_ended()
        os.write(stay, b"x")
        found = until(lambda: any_ended() and child.reap(), what="the child to end")
        assert selector.get_map() == {}
    assert isinstance(found, ChildExit)
    assert (found.reason, heard) == ("exit status 3", [FailedMessage(3, "as it was told")])
    for fd in (go, stay):
        os.close(fd)


def test_how_a_child_ended_is_told_in_words() -> None:
    assert ChildExit(-signal.SIGSEGV, "").reason == "killed by SIGSEGV"
    assert ChildExit(-63, "").reason == "killed by signal 63"
    assert ChildExit(9, "").reason == "exit status 9"


def test_a_child_that_is_ended_says_first_why_and_its_stack_last() -> None:
    def hang(channel: Channel, pipe: SignalPipe, _lock: int) -> int:
        channel.send(ExitMessage())
        select.select([pipe], [], [], 60.0)
        return 0

    child = forked(hang)
    until(child.channel.receive, what="the child to run")
    child.kill(signal.SIGABRT)
    found = ended(child)
    assert found.reason == "killed by SIGABRT"
    assert "in hang" in found.stack
    child = forked(hang)
    child.end(71, "no room")
    child.end(70, "it came too late")
    assert ended(child).reason == "killed by SIGKILL"
    assert child.failure == FailedMessage(71, "no room")


def test_an_exception_in_a_child_ends_it_with_70_and_runs_nothing_of_its_parents(
    capfd: pytest.CaptureFixture[str],
) -> None:
    def crash(_channel: Channel, _pipe: SignalPipe, _lock: int) -> int:
        raise SystemExit(0)

    log = structlog.wrap_logger(
        structlog.PrintLogger(sys.__stderr__), processors=[structlog.processors.KeyValueRenderer()]
    )
    assert ended(forked(crash, log=log)).exitcode == 70
    assert "worker crashed" in capfd.readouterr().err


def test_of_the_masters_descriptors_a_child_has_those_that_are_kept() -> None:
    kept, other = os.memfd_create("kept"), os.memfd_create("other")

    def main(channel: Channel, pipe: SignalPipe, lock: int) -> int:
        os.fstat(kept)
        expected = {0, 1, 2, kept, channel.fileno(), lock, *pipe.fds}
        more = {*open_fds()} - expected
        return len(more) if other not in more else 99

    assert ended(forked(main, keep=[kept])).exitcode == 1, "its stack's file"
    for fd in (kept, other):
        os.close(fd)


def test_a_slots_children_share_a_log_lock_and_no_others_do() -> None:
    children = [forked(lambda *_: 0)]
    children.append(forked(lambda *_: 0, log_lock_fd=children[0].log_lock_fd))
    children.append(forked(lambda *_: 0))
    locks = [os.fstat(each.log_lock_fd or -1).st_ino for each in children]
    assert locks[0] == locks[1] != locks[2]
    assert len({each.log_lock_fd for each in children}) == 3
    for each in children:
        ended(each)


def refuse(*_: object) -> NoReturn:
    raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))


@pytest.mark.parametrize(
    ("where", "name"),
    [(os, "fork"), (Channel, "pair"), (fcntl, "fcntl"), (children, "open_memory")],
)
def test_a_fork_that_is_refused_leaves_nothing_open(
    where: object, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, mask = open_fds(), signal.pthread_sigmask(signal.SIG_BLOCK, [])
    monkeypatch.setattr(where, name, refuse)
    with pytest.raises(BlockingIOError):
        forked(lambda *_: 0)
    monkeypatch.undo()
    assert open_fds() == before
    assert signal.pthread_sigmask(signal.SIG_BLOCK, []) == mask


@pytest.mark.parametrize("room", range(SPARE_FDS + 2))
def test_a_child_for_which_there_are_not_enough_descriptors_is_not_forked(room: int) -> None:
    before = open_fds()
    with room_for(room), pytest.raises(OSError, match="Too many open files"):
        forked(lambda *_: 0)
    assert open_fds() == before


def test_a_fork_holds_signals_back_until_the_child_has_left_the_masters_pipe() -> None:
    held: list[set[signal.Signals]] = []

    def note_and_refuse() -> NoReturn:
        held.append({*map(signal.Signals, signal.pthread_sigmask(signal.SIG_BLOCK, []))})
        refuse()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fork", note_and_refuse)
        with pytest.raises(BlockingIOError):
            forked(lambda *_: 0)
    assert held[0] >= {*MASTER_SIGNALS}
    child = forked(lambda *_: len(signal.pthread_sigmask(signal.SIG_BLOCK, [])))
    assert ended(child).exitcode == 0


def test_strangers_that_have_ended_are_reaped_but_not_those_of_others() -> None:
    first, second = (os.posix_spawn("/bin/true", ["true"], {}) for _ in range(2))
    for pid in (first, second):
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    reap_strangers({first, second})
    assert any_ended()
    reap_strangers(set())
    assert not any_ended()
    reap_strangers(set())
