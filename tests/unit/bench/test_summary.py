"""Trials are summed up by the case, with intervals that hold as often as they say."""

from random import Random

import pytest
from msgspec.structs import replace

from greeterd.bench.analysis.summary import median_interval, summarise, values_of
from greeterd.bench.latencies import merge_latency
from greeterd.bench.metrics import METRICS
from greeterd.bench.model import Case, Held, Latency, Results
from tests.bench_results import make_results, spread

CLOSED = [Case(greetings=2000), Case(mode="reuseport", greetings=2000)]
EXCLUSIVE = Case(wait="exclusive", greetings=2000)


@pytest.mark.parametrize("number", [6, 8, 12, 20, 45])
@pytest.mark.parametrize("draw", [Random.random, lambda random: random.lognormvariate(0, 2)])
def test_an_interval_holds_the_median_in_95_of_100_cases(number: int, draw: object) -> None:
    random = Random(number)
    median = 0.5 if draw is Random.random else 1.0
    held = 0
    for _ in range(2000):
        found = median_interval([draw(random) for _ in range(number)])  # type: ignore[operator]
        held += found.low <= median <= found.high
    assert held >= 0.94 * 2000


def test_the_interval_of_few_is_their_range_and_of_more_it_leaves_the_ends_out() -> None:
    assert (median_interval([3.0]).low, median_interval([3.0]).high) == (3.0, 3.0)
    found = median_interval([5.0, 1.0, 3.0])
    assert (found.low, found.median, found.high, found.trials) == (1.0, 3.0, 5.0, 3)
    values = [float(n) for n in range(1, 21)]
    # David and Nagaraja: of 20 values, the 6th and the 15th hold the median with 95.9 %.
    assert (median_interval(values).low, median_interval(values).high) == (6.0, 15.0)


def test_a_figure_is_of_valid_trials_only() -> None:
    run = make_results(CLOSED, 5)
    first, *others = run.trials
    bad = replace(run, trials=[replace(first, invalid="it hung", cpu_user_us=1e9), *others])
    one = next(one for one in summarise(bad) if one.case == first.case)
    assert (len(one.trials), one.invalid) == (4, 1)
    assert one.figures["cpu_us"].high < 1000


def test_a_metric_that_some_trial_does_not_tell_is_no_figure() -> None:
    run = make_results(CLOSED, 5)
    first, *others = run.trials
    trials = [replace(first, switches_voluntary=None), *others]
    assert values_of(METRICS["switches"], trials) == []
    assert len(values_of(METRICS["cpu_us"], trials)) == 10
    assert len(values_of(METRICS["rate"], [replace(first, rate=0.0), *others])) == 9


def test_a_case_without_a_fault_has_all_its_clients() -> None:
    (one,) = summarise(make_results(CLOSED[:1], 5))
    assert (one.sent, one.lost, one.faults) == (10_000, 0, 0)
    assert sum(one.per_worker) == 10_000


def favouring_each_in_turn(run: Results) -> Results:
    """Return trials of which each favours another worker, so that their sum is even."""
    counts = [[3970 if slot == n else 10 for slot in range(4)] for n in range(4)]
    return replace(run, trials=[replace(t, per_worker=counts[t.pair]) for t in run.trials])


def test_trials_that_favour_workers_in_turn_are_uneven() -> None:
    one, _ = summarise(favouring_each_in_turn(make_results([EXCLUSIVE, CLOSED[0]], 4)))
    assert one.per_worker == (4000, 4000, 4000, 4000)
    assert one.spread is not None
    assert not one.spread.even
    assert not one.spread.fair
    assert one.spread.typical.found.jain == pytest.approx(0.2538, abs=1e-4)


@pytest.mark.parametrize(
    ("counts", "even", "fair"),
    [
        ([500, 510, 490, 500], True, True),
        ([5500, 5000, 5000, 4500], False, True),
        ([900, 500, 500, 100], False, False),
    ],
)
def test_what_is_less_even_than_chance_may_be_fair(
    counts: list[int], *, even: bool, fair: bool
) -> None:
    run = make_results(CLOSED[:1], 5)
    run = replace(run, trials=[replace(one, per_worker=counts) for one in run.trials])
    (one,) = summarise(run)
    assert one.spread is not None
    assert (one.spread.even, one.spread.fair) == (even, fair)


def test_of_too_few_greetings_no_evenness_is_claimed() -> None:
    cases = [replace(EXCLUSIVE, workers=64), replace(CLOSED[0], workers=4)]
    run = make_results(cases)
    counts = {64: [5] * 42 + [4] * 22, 4: [3, 1, 0, 0]}
    run = replace(run, trials=[replace(t, per_worker=counts[t.case.workers]) for t in run.trials])
    told = {one.spread.sentence for one in summarise(run) if one.spread}
    assert told == {"too few to tell: 298 over 64 workers", "too few to tell: 4 over 4 workers"}


def test_what_chance_makes_of_few_greetings_and_many_workers_is_no_favour() -> None:
    run, random = make_results([replace(EXCLUSIVE, workers=64)]), Random(3)
    trials = [replace(t, per_worker=spread(Case(workers=64), 400, random)) for t in run.trials]
    (one,) = summarise(replace(run, trials=trials))
    assert one.spread is not None
    assert one.spread.fair


HASHED = [
    replace(CLOSED[1], workers=n, concurrency=c) for n in (2, 4, 8, 16) for c in (1, 8, 16, 32, 64)
]


def test_reports_of_perfect_hashing_seldom_find_it_uneven_or_taking_turns() -> None:
    uneven = turns = 0
    for seed in range(40):
        told = [one.spread for one in summarise(make_results(HASHED, 3, seed=seed)) if one.spread]
        uneven += not all(one.even for one in told)
        turns += any("turns" in one.sentence for one in told)
    assert uneven <= 6  # 2 are to be expected, of 40
    assert turns <= 4


def test_a_census_stands_beside_the_case_that_it_is_of() -> None:
    run = make_results(CLOSED, 2)
    held = Held(case=CLOSED[1], kind="held", per_process={7: 3, 8: 5})
    one, other = summarise(replace(run, held=[held]))
    assert (one.held, other.held) == ((), (held,))


def test_a_percentile_among_the_lost_is_not_known() -> None:
    parts = [Latency(count=98, missing=2, p50=1.0, p90=2.0, p99=3.0, curve=[(50.0, 1.0)])]
    (one,) = summarise(make_results(CLOSED[:1], 2))
    lossy = replace(merge_latency(parts), curve=[(50.0, 1.0), (95.0, 4.0), (100.0, 9.0)])
    from dataclasses import replace as changed  # noqa: PLC0415

    one = changed(one, latency=lossy)
    assert one.percentile(99) is None
    assert one.percentile(90) == 4.0
