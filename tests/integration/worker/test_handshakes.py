"""Waiting for handshakes: by steps, for all workers at once, and never beyond the limit."""

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from itertools import repeat

import pytest

from greeterd.config.schema import Config
from greeterd.sockets.address import Address
from greeterd.sockets.listener import local_address
from greeterd.sockets.sockdiag import Handshake
from greeterd.supervisor.ids import WorkerId
from greeterd.worker import handshakes
from greeterd.worker.handshakes import LOOKUPS, POLL, Settling, Sweeps, limit_of
from tests.integration.sockets.groups import connected, connecting, half_open, hear, shared
from tests.support import until

GRACE = 0.25
CONFIG = Config(drain_grace=GRACE, graceful_timeout=30.0)
ADDRESSES = [Address(host="127.0.0.1", port=port) for port in range(1, 65)]
NOW = 1000.0
DUE = NOW + GRACE


@pytest.fixture
def opened() -> Iterator[ExitStack]:
    """Close the test's sockets in reverse order."""
    with ExitStack() as stack:
        yield stack


class Table:
    """Stands for the kernel's table of connections."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, portions: list[int]) -> None:
        """Have it dumped in portions of so many handshakes."""
        self.portions: Iterator[int] = iter(portions)
        self.under_way = set(range(sum(portions)))
        self.dumps = self.portions_read = self.lookups = 0
        monkeypatch.setattr(handshakes, "handshakes", self._dump)
        monkeypatch.setattr(handshakes, "is_under_way", self._look_up)

    def _dump(self, addresses: Iterator[Address]) -> Iterator[list[Handshake]]:
        assert list(addresses) == ADDRESSES
        self.dumps += 1
        number = 0
        for size in self.portions:
            self.portions_read += 1
            yield [Handshake(2, bytes([each % 256])) for each in range(number, number + size)]
            number += size

    def _look_up(self, handshake: Handshake) -> bool:
        self.lookups += 1
        return handshake.ident[0] in self.under_way


def steps(settling: Settling, now: float) -> int:
    """Take steps at this instant until it wants to wait, or is over; return how many."""
    count = 1
    while not settling.over(now) and settling.due <= now:
        count += 1
        assert count < 1000
    return count


def test_nothing_is_looked_at_before_the_grace_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    table = Table(monkeypatch, [])
    settling = Settling(ADDRESSES, CONFIG, NOW)
    assert settling.due == DUE
    assert not settling.over(DUE - 0.01)
    assert table.dumps == 0
    assert not settling.over(DUE)
    assert settling.over(DUE)
    assert table.dumps == 1


def test_what_lasts_is_looked_up_again_without_another_dump(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    table = Table(monkeypatch, [3])
    settling = Settling(ADDRESSES, CONFIG, NOW)
    table.under_way = {1}
    steps(settling, DUE)
    assert not settling.over(DUE + POLL / 2)
    assert settling.due == DUE + POLL
    assert table.lookups == 2, "of 2, which is over, and of 1"
    assert not settling.over(DUE + POLL)
    table.under_way.clear()
    assert settling.over(DUE + 2 * POLL)
    assert table.dumps == 1


def test_a_dump_is_read_one_portion_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    table = Table(monkeypatch, [1] * 5)
    settling = Settling(ADDRESSES, CONFIG, NOW)
    for read in range(1, 6):
        assert not settling.over(DUE)
        assert table.portions_read == read
    assert table.lookups == 0


def test_lookups_are_taken_in_steps_too(monkeypatch: pytest.MonkeyPatch) -> None:
    table = Table(monkeypatch, [250])
    table.under_way.clear()
    settling = Settling(ADDRESSES, CONFIG, NOW)
    assert steps(settling, DUE) == 2 + -(-250 // LOOKUPS)
    assert table.lookups == 250


def test_the_limit_interrupts_a_dump_that_has_no_end(monkeypatch: pytest.MonkeyPatch) -> None:
    table = Table(monkeypatch, [])
    table.portions = repeat(1)
    settling = Settling(ADDRESSES, CONFIG, NOW)
    end = NOW + limit_of(CONFIG)
    assert not any(settling.over(end - 0.01) for _ in range(50))
    assert settling.over(end)
    assert table.portions_read == 50


def test_the_limit_ends_the_wait_for_a_client_that_never_answers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    Table(monkeypatch, [1])
    settling = Settling(ADDRESSES, CONFIG, NOW)
    steps(settling, DUE)
    assert not settling.over(NOW + limit_of(CONFIG) - 0.01)
    assert settling.over(NOW + limit_of(CONFIG))


@pytest.mark.parametrize("graceful", [0.3, 1.0, 10.0, 30.0, 1000.0])
def test_a_wait_leaves_more_than_half_of_the_time_to_serve(graceful: float) -> None:
    limit = limit_of(replace(CONFIG, graceful_timeout=graceful))
    assert GRACE < limit <= GRACE + handshakes.LIMIT
    assert limit - GRACE <= (graceful - GRACE) / 4 + 1e-9


def test_a_kernel_that_does_not_tell_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(_: int) -> list[Handshake]:
        raise PermissionError

    def refuse(_addresses: object) -> Iterator[list[Handshake]]:
        yield from map(refused, [1])

    monkeypatch.setattr(handshakes, "handshakes", refuse)
    assert Settling(ADDRESSES, CONFIG, NOW).over(DUE)


def test_unix_sockets_are_not_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    Table(monkeypatch, [])
    settling = Settling([Address(path="/run/x"), *ADDRESSES], CONFIG, NOW)
    assert steps(settling, DUE) == 2


def test_one_dump_serves_all_workers_that_were_told_together(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    table = Table(monkeypatch, [1])
    told: list[int] = []
    sweeps = Sweeps(ADDRESSES, told.append)
    for worker in range(24):
        sweeps.add(WorkerId(worker))
    assert sweeps.next_deadline() is None
    sweeps.attend(CONFIG, NOW)
    assert sweeps.next_deadline() == DUE
    for _ in range(5):
        sweeps.attend(CONFIG, DUE)
    assert told == []
    table.under_way.clear()
    sweeps.attend(CONFIG, DUE + POLL)
    assert told == list(range(24))
    assert (table.dumps, sweeps.next_deadline()) == (1, None)


def test_who_comes_later_has_a_wait_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    Table(monkeypatch, [])
    told: list[int] = []
    sweeps = Sweeps(ADDRESSES, told.append)
    sweeps.add(WorkerId(1))
    sweeps.attend(CONFIG, NOW)
    sweeps.add(WorkerId(2))
    for _ in range(3):
        sweeps.attend(CONFIG, DUE)
    assert told == [1]
    for _ in range(3):
        sweeps.attend(CONFIG, DUE + GRACE)
    assert told == [1, 2]


def test_a_real_handshake_is_waited_for_and_a_later_one_is_not(opened: ExitStack) -> None:
    listeners = [shared(opened) for _ in range(4)]
    addresses = [*map(local_address, listeners)]
    early = connecting(opened, listeners[2], deaf=True)
    until(lambda: half_open(*addresses) == 1)
    settling = Settling(addresses, CONFIG, NOW)
    steps(settling, DUE)
    late = connecting(opened, listeners[1], deaf=True)
    until(lambda: half_open(*addresses) == 2)
    assert not settling.over(DUE + POLL)
    hear(early)
    until(lambda: connected(early))
    assert settling.over(DUE + 2 * POLL)
    assert not connected(late)
