"""Two runs of the same have no difference, and a slower build is found."""

import math
import re
from itertools import pairwise

import pytest
from msgspec.structs import replace
from rich.console import Console

from greeterd.bench.analysis.compare import compare, conclude, number, render, sheet
from greeterd.bench.analysis.stats import LEVEL
from greeterd.bench.metrics import COMPARED
from greeterd.bench.model import Case, Results
from greeterd.bench.report.export import UnreadableError
from tests.bench_results import make_results

WAITS = ("auto", "exclusive", "epoll", "blocking")
QUICK = [
    *(Case(wait=wait, greetings=400) for wait in WAITS),
    *(Case(mode=mode, greetings=400) for mode in ("reuseport", "handoff")),
]
PAIRS = 36
"""Of runs that are compared; at 5 % of noise, 3 trials a case find 30 % in all of 100 pairs."""


def words(a: Results, b: Results) -> str:
    """Return what a console shows of two runs."""
    console = Console(width=80, no_color=True)
    with console.capture() as capture:
        console.print(render(a, b, ("one.json", "two.json")))
    return capture.get()


@pytest.mark.parametrize("trials", [1, 2, 3, 6])
def test_a_run_does_not_differ_from_itself(trials: int) -> None:
    run = make_results(QUICK, trials)
    found = compare(run, run)
    assert found.differences == []
    assert len(found.pairs) == len(QUICK) * len(COMPARED)
    assert all(one.found.ratio == 1 for one in found.pairs)
    assert all(one.found.ratio == 1 for one in found.together)
    said = re.fullmatch(
        r"No difference found: (\d+) of 42 comparisons in 6 cases and 7 of all together are ties"
        r"(?:, (\d+) cannot be told)?\. .*",
        conclude(found),
    )
    assert said is not None
    assert int(said[1]) + int(said[2] or 0) == 49
    assert int(said[1]) > 0 or trials == 1


