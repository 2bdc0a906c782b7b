"""Which cases an experiment has, and in which order its trials are run."""

from collections import Counter
from typing import Any

import pytest
from msgspec.structs import replace

from greeterd.bench.experiment import presets
from greeterd.bench.experiment.counting import disagreement
from greeterd.bench.experiment.plan import (
    FAULT_SECONDS,
    Matrix,
    Plan,
    choose,
    duration,
    expected,
    impossible,
    key,
    schedule,
    timeout,
)
from greeterd.bench.experiment.runner import Estimate
from greeterd.bench.model import Case, Counts
from greeterd.errors import UsageError

CASES = choose(Matrix(mode=("inherit", "reuseport"), workers=(1, 2), concurrency=(1, 8))).cases


def test_a_matrix_has_a_case_for_each_combination() -> None:
    found = {(case.mode, case.workers, case.concurrency) for case in CASES}
    assert len(CASES) == len(found) == 8


def test_impossible_combinations_are_left_out_and_told() -> None:
    choice = choose(Matrix(wait=("rotate", "epoll"), steering=("hash", "random")))
    assert {(one.mode, one.wait, one.steering) for one in choice.cases} == {
        ("inherit", "rotate", "hash"),
        ("inherit", "epoll", "hash"),
        ("reuseport", "epoll", "hash"),
        ("reuseport", "epoll", "random"),
    }
    assert sum(choice.left_out.values()) == 4
    assert all(choice.left_out)


def test_two_names_of_one_wait_strategy_make_one_case() -> None:
    modes = Matrix(mode=("inherit", "reuseport", "handoff"), wait=("auto", "rotate", "epoll"))
    assert [(one.mode, one.wait) for one in choose(modes).cases] == [
        ("inherit", "rotate"),
        ("inherit", "epoll"),
        ("reuseport", "epoll"),
        ("handoff", "auto"),
    ]


def test_without_rescue_is_a_case_where_a_listener_could_be_lent() -> None:
    stopped = Matrix(
        mode=("inherit", "reuseport", "handoff"), fault=("stopped",), rescue=(True, False)
    )
    assert [(one.mode, one.rescue) for one in choose(stopped).cases] == [
        ("inherit", True),
        ("reuseport", True),
        ("reuseport", False),
        ("handoff", True),
        ("handoff", False),
    ]


@pytest.mark.parametrize(
    "changes",
    [
        {"mode": "reuseport", "wait": "rotate"},
        {"mode": "reuseport", "wait": "exclusive"},
        {"mode": "handoff", "wait": "rotate"},
        {"mode": "handoff", "wait": "blocking"},
        {"mode": "inherit", "steering": "cpu"},
        {"mode": "handoff", "steering": "random"},
        {"mode": "inherit", "handoff_policy": "least-busy"},
        {"server": "asyncio", "mode": "handoff"},
        {"server": "asyncio", "wait": "epoll"},
        {"server": "bare", "fault": "killed"},
        {"workers": 0},
        {"workers": 513},
        {"concurrency": 0},
        {"greetings": 0},
        {"arrival": "poisson"},
        {"arrival": "burst", "fault": "reload"},
        {"rescue": False},
        {"fault": "stopped", "workers": 1},
    ],
)
def test_a_case_that_cannot_be_or_says_nothing_is_none(changes: dict[str, Any]) -> None:
    assert impossible(replace(Case(), **changes))


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"wait": "exclusive"},
        {"mode": "reuseport", "steering": "cpu"},
        {"mode": "handoff", "handoff_policy": "least-busy"},
        {"server": "bare", "mode": "reuseport"},
        {"arrival": "poisson", "rate": 10.0},
        {"fault": "stopped", "rescue": False},
    ],
)
def test_a_case_that_can_be_is_one(changes: dict[str, Any]) -> None:
    assert impossible(replace(Case(), **changes)) == ""


def test_only_an_arrival_with_a_rate_is_multiplied_by_the_rates() -> None:
    cases = choose(Matrix(mode=("inherit",), arrival=("closed", "poisson"), rate=(5.0, 9.0))).cases
    assert [(one.arrival, one.rate) for one in cases] == [
        ("closed", 0.0),
        ("poisson", 5.0),
        ("poisson", 9.0),
    ]


def test_a_load_with_a_fault_lasts_long_enough() -> None:
    matrix = Matrix(mode=("inherit",), fault=("killed",), greetings=(10,))
    (closed,) = choose(matrix).cases
    assert duration(closed) == FAULT_SECONDS
    steady = Matrix(
        mode=("inherit",), fault=("killed",), arrival=("poisson",), rate=(100.0,), greetings=(10,)
    )
    (opened,) = choose(steady).cases
    assert duration(opened) is None
    assert opened.greetings == 100 * FAULT_SECONDS
    assert timeout(opened) < timeout(Case())


def test_each_block_has_every_case_once_in_an_order_of_its_own() -> None:
    visits = schedule(Plan(cases=CASES, repeats=4, seed=7))
    assert [visit.order for visit in visits] == list(range(32))
    blocks = [[one.case for one in visits[at : at + 8]] for at in range(0, 32, 8)]
    assert all(Counter(block) == Counter(CASES) for block in blocks)
    assert all({one.repeat for one in visits[8 * at : 8 * at + 8]} == {at} for at in range(4))
    assert len({tuple(block) for block in blocks}) == 4


