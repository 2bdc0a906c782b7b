"""Two runs beside each other: what differs is found, and what cannot be known is said first."""

import io

import pytest
from msgspec.structs import replace

from greeterd.bench.analysis.compare import CAUTION, compare, conclude, unlike, welch
from greeterd.bench.model import Case
from greeterd.bench.report.tables import comparison, show
from tests.bench_results import make_results

CASES = [
    Case(mode=mode, concurrency=concurrency, greetings=400)
    for mode in ("inherit", "reuseport")
    for concurrency in (1, 8, 32)
]


def test_a_run_does_not_differ_from_itself() -> None:
    run = make_results(CASES, 6)
    assert compare(run, run).differences == []
    assert conclude(compare(run, run)).startswith("No difference of 10 % or more seen in ")


def test_two_runs_of_the_same_seldom_differ_anywhere() -> None:
    differ = 0
    for seed in range(100):
        a, b = (make_results(CASES, 6, seed=2 * seed + half) for half in (0, 1))
        differ += bool(compare(a, b).differences)
    assert differ <= 5


def test_a_build_that_is_slower_by_half_is_found() -> None:
    for seed in range(20):
        a, b = make_results(CASES, 20, seed=seed), make_results(CASES, 20, seed=99, slowdown=1.5)
        worse = [one for one in compare(a, b).differences if one.metric.name == "cpu_us"]
        assert [one.verdict for one in worse] == ["worse"] * len(worse)
        assert len(worse) >= 5


def test_the_ratio_is_that_of_the_geometric_means_with_welchs_interval() -> None:
    one = welch([10.0, 20.0], [20.0, 40.0])
    assert one.ratio == pytest.approx(2.0)
    assert one.low < 1 < one.high
    same = welch([10.0, 10.0], [20.0, 20.0])
    assert [same.ratio, same.low, same.high, same.p_value] == pytest.approx([2.0, 2.0, 2.0, 0.0])


def test_what_is_in_one_run_only_is_told_and_compared_with_nothing() -> None:
    a, b = make_results(CASES[:2]), make_results(CASES[1:3])
    found = compare(a, b)
    assert {one.case for one in found.pairs} == {CASES[1]}
    assert found.only == ([CASES[0]], [CASES[2]])
    assert compare(make_results(CASES[:1]), make_results(CASES[1:2])).pairs == []


def test_what_the_runs_cannot_know_is_said_first() -> None:
    a = make_results(CASES[:2])
    b = replace(a, environment=replace(a.environment, kernel="7.0"))
    text = show(comparison(compare(a, b), a, b), io.StringIO())
    assert text.startswith(CAUTION)
    assert "Not the same: kernel 6.18.0 and 7.0." in text
    assert unlike(a, a) == []


def test_the_last_line_counts_the_differences() -> None:
    a, b = make_results(CASES, 20), make_results(CASES, 20, seed=3, slowdown=1.5)
    said = conclude(compare(a, b))
    assert said.startswith("B differs from A in ")
    assert "CPU is worse in 6 (" in said
