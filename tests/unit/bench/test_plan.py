"""Which cases an experiment has, and in which order its trials are run."""

from typing import Any

import pytest
from msgspec.structs import replace

from greeterd.bench.experiment import presets
from greeterd.bench.experiment.counting import disagreement
from greeterd.bench.experiment.plan import (
    FAULT_SECONDS,
    PAIRS_WITH_FAULT,
    Matrix,
    Plan,
    choose,
    compared,
    duration,
    groups,
    impossible,
    least_seconds,
    timeout,
)
from greeterd.bench.model import Case, Comparison, Counts
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
        {"server": "bare", "build": "new"},
        {"server": "nginx", "wait": "epoll"},
        {"life": -1.0},
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


def test_each_case_is_compared_with_the_first_that_is_asked_the_same() -> None:
    modes = Matrix(mode=("inherit", "reuseport", "handoff"), concurrency=(1, 8))
    found = compared(choose(modes).cases)
    assert [(one.a.mode, one.b and one.b.mode, one.a.concurrency) for one in found] == [
        ("inherit", "reuseport", 1),
        ("inherit", "reuseport", 8),
        ("inherit", "handoff", 1),
        ("inherit", "handoff", 8),
    ]
    assert all(one.b is None or one.b.concurrency == one.a.concurrency for one in found)
    assert groups(found) == [[0, 2], [1, 3]]


def test_a_case_that_is_asked_what_no_other_is_stands_alone() -> None:
    found = compared([Case(), Case(mode="reuseport"), Case(concurrency=1)])
    assert [(one.a.concurrency, one.b is None) for one in found] == [(16, False), (1, True)]


def test_two_builds_are_compared_in_the_same_case_each() -> None:
    matrix = Matrix(mode=("inherit", "reuseport"), build=("old", "new"))
    found = compared(choose(matrix).cases)
    assert [(one.a.build, one.b and one.b.build, one.a.mode) for one in found] == [
        ("old", "new", "inherit"),
        ("old", "new", "reuseport"),
    ]
    assert all(one.b and one.b.mode == one.a.mode for one in found)


def test_a_peer_that_is_slow_has_shorter_trials_and_is_compared_all_the_same() -> None:
    servers = ("greeterd", "socketserver")
    (one,) = compared(choose(Matrix(server=servers, mode=("inherit",))).cases)
    assert one.b is not None
    assert one.b.greetings < one.a.greetings


def test_a_fault_has_a_fixed_number_of_pairs_and_all_have_those_that_are_asked_for() -> None:
    faulty = Comparison(a=Case(fault="killed"), b=Case(fault="killed", mode="reuseport"))
    calm = Comparison(a=Case(), b=Case(mode="reuseport"))
    plan = Plan(comparisons=[calm, faulty])
    assert [plan.pairs_of(one) for one in plan.comparisons] == [None, PAIRS_WITH_FAULT]
    fixed = replace(plan, pairs=9)
    assert [fixed.pairs_of(one) for one in plan.comparisons] == [9, 9]


def test_a_command_has_no_settings_of_greeterd() -> None:
    choice = choose(Matrix(server=("nginx",), wait=("epoll", "auto"), fault=("none", "reload")))
    assert [(one.mode, one.wait, one.fault) for one in choice.cases] == [
        ("inherit", "auto", "none"),
        ("inherit", "auto", "reload"),
    ]


# Presets -------------------------------------------------------------------------------------


@pytest.mark.parametrize("preset", presets.PRESETS.values(), ids=presets.PRESETS)
def test_a_preset_has_possible_cases_only(preset: presets.Preset) -> None:
    choice = presets.choose(preset, {})
    assert choice.cases
    assert choice.left_out == {}


def test_the_article_is_forty_thousand_greetings_by_four_for_two_modes() -> None:
    cases = presets.choose(presets.ARTICLE, {}).cases
    assert {(one.arrival, one.workers, one.concurrency) for one in cases} == {("seed", 4, 4)}
    assert presets.ARTICLE.pairs is not None
    assert [one.greetings * presets.ARTICLE.pairs for one in cases] == [40_000, 40_000]
    assert [one.mode for one in cases] == ["inherit", "reuseport"]


@pytest.mark.parametrize(("name", "minutes"), [("quick", 1.5), ("article", 3), ("full", 25)])
def test_a_preset_is_expected_to_take_as_long_as_the_help_says(name: str, minutes: float) -> None:
    preset = presets.PRESETS[name]
    plan = Plan(comparisons=compared(presets.choose(preset, {}).cases), pairs=preset.pairs)
    assert least_seconds(plan) < 60 * minutes
    assert preset.max_time < 60 * minutes


def test_the_first_question_of_quick_is_inherit_or_reuseport() -> None:
    first = compared(presets.choose(presets.QUICK, {}).cases)[0]
    assert (first.a.mode, first.b and first.b.mode) == ("inherit", "reuseport")


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


# Counts --------------------------------------------------------------------------------------


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