def test_a_seed_gives_one_order_and_another_seed_another() -> None:
    one, same, other = (schedule(Plan(cases=CASES, seed=seed)) for seed in (1, 1, 2))
    assert one == same
    assert one != other


def test_every_field_of_a_case_is_in_its_key() -> None:
    base = Case(arrival="poisson", rate=1.0)
    changes: dict[str, Any] = {
        "server": "bare", "mode": "x", "wait": "x", "steering": "x", "handoff_policy": "x",
        "rescue": False, "workers": 9, "concurrency": 9, "arrival": "constant", "rate": 9.5,
        "fault": "killed", "greetings": 9,
    }  # fmt: skip
    assert changes.keys() == set(Case.__struct_fields__)
    keys = {key(base), *(key(replace(base, **{name: new})) for name, new in changes.items())}
    assert len(keys) == len(changes) + 1


# Presets -------------------------------------------------------------------------------------


@pytest.mark.parametrize("preset", presets.PRESETS.values(), ids=presets.PRESETS)
def test_a_preset_has_possible_cases_only(preset: presets.Preset) -> None:
    choice = presets.choose(preset, {})
    assert choice.cases
    assert choice.left_out == {}


def test_the_article_is_forty_thousand_greetings_by_four_for_two_modes() -> None:
    cases = presets.choose(presets.ARTICLE, {}).cases
    assert {(one.arrival, one.workers, one.concurrency, one.greetings) for one in cases} == {
        ("seed", 4, 4, 40_000)
    }
    assert [one.mode for one in cases] == ["inherit", "reuseport"]


def test_quick_is_expected_to_take_less_than_a_minute() -> None:
    cases = presets.choose(presets.QUICK, {}).cases
    assert presets.QUICK.repeats * sum(map(expected, cases)) < 60


def test_full_is_expected_to_take_twenty_minutes() -> None:
    cases = presets.choose(presets.FULL, {}).cases
    assert presets.FULL.repeats * sum(map(expected, cases)) <= 20 * 60


def test_who_dies_in_the_full_preset_has_connections_in_hand() -> None:
    cases = presets.choose(presets.FULL, {}).cases
    hurt = [one for one in cases if one.fault in {"killed", "reload"}]
    assert len(hurt) == 6
    assert all(one.arrival == "closed" and one.concurrency >= 16 for one in hurt)


def test_full_has_every_mode_fault_and_peer() -> None:
    cases = presets.choose(presets.FULL, {}).cases
    assert {one.mode for one in cases} == {"inherit", "reuseport", "handoff"}
    assert {one.fault for one in cases} == {"none", "stopped", "killed", "reload"}
    assert len({one.server for one in cases}) == 6
    assert {one.workers for one in cases} == {1, 2, 4, 8}


def test_axes_of_the_command_line_go_before_those_of_a_preset() -> None:
    axes = presets.parse_axes({"mode": "handoff", "greetings": "50,60", "rescue": "on"})
    cases = presets.choose(presets.ARTICLE, axes).cases
    assert [(one.mode, one.greetings, one.arrival) for one in cases] == [
        ("handoff", 50, "seed"),
        ("handoff", 60, "seed"),
    ]


@pytest.mark.parametrize(
    ("axes", "words"),
    [
        ({"mode": "inherit,fork"}, "inherit, reuseport, handoff"),
        ({"workers": "many"}, "--workers many: must be a list of numbers"),
        ({"handoff_policy": "best"}, "--handoff-policy best: must be"),
        ({"rescue": "maybe"}, "on, off"),
        ({"wait": ","}, "rotate"),
    ],
)
def test_an_axis_refuses_what_is_no_value_of_it(axes: dict[str, str], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        presets.parse_axes(axes)


# Counts, and time left -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("counts", "agree"),
    [
        (Counts(client=5, scoreboard=5, log=5), True),
        (Counts(client=5, scoreboard=5, log=4), False),
        (Counts(client=5, scoreboard=5, log=6), False),
        (Counts(client=5, scoreboard=4, log=5), False),
        (Counts(client=5, scoreboard=6, log=6), False),
        (Counts(client=5, uncertain=2, scoreboard=7, log=7), True),
        (Counts(client=5, uncertain=2, scoreboard=8, log=8), False),
        (Counts(client=5, uncertain=2, scoreboard=4, log=4), False),
        (Counts(client=5, uncertain=2, scoreboard=6, log=7), False),
        (Counts(client=5, log=5), True),
        (Counts(client=5, log=4), False),
        (Counts(client=5, scoreboard=5), True),
        (Counts(client=5, scoreboard=7), False),
    ],
)
def test_counts_agree_when_what_the_client_knows_is_counted_and_logged(
    counts: Counts, agree: bool
) -> None:
    said = disagreement(counts)
    assert bool(said) != agree
    assert agree or f"client {counts.client}" in said


def test_a_killed_worker_may_have_logged_what_it_did_not_count() -> None:
    assert not disagreement(Counts(client=5, uncertain=2, scoreboard=6, log=7), "killed")
    assert disagreement(Counts(client=5, uncertain=2, scoreboard=7, log=6), "killed")


def test_the_time_left_follows_what_the_trials_have_taken() -> None:
    estimate = Estimate([1.0, 1.0, 2.0])
    assert estimate.left == 4.0
    estimate.add(3.0)
    assert estimate.left == 9.0
    estimate.add(1.0)
    estimate.add(9.0)
    assert estimate.left == 0.0
