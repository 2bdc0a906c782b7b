"""When the greetings of a load begin, and who begins them."""

from itertools import chain, islice, pairwise

import pytest
from msgspec.structs import replace

from greeterd.bench.load.messages import Order, Phase
from greeterd.bench.load.pace import Pace
from greeterd.bench.load.schedule import NANO, bursts, constant, poisson, share, split
from greeterd.bench.model import Arrival

MILLI = 1_000_000


def order(**others: object) -> Order:
    wanted = {"process": 0, "processes": 1, "arrival": "closed", "family": 2, "hosts": ["x"]}
    return Order(**{**wanted, **others})  # type: ignore[arg-type]


def paced(phase: Phase, *, rate: float = 0.0, **others: object) -> Pace:
    return Pace(order(**others), replace(phase, rate=rate))


def taken(pace: Pace, now: int) -> list[int]:
    found = []
    while (start := pace.take(now)) is not None:
        found.append(start)
    return found


def test_constant_arrivals_are_evenly_spaced_from_zero() -> None:
    assert list(islice(constant(1000), 4)) == [0, MILLI, 2 * MILLI, 3 * MILLI]


def test_constant_arrivals_add_up_no_error_of_rounding() -> None:
    assert next(islice(constant(3), 3_000_000, None)) == 1_000_000 * NANO


def test_poisson_arrivals_rise_and_have_the_rate_and_the_spread_of_chance() -> None:
    arrivals = list(islice(poisson(1000, seed=1), 20_000))
    gaps = [later - sooner for sooner, later in pairwise(arrivals)]
    assert min(gaps) >= 0
    mean = sum(gaps) / len(gaps)
    variance = sum((gap - mean) ** 2 for gap in gaps) / len(gaps)
    assert mean == pytest.approx(MILLI, rel=0.03)
    assert variance**0.5 == pytest.approx(mean, rel=0.03)  # as of an exponential distribution


def test_the_same_seed_is_the_same_schedule_and_another_is_not() -> None:
    first, again, other = (list(islice(poisson(10, seed), 9)) for seed in (7, 7, 8))
    assert first == again != other


@pytest.mark.parametrize("processes", [1, 2, 3, 7])
def test_the_shares_of_all_processes_are_the_schedule(processes: int) -> None:
    shares = [
        list(share(poisson(50, 3), process, processes, greetings=100))
        for process in range(processes)
    ]
    assert sorted(chain(*shares)) == list(islice(poisson(50, 3), 100))
    assert [len(one) for one in shares] == split(100, processes)


def test_a_share_ends_before_its_time_is_over() -> None:
    assert list(share(constant(1000), 1, 2, until_ns=5 * MILLI)) == [MILLI, 3 * MILLI]


@pytest.mark.parametrize(("total", "parts"), [(0, [0, 0, 0]), (2, [1, 1, 0]), (10, [4, 3, 3])])
def test_parts_are_as_equal_as_can_be(total: int, parts: list[int]) -> None:
    assert split(total, 3) == parts


def test_bursts_are_full_but_for_the_last() -> None:
    assert list(bursts(25, 10)) == [10, 10, 5]
    assert list(bursts(3, 10)) == [3]


# The pace of one process ----------------------------------------------------------------------


def test_a_closed_loop_begins_one_for_each_end_until_the_count_is_reached() -> None:
    pace = paced(Phase(start_ns=5, measured=True, connections=2, greetings=3))
    assert taken(pace, 4) == []
    assert taken(pace, 9) == [9, 9]  # counted from the real start
    assert pace.next_ns is None
    pace.note_end(20)
    pace.note_end(21)
    assert taken(pace, 30) == [30]


def test_a_closed_loop_thinks_between_an_end_and_the_next_start() -> None:
    pace = paced(Phase(start_ns=0, measured=True, connections=1), think=0.001)
    assert taken(pace, 0) == [0]
    pace.note_end(500)
    assert pace.next_ns == 500 + MILLI
    assert taken(pace, 500 + MILLI - 1) == []
    assert len(taken(pace, 500 + MILLI)) == 1


def test_a_closed_loop_has_no_more_connections_than_greetings() -> None:
    pace = paced(Phase(start_ns=0, measured=True, connections=5, greetings=2))
    assert len(taken(pace, 0)) == 2


def test_a_closed_loop_begins_nothing_when_its_time_is_over() -> None:
    pace = paced(Phase(start_ns=0, measured=True, connections=2, until_ns=100))
    assert len(taken(pace, 99)) == 2
    pace.note_end(99)
    assert taken(pace, 100) == []
    assert pace.next_ns is None


def test_a_burst_counts_from_its_one_start_and_begins_nothing_for_an_end() -> None:
    pace = paced(
        Phase(start_ns=5, measured=True, connections=3, greetings=3, common_start=True),
        arrival="burst",
    )
    assert taken(pace, 50) == [5, 5, 5]
    pace.note_end(60)
    assert pace.next_ns is None


@pytest.mark.parametrize("arrival", ["constant", "poisson"])
def test_an_open_loop_drops_and_moves_nothing_when_it_is_kept_waiting(arrival: Arrival) -> None:
    phase = Phase(start_ns=1000, measured=True, is_open=True, greetings=50)
    late, prompt = (paced(phase, arrival=arrival, rate=1000.0) for _ in range(2))
    starts = []
    while (due := prompt.next_ns) is not None:
        starts += taken(prompt, due)
        prompt.note_end(due)
    assert taken(late, 10 * NANO) == starts  # all at once, each from the instant that was due
    assert len(starts) == 50


def test_an_open_loop_has_a_closed_warm_up() -> None:
    phase = Phase(start_ns=0, measured=False, connections=2, greetings=4)
    assert taken(paced(phase, arrival="poisson", rate=1.0), 0) == [0, 0]


@pytest.mark.parametrize("arrival", ["closed", "constant"])
def test_what_is_stopped_begins_nothing_more(arrival: Arrival) -> None:
    phase = Phase(
        start_ns=0, measured=True, is_open=arrival == "constant", connections=1, greetings=9
    )
    pace = paced(phase, arrival=arrival, rate=10.0)
    pace.stop()
    pace.note_end(1)
    assert taken(pace, NANO) == []
