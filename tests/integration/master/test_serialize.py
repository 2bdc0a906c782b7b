"""Which children the next image takes over, and what it lets them say."""

import os
import socket
from collections.abc import Iterator
from types import SimpleNamespace
from typing import cast

import pytest

from greeterd.master.children import Child
from greeterd.master.generations import Generations
from greeterd.master.upgrade.serialize import adopt_children
from greeterd.master.upgrade.state import (
    InheritedListeners,
    InheritedSlot,
    InheritedWorker,
    UpgradeState,
)
from greeterd.supervisor.ids import DISPATCHER, Generation
from greeterd.worker.conversation import MAX_EXITS
from greeterd.worker.messages import ReadyMessage


class Before:
    """What a predecessor has left of one worker."""

    def __init__(self) -> None:
        self._ours, self.theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.slot = 1
        self.credit: dict[str, int] | None = {}
        self.log_lock_fd: int | None = 42
        self.allow_exit = True

    def adopt(self) -> Child:
        """Return the worker's child in the next image."""
        worker = InheritedWorker(
            worker=7, pid=1234, place=1, generation=3, life="ready", since=0.0,
            channel_fd=os.dup(self._ours.fileno()), stack_fd=41, log_lock_fd=self.log_lock_fd,
            credit=self.credit,
        )  # fmt: skip
        slot = InheritedSlot(
            index=self.slot, generation=3, served=True, failures=0, restarts=0, retry_at=0.0,
            served_since=0.0, unserved_since=0.0, workers=[worker],
        )  # fmt: skip
        other = InheritedSlot(
            index=9, generation=3, served=False, failures=0, restarts=0, retry_at=0.0,
            served_since=0.0, unserved_since=0.0,
        )  # fmt: skip
        state = UpgradeState(
            program="1", fixed={}, listeners=InheritedListeners(), slots=[slot, other], board_fd=3,
            lock_fd=4, control_fd=5, generation=3, last_generation=3, last_worker=7, since=0.0,
            started=0.0,
        )  # fmt: skip
        generations = {Generation(3): SimpleNamespace(allow_exit=self.allow_exit)}
        [child] = adopt_children(state, cast("Generations", generations))
        return child

    def close(self) -> None:
        """Close both ends of the channel."""
        self._ours.close()
        self.theirs.close()


@pytest.fixture
def before() -> Iterator[Before]:
    found = Before()
    yield found
    found.close()


def test_serialize_adopts_a_child_with_all_that_is_its_own(before: Before) -> None:
    child = before.adopt()
    spawn = child.spawn
    assert (child.pid, spawn.worker, spawn.slot, spawn.place, spawn.generation) == (
        1234,
        7,
        1,
        1,
        3,
    )
    assert (child.stack_fd, child.log_lock_fd) == (41, 42)
    before.theirs.send(b"anything")
    assert child.channel.receive(0) is not None, "its end of the channel"
    child.channel.close()


def test_serialize_lets_a_child_say_what_is_still_due(before: Before) -> None:
    before.credit = {"leaving": 1, "returned 2": 3}
    child = before.adopt()
    child.channel.close()
    assert child.conversation.credit == {"leaving": 1, "returned 2": 3}
    assert child.conversation.answers_routes


def test_serialize_waits_for_no_answer_of_a_dispatcher_that_was_forked_without_a_log_lock(
    before: Before,
) -> None:
    before.credit, before.log_lock_fd = {"leaving": 1}, None
    child = before.adopt()
    child.channel.close()
    assert not child.conversation.answers_routes


@pytest.mark.parametrize("slot", [1, DISPATCHER])
def test_serialize_gives_credit_to_a_child_of_version_0_1(before: Before, slot: int) -> None:
    before.slot, before.credit, before.log_lock_fd = slot, None, None
    before.allow_exit = False  # that of the next image: what holds for the worker is not known
    child = before.adopt()
    child.channel.close()
    credit = child.conversation.credit
    assert credit.get("exit", 0) == (0 if slot == DISPATCHER else MAX_EXITS)
    assert credit["returned 9"] == credit[f"returned {slot}"] == credit["leaving"] > 1
    assert not child.conversation.answers_routes, "that version's dispatcher does not"


@pytest.mark.parametrize("allow_exit", [False, True])
def test_serialize_lets_a_child_that_is_not_ready_yet_ask_for_its_exit_as_its_settings_say(
    before: Before, allow_exit: bool
) -> None:
    before.credit, before.allow_exit = {"ready": 1, "failed": 1}, allow_exit
    child = before.adopt()
    child.channel.close()
    assert child.conversation.heard(ReadyMessage(), 0) == ""
    assert child.conversation.credit.get("exit", 0) == (MAX_EXITS if allow_exit else 0)
