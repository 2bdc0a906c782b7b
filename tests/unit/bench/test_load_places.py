"""Between which addresses a load runs."""

from ipaddress import IPv4Address

import pytest

from greeterd.bench.load.messages import Order
from greeterd.bench.load.places import (
    FIRST,
    LAST,
    PER_SOURCE,
    SPAN,
    Places,
    destinations,
    source,
    sources,
    sources_needed,
)
from greeterd.bench.load.sender import Sending


def sending(**others: object) -> Sending:
    wanted = {"process": 0, "processes": 1, "arrival": "closed", "family": 2, "port": 80}
    wanted["hosts"] = ["127.0.0.1"]
    return Sending(Order(**{**wanted, **others}), lambda _: None)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("greetings", "seconds", "rate", "needed"),
    [
        (1, None, 0.0, 1),
        (PER_SOURCE, None, 0.0, 1),
        (PER_SOURCE + 1, None, 0.0, 2),
        (40_000, None, 0.0, 8),
        (None, 1.0, 0.0, 10),
        (None, 3600.0, 100.0, 2),  # no more than one minute's
        (1_000_000, None, 100.0, 2),
    ],
)
def test_there_are_sources_for_the_busiest_minute(
    greetings: int | None, seconds: float | None, rate: float, needed: int
) -> None:
    assert sources_needed(greetings, seconds, rate) == needed


def test_sources_are_different_ones_of_127_and_never_the_destinations() -> None:
    found = sources(Places(first=SPAN - 3, sources=1000))
    assert len(set(found)) == 1000
    assert {FIRST <= int(IPv4Address(one)) <= LAST for one in found} == {True}
    assert source(0, 0) == source(SPAN, 0) == "127.1.0.1"


def test_the_given_destination_is_the_last_one_so_that_a_wrong_listener_is_seen_at_once() -> None:
    assert destinations("127.0.0.1", 3) == ["127.0.0.2", "127.0.0.3", "127.0.0.1"]
    assert destinations("127.0.0.9", 1) == ["127.0.0.9"]


def test_every_pair_of_source_and_destination_is_met() -> None:
    one = sending(hosts=["127.0.0.1", "127.0.0.2"], sources=["127.1.0.1", "127.1.0.2", "127.1.0.3"])
    pairs = {(one.source(number), one.target(number)) for number in range(6)}
    assert len(pairs) == 6


def test_processes_begin_at_different_sources() -> None:
    all_of_them = [f"127.1.0.{number}" for number in range(1, 9)]
    firsts = {
        sending(process=process, processes=4, sources=all_of_them).source(0) for process in range(4)
    }
    assert len(firsts) == 4


def test_without_sources_the_kernel_chooses() -> None:
    assert sending().source(5) is None


def test_names_are_their_own_and_of_the_size_that_is_asked_for() -> None:
    assert sending(process=3).name(17) == b"load-3-17"
    assert sending(name_bytes=12).name(17) == b"xxxload-0-17"
    assert sending(name_bytes=3).name(17) == b"-17"
    assert sending(name_bytes=0).name(17) == b""
    assert sending(name=b"Alice").name(17) == b"Alice"
