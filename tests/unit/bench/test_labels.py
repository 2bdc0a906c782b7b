"""Cases have short names that tell what serves, and what differs."""

import pytest

from greeterd.bench.labels import approach, common, names, place, scenario_of, wait_of, words
from greeterd.bench.model import Case
from tests.bench_results import WIDE


@pytest.mark.parametrize(
    ("case", "name"),
    [
        (Case(), "inherit"),
        (Case(wait="rotate"), "inherit"),
        (Case(wait="epoll"), "inherit epoll"),
        (Case(mode="reuseport", wait="epoll"), "reuseport"),
        (Case(mode="reuseport", wait="blocking"), "reuseport blocking"),
        (Case(mode="reuseport", steering="cpu"), "reuseport cpu steering"),
        (Case(mode="reuseport", rescue=False), "reuseport without rescue"),
        (Case(mode="handoff"), "handoff"),
        (Case(mode="handoff", handoff_policy="least-busy"), "handoff least-busy"),
        (Case(mode="handoff", rescue=False), "handoff without rescue"),
        (Case(build="new"), "inherit of build new"),
        (Case(server="nginx"), "nginx"),
        (Case(server="uvloop"), "uvloop"),
        (Case(server="asyncio", mode="reuseport"), "asyncio reuseport"),
    ],
)
def test_what_serves_has_a_name(case: Case, name: str) -> None:
    assert approach(case) == name


def test_a_name_tells_what_differs_between_cases_and_nothing_else() -> None:
    cases = [Case(workers=1), Case(workers=4, mode="reuseport")]
    assert list(names(cases).values()) == ["inherit, 1 worker", "reuseport, 4 workers"]
    assert common(cases) == ["16 in flight", "no fault"]


def test_no_two_names_are_equal() -> None:
    cases = [*WIDE, Case(wait="rotate"), Case(rescue=False), Case(steering="cpu")]
    assert len(set(names(cases).values())) == len(cases)


def test_equal_names_get_the_settings_that_tell_them_apart() -> None:
    cases = [Case(), Case(rescue=False), Case(mode="reuseport")]
    assert list(names(cases).values()) == [
        "inherit [rescue on]",
        "inherit [rescue off]",
        "reuseport",
    ]


@pytest.mark.parametrize(
    ("case", "told"),
    [
        (Case(), "4 workers, 16 in flight"),
        (Case(workers=1, arrival="seed"), "1 worker, a process each, 16 at once"),
        (Case(arrival="burst"), "4 workers, bursts of 16"),
        (Case(arrival="poisson", rate=5000), "4 workers, poisson 5,000/s"),
        (Case(life=2.5), "4 workers, 16 in flight, held 2.5 s"),
        (Case(fault="stopped"), "4 workers, 16 in flight, one worker stopped"),
    ],
)
def test_what_is_asked_is_told_in_words(case: Case, told: str) -> None:
    assert words(scenario_of(case)) == told


def test_cases_without_a_fault_come_first_and_peers_last() -> None:
    cases = [Case(fault="killed"), Case(server="uvloop"), Case(mode="reuseport"), Case()]
    assert sorted(cases, key=place) == cases[::-1]


def test_auto_is_the_wait_that_is_in_force() -> None:
    assert [wait_of(Case(mode=mode)) for mode in ("inherit", "reuseport")] == ["rotate", "epoll"]
    assert wait_of(Case(wait="blocking")) == "blocking"
