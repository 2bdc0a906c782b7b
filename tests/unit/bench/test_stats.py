"""Medians have intervals that hold them, and what noise hides is not told to be anything."""

import math
import statistics
from random import Random
from typing import Any

import pytest
from msgspec.structs import replace
from scipy import stats as scipy

from greeterd.bench.analysis.stats import (
    LEVEL,
    TIE,
    Noise,
    combined_noise,
    compare_values,
    median_interval,
    pooled_noise,
    summarise,
)
from greeterd.bench.analysis.student import student_cdf, student_quantile
from greeterd.bench.latencies import merge_latency, percentile
from greeterd.bench.metrics import COMPARED, METRICS
from greeterd.bench.model import Case, Latency, Trial
from tests.bench_results import make_results

RATE = METRICS["rate"]
CPU = METRICS["cpu_us"]


@pytest.mark.parametrize("degrees", [1, 2, 3, 4, 5, 12, 31])
def test_students_t_is_that_of_scipy(degrees: int) -> None:
    for t in (0.0, 0.3, 1.0, 2.5, 12.0):
        assert student_cdf(t, degrees) == pytest.approx(scipy.t.cdf(t, degrees), abs=1e-12)
    for probability in (0.5, 0.9, 0.975, 0.9999):
        wanted = scipy.t.ppf(probability, degrees)
        assert student_quantile(probability, degrees) == pytest.approx(wanted, rel=1e-9, abs=1e-9)


@pytest.mark.parametrize(
    ("n", "coverage"), [(1, 0.0), (2, 0.5), (3, 0.75), (5, 0.9375), (7, 0.984375)]
)
def test_of_few_trials_the_interval_is_the_range(n: int, coverage: float) -> None:
    values = [5.0, 1.0, 4.0, 2.0, 3.0, 7.0, 6.0][:n]
    found = median_interval(values)
    assert (found.low, found.high) == (min(values), max(values))
    assert (found.trials, found.coverage) == (n, coverage)


@pytest.mark.parametrize("draw", ["gauss", "expovariate"])
@pytest.mark.parametrize("n", [3, 5, 6, 7, 8, 9, 11, 13, 20])
def test_an_interval_holds_the_median_as_often_as_it_says(n: int, draw: str) -> None:
    random, rounds = Random(n), 800
    true = math.log(2) if draw == "expovariate" else 10.0

    def value() -> float:
        return random.expovariate(1) if draw == "expovariate" else random.gauss(10, 1)

    found = [median_interval([value() for _ in range(n)]) for _ in range(rounds)]
    hits = sum(one.low <= true <= one.high for one in found)
    assert all(one.low <= one.median <= one.high for one in found)
    # Three standard errors of so many rounds.
    claimed = found[0].coverage
    assert hits / rounds > claimed - 3 * math.sqrt(claimed * (1 - claimed) / rounds)


def test_an_interval_gets_narrower_with_more_trials_and_is_the_same_each_time() -> None:
    random = Random(1)
    values = [random.gauss(10, 1) for _ in range(100)]
    few, many = median_interval(values[:8]), median_interval(values)
    assert many.high - many.low < few.high - few.low
    assert many == median_interval(values)
    assert many.median == statistics.median(values)


def test_a_large_difference_is_told_with_its_direction() -> None:
    low, high = [98.0, 100, 102], [198.0, 200, 202]
    faster = compare_values(low, high, RATE)
    assert faster is not None
    assert faster.verdict == "b better"
    assert faster.ratio == pytest.approx(2)
    assert faster.low < faster.ratio < faster.high
    slower, dearer = compare_values(high, low, RATE), compare_values(low, high, CPU)
    assert slower is not None
    assert dearer is not None
    assert (slower.verdict, dearer.verdict) == ("a better", "a better")


@pytest.mark.parametrize(
    ("a", "b", "verdict"),
    [
        ([100.0, 101, 102], [100.0, 101, 102], "tie"),
        ([100.0, 100, 100], [100 * TIE - 1] * 3, "tie"),  # sure, and too small to matter
        ([60.0, 100, 160], [60.0, 100, 160], "cannot be told"),  # equal medians, much noise
        ([60.0, 100, 160], [70.0, 120, 190], "cannot be told"),
        ([99.0, 100, 101], [106.9, 108, 109.1], "cannot be told"),  # 5 %, or more than 10 %
        ([100.0], [300.0], "cannot be told"),  # nothing is known of the noise
        ([1.0], [92.0], "cannot be told"),
    ],
)
def test_a_tie_is_told_only_where_a_difference_is_ruled_out(
    a: list[float], b: list[float], verdict: str
) -> None:
    found = compare_values(a, b, RATE)
    assert found is not None
    assert found.verdict == verdict


def test_one_trial_a_side_has_no_interval_until_others_tell_of_the_noise() -> None:
    alone = compare_values([100.0], [200.0], RATE)
    helped = compare_values([100.0], [200.0], RATE, others=Noise(0.0025, 20))
    assert alone is not None
    assert helped is not None
    assert (alone.low, alone.high) == (0.0, math.inf)
    assert helped.verdict == "b better"


def test_a_case_that_is_noisier_than_the_others_stands_on_its_own() -> None:
    a, b = [50.0, 100, 200], [100.0, 200, 400]
    with_others = compare_values(a, b, RATE, others=Noise(0.0001, 20))
    assert with_others == compare_values(a, b, RATE)