@pytest.mark.parametrize("trials", [3, 4, 5])
def test_two_runs_of_the_same_seldom_differ_anywhere(trials: int) -> None:
    same = 0
    for pair in range(PAIRS // 3):
        a, b = (make_results(QUICK, trials, seed=2 * pair + side) for side in (0, 1))
        same += not compare(a, b).differences
    assert same >= 0.9 * (PAIRS // 3)


@pytest.mark.parametrize("trials", [3, 4, 5])
def test_a_build_that_is_slower_by_30_percent_is_found(trials: int) -> None:
    found = 0
    for pair in range(PAIRS // 3):
        before = make_results(QUICK, trials, seed=2 * pair)
        after = make_results(QUICK, trials, seed=2 * pair + 1, slowdown=1.3)
        differences = compare(before, after).differences
        assert all(one.verdict == "worse" for one in differences)
        found += {"rate", "cpu_us"} <= {one.found.metric.name for one in differences}
    assert found >= 0.9 * (PAIRS // 3)


def test_many_comparisons_are_made_at_a_stricter_level() -> None:
    few, many = (compare(run, run) for run in (make_results(QUICK[:1]), make_results(QUICK)))
    assert 1 - few.level == pytest.approx((1 - LEVEL) / len(COMPARED))
    assert 1 - many.level == pytest.approx((1 - few.level) / (len(QUICK) + 1))
    assert (few.together, len(many.together)) == ([], len(COMPARED))


def test_what_noise_hides_in_each_case_is_seen_in_all_together() -> None:
    found = 0
    for pair in range(PAIRS // 3):
        before = make_results(QUICK, 6, seed=2 * pair, noise=0.15)
        after = make_results(QUICK, 6, seed=2 * pair + 1, noise=0.15, slowdown=1.3)
        told = compare(before, after)
        together = {one.found.metric.name for one in told.differences if one.case is None}
        each = {one.case for one in told.differences if one.found.metric.name == "rate"}
        assert len(each) < len(QUICK)
        found += "rate" in together
    assert found >= 0.9 * (PAIRS // 3)


def test_noise_in_all_cases_is_no_difference_of_all() -> None:
    runs = [make_results(QUICK, 3, seed=seed, noise=0.3) for seed in range(PAIRS // 3)]
    differ = sum(bool(compare(a, b).differences) for a, b in pairwise(runs))
    assert differ <= 0.1 * len(runs)


def test_of_one_trial_all_together_tells_nothing() -> None:
    found = compare(make_results(QUICK, 1), make_results(QUICK, 1, seed=2, slowdown=3))
    assert found.differences == []
    assert {(one.found.low, one.found.high) for one in found.together} == {(0.0, math.inf)}


def test_cases_of_one_trial_borrow_the_noise_of_the_others() -> None:
    a, b = (
        replace(run, trials=[one for one in run.trials if one.repeat == 0 or one.case == QUICK[0]])
        for run in (make_results(QUICK, 6), make_results(QUICK, 6, seed=2, slowdown=2))
    )
    together = {one.found.metric.name: one.verdict for one in compare(a, b).together}
    assert (together["rate"], together["cpu_us"]) == ("worse", "worse")


def test_what_is_better_and_worse_is_told_of_b() -> None:
    slow, fast = make_results(QUICK, slowdown=2, seed=2), make_results(QUICK)
    better, worse = compare(slow, fast), compare(fast, slow)
    assert {one.verdict for one in better.differences} == {"better"}
    assert {one.verdict for one in worse.differences} == {"worse"}
    assert "rate is better in 6 (about 1.9" in conclude(better)
    assert "CPU is worse in 6 (about 1.9" in conclude(worse)


def test_a_case_of_one_run_only_is_told_of_and_in_no_comparison() -> None:
    a, b = make_results(QUICK[:2]), make_results(QUICK[1:3])
    found = compare(a, b)
    assert {one.case for one in found.pairs} == {QUICK[1]}
    assert (found.only_a, found.only_b) == ([QUICK[0]], [QUICK[2]])
    shown = words(a, b)
    assert "Only in A: inherit." in shown
    assert "Only in B: inherit epoll." in shown


def test_runs_without_a_common_valid_case_are_not_called_equal() -> None:
    with pytest.raises(UnreadableError, match="no case"):
        compare(make_results(QUICK[:1]), make_results(QUICK[1:]))
    run = make_results(QUICK[:1])
    invalid = replace(run, trials=[replace(one, invalid="no") for one in run.trials])
    with pytest.raises(UnreadableError, match="no case"):
        compare(run, invalid)


def test_one_trial_a_side_tells_nothing_and_says_so() -> None:
    a, b = (make_results(QUICK[:1], 1, seed=seed, slowdown=seed) for seed in (1, 9))
    assert compare(a, b).differences == []
    assert "too few trials to see any" in conclude(compare(a, b))
    assert "[too few trials]" in words(a, b)


def test_what_would_not_have_been_seen_is_told() -> None:
    sharp, blunt = (make_results(QUICK, noise=noise) for noise in (0.001, 0.2))
    assert "of less than 10 % in one case or 10 % in all" in conclude(compare(sharp, sharp))
    assert "of less than 10 %" not in conclude(compare(blunt, blunt))


def test_cases_without_any_of_it_are_left_out_of_the_mean_of_all() -> None:
    def wasting(each: float) -> Results:
        run = make_results(QUICK)
        some = {QUICK[0]: each, QUICK[1]: each}
        trials = [replace(t, wasted_wakeups=some.get(t.case, 0.0)) for t in run.trials]
        return replace(run, trials=trials)

    told = {one.found.metric.name: one.found for one in compare(wasting(1), wasting(3)).together}
    assert told["wasted_wakeups"].ratio == pytest.approx(3.05 / 1.05)


def test_the_caption_tells_what_is_added_to_both_sides() -> None:
    note = " ".join(words(make_results(QUICK), make_results(QUICK)).split())
    assert "both sides are first added 0.1 (CPU), 0.05 (latency, median)" in note


def test_losses_that_are_sure_are_a_difference() -> None:
    stopped = Case(fault="stopped", mode="reuseport", greetings=400)
    lost = make_results([replace(stopped, rescue=False)])
    as_if_rescued = replace(lost, trials=[replace(one, case=stopped) for one in lost.trials])
    found = compare(make_results([stopped]), as_if_rescued)
    (one,) = (one for one in found.pairs if one.found.metric.name == "lost_percent")
    assert one.verdict == "worse"


def test_another_machine_or_program_is_told_of() -> None:
    a = make_results(QUICK[:1])
    b = replace(a, environment=replace(a.environment, kernel="7.0", commit="fedcba"))
    shown = words(a, b)
    assert "Not the same: kernel 6.18.0 and 7.0." in shown
    assert "commit 0123456789ab+ and fedcba" in shown
    assert "Not the same" not in words(a, a)


def test_the_table_has_a_row_for_each_case_and_metric_and_fits_a_terminal() -> None:
    a, b = make_results(QUICK), make_results(QUICK, slowdown=1.5, seed=3)
    found = sheet(compare(a, b))
    assert [len(group.rows) for group in found.groups] == [len(COMPARED)] * (len(QUICK) + 1)
    shown = words(a, b)
    assert max(map(len, shown.splitlines())) <= 80
    assert "rate, greetings/s" in shown
    assert "worse" in shown


@pytest.mark.parametrize(("value", "told"), [(0.0, "0.000"), (12.34, "12.3"), (63896.4, "63896")])
def test_figures_have_as_many_digits_as_one_reads(value: float, told: str) -> None:
    assert number(value) == told