def test_a_stricter_level_has_a_wider_interval() -> None:
    a, b = [100.0, 101, 103], [110.0, 112, 115]
    usual, strict = compare_values(a, b, RATE), compare_values(a, b, RATE, level=0.999)
    assert usual is not None
    assert strict is not None
    assert strict.low < usual.low < usual.high < strict.high


def test_nothing_is_compared_with_what_was_not_measured() -> None:
    assert compare_values([], [1.0], RATE) is None
    assert compare_values([1.0], [], RATE) is None


def test_differences_of_next_to_nothing_are_none() -> None:
    found = compare_values([0.0, 0, 0], [0.001, 0.001, 0.001], METRICS["wasted_wakeups"])
    assert found is not None
    assert found.verdict == "tie"


def test_the_false_alarms_are_as_rare_as_the_level_says() -> None:
    random, alarms, rounds = Random(7), 0, 1000
    for _ in range(rounds):
        a, b = ([math.exp(random.gauss(0, 0.3)) for _ in range(4)] for _ in "ab")
        found = compare_values(a, b, RATE)
        alarms += found is not None and found.verdict in {"a better", "b better"}
    assert 0.005 < alarms / rounds < 1 - LEVEL + 0.02


def test_noise_is_weighted_by_what_it_was_estimated_from() -> None:
    assert combined_noise([Noise(1.0, 1), Noise(4.0, 3), Noise()]) == Noise(3.25, 4)
    assert combined_noise([]) == pooled_noise([[1.0], []]) == Noise()
    found = pooled_noise([[1.0, math.e], [5.0, 5.0]])
    assert found.variance == pytest.approx(0.25)
    assert found.degrees == 2


def test_invalid_trials_are_numbered_and_in_no_figure() -> None:
    results = make_results([Case(greetings=400)], 4)
    bad = replace(results.trials[1], invalid="the counts disagree", rate=1e9, per_worker=[9, 9, 9])
    (one,) = summarise(replace(results, trials=[results.trials[0], bad, *results.trials[2:]]))
    assert (one.valid, one.invalid) == (3, 1)
    assert one.figures["rate"].high < 1e9
    assert len(one.per_worker) == 4


def test_cases_are_summed_up_in_the_order_of_their_first_trials() -> None:
    cases = [Case(mode=mode, greetings=400) for mode in ("reuseport", "handoff", "inherit")]
    assert [one.case for one in summarise(make_results(cases, 2))] == cases


def test_a_case_without_a_valid_trial_has_no_figures() -> None:
    failed = Trial(case=Case(), repeat=0, order=0, began="", invalid="the daemon died")
    results = replace(make_results([Case(greetings=400)], 1), trials=[failed])
    (one,) = summarise(results)
    assert one.figures == {}
    assert one.spread is None
    assert one.latency == Latency()


def test_every_metric_has_a_value_of_a_trial_and_a_title_with_a_unit() -> None:
    (trial,) = make_results([Case(greetings=400)], 1).trials
    for metric in METRICS.values():
        assert metric.of(trial) is not None, metric.name
        assert metric.title
        assert metric.unit
    assert {metric.name for metric in COMPARED} >= {"rate", "cpu_us", "p99_ms", "jain"}


def test_latencies_without_histograms_are_medians_of_percentiles() -> None:
    parts = [Latency(count=10, p50=p50, max=2 * p50) for p50 in (1.0, 2.0, 9.0)]
    found = merge_latency([*parts, Latency()])
    assert (found.count, found.p50, found.max) == (30, 2.0, 18.0)


CURVE = [(p, p / 10) for p in (0.0, 25.0, 50.0, 66.7, 75.0, 100.0)]


@pytest.mark.parametrize(
    ("missing", "p50", "p99"),
    [(0, 5.0, 9.9), (25, 6.67, None), (100, 10.0, None), (101, None, None)],
)
def test_who_was_lost_is_slower_than_any_other(
    missing: int, p50: float | None, p99: float | None
) -> None:
    of = Latency(count=100 - missing if missing < 100 else 100, p50=5, p99=9.9, curve=CURVE,
                 missing=missing, max=10)  # fmt: skip
    assert (percentile(of, 50), percentile(of, 99)) == (p50, p99)


def test_the_lost_of_all_trials_are_lost_to_all_together() -> None:
    served, none = Latency(count=10, p50=1.0, missing=2), Latency(missing=8)
    assert merge_latency([served, none]).known == 50
    assert percentile(merge_latency([none]), 50) is None


def test_a_metric_that_some_trials_do_not_tell_has_no_figure() -> None:
    run = make_results([Case(greetings=400)], 3)
    lossy = run.trials[0].load
    assert lossy is not None
    lossy = replace(lossy, latency=replace(lossy.latency, missing=100))
    run = replace(run, trials=[replace(run.trials[0], load=lossy), *run.trials[1:]])
    (one,) = summarise(run)
    assert "p99_ms" not in one.figures
    assert one.figures["p50_ms"].trials == 3


@pytest.mark.parametrize("arrival", ["constant", "poisson", "burst"])
def test_a_rate_that_is_the_clients_is_no_figure(arrival: Any) -> None:
    (one,) = summarise(make_results([Case(arrival=arrival, rate=500.0, greetings=400)], 3))
    assert {"rate", "seconds"}.isdisjoint(one.figures)
    assert "cpu_us" in one.figures


def test_what_only_greeterd_counts_is_no_figure_of_a_peer() -> None:
    (one,) = summarise(make_results([Case(server="uvloop", greetings=400)], 3))
    assert {"wakeups", "wasted_wakeups", "jain"}.isdisjoint(one.figures)
