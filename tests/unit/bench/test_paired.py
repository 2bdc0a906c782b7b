"""Pairs decide, and looking again and again finds nothing where nothing is more often than told."""

import math
from collections.abc import Callable
from random import Random
from statistics import NormalDist

import numpy as np
import pytest
from scipy.special import stdtrit

from greeterd.bench import extras
from greeterd.bench.analysis import paired
from greeterd.bench.analysis.paired import LEVEL_AT_A_LOOK, LOOKS, Ratio, compare, holm
from greeterd.errors import MissingPackageError

DRAWS = 20_000


def looks(difference: float, draws: int = DRAWS, last: int = LOOKS[-1]) -> tuple[float, float]:
    """Return in which shares of runs a difference is found, and no difference of 5 % is excluded.

    Noise of a pair is 8 % as measured; both shares are of the first look that decides.  The
    formulas are those of `compare`, by vectors.
    """
    random = np.random.default_rng(1)
    noise, reach = 0.08, math.log(1.05)
    total, squares = np.zeros(draws), np.zeros(draws)
    open_, found, within = np.ones(draws, bool), 0, 0
    done = 0
    for n in [*(look for look in LOOKS if look < last), last]:
        drawn = random.normal(math.log1p(difference), noise, (n - done, draws))
        total, squares, done = total + drawn.sum(0), squares + (drawn**2).sum(0), n
        mean = total / n
        error = np.sqrt((squares - n * mean**2) / (n - 1) / n)
        half = error * stdtrit(n - 1, (1 + LEVEL_AT_A_LOOK) / 2)
        differs = open_ & (np.abs(mean) > half)
        same = open_ & ~differs & (np.abs(mean) + half < reach)
        found, within = found + differs.sum(), within + same.sum()
        open_ &= ~(differs | same)
    return found / draws, within / draws


def test_a_run_that_stops_when_it_is_decided_finds_a_false_difference_in_5_of_100() -> None:
    found, _ = looks(0.0)
    assert found < 0.05


def any_look(level: float, seed: int) -> float:
    """Return in which share of runs any look finds a difference of this level where there is none.

    Without a bound that ends it, every look is taken.
    """
    random = np.random.default_rng(seed)
    total, squares, done = np.zeros(DRAWS), np.zeros(DRAWS), 0
    hit = np.zeros(DRAWS, bool)
    for n in LOOKS:
        drawn = random.normal(0, 1, (n - done, DRAWS))
        total, squares, done = total + drawn.sum(0), squares + (drawn**2).sum(0), n
        error = np.sqrt((squares - total**2 / n) / (n - 1) / n)
        hit |= np.abs(total / n) > error * stdtrit(n - 1, (1 + level) / 2)
    return float(hit.mean())


def test_a_run_that_is_never_satisfied_finds_a_false_difference_in_5_of_100() -> None:
    assert 0.03 < any_look(LEVEL_AT_A_LOOK, seed=2) < 0.05


@pytest.mark.parametrize("last", [25, 37, 90, 140])
def test_a_run_that_is_cut_short_between_two_looks_has_one_look_more_and_the_same_error(
    last: int,
) -> None:
    found, _ = looks(0.0, last=last)
    assert found < 0.05


def test_without_the_stricter_level_looking_again_would_find_four_times_as_much() -> None:
    assert 0.17 < any_look(0.95, seed=3) < 0.21


def test_a_difference_of_10_percent_is_found_and_one_of_3_percent_in_most_runs() -> None:
    found, _ = looks(0.10, draws=2000)
    assert found > 0.999
    found, within = looks(0.03, draws=2000)
    # 5 % is what matters: a run that has ruled it out is content.
    assert found + within > 0.95


def made(ratio: float, pairs: int, *, drift: float = 0.1, seed: int = 1) -> list[list[float]]:
    """Return values of both sides; the drift of a pair is common to both."""
    random = Random(seed)
    common = [math.exp(random.gauss(0, drift)) for _ in range(pairs)]
    sides: list[list[float]] = [[], []]
    for one in common:
        for side, factor in zip(sides, (1.0, ratio), strict=True):
            side.append(20 * factor * one * math.exp(random.gauss(0, 0.05)))
    return sides


def compared(sides: list[list[float]]) -> Ratio:
    return compare(sides[0], sides[1], level=0.95)


def test_what_drifts_meets_both_of_a_pair() -> None:
    calm, wild = (compared(made(1.1, 25, drift=drift, seed=4)) for drift in (0.0, 1.0))
    assert calm.high / calm.low == pytest.approx(wild.high / wild.low, rel=1e-9)
    assert calm.low > 1


def test_15_pairs_find_10_percent_in_nearly_all_runs_and_nothing_in_95_of_100() -> None:
    """The simulation that led here: own noise 5 %, noise of blocks 10 %, an effect of 10 %."""
    found = [compared(made(1.1, 15, seed=seed)).differs for seed in range(400)]
    false = [compared(made(1.0, 15, seed=seed)).differs for seed in range(400)]
    assert sum(found) >= 0.98 * 400
    assert sum(false) <= 0.05 * 400 + 2 * math.sqrt(0.05 * 0.95 * 400)


def test_the_interval_is_students_of_the_logarithms() -> None:
    one = compare([10.0, 10.0, 10.0], [11.0, 12.0, 13.0], level=0.95)
    logs = [math.log(x) for x in (1.1, 1.2, 1.3)]
    mean = sum(logs) / 3
    deviation = math.sqrt(sum((x - mean) ** 2 for x in logs) / 2)
    reach = 4.302653 * deviation / math.sqrt(3)
    assert one.ratio == pytest.approx(math.exp(mean))
    assert (one.low, one.high) == pytest.approx((math.exp(mean - reach), math.exp(mean + reach)))
    assert one.pairs == 3
    # Student's t of two degrees of freedom has a closed form.
    t = mean / (deviation / math.sqrt(3))
    assert one.p_value == pytest.approx(1 - t / math.sqrt(2 + t * t))


def test_one_pair_finds_nothing() -> None:
    one = compare([10.0], [30.0], level=0.95)
    assert one.ratio == pytest.approx(3.0)
    assert (one.low, one.high, one.p_value) == (0.0, math.inf, 1.0)
    assert not one.decides(0.05)
    assert one.unseen == math.inf


def test_zero_has_a_ratio_where_a_metric_has_a_floor() -> None:
    one = compare([0.0, 0.0], [0.0, 0.0], level=0.95, floor=0.05)
    assert (one.ratio, one.low, one.high, one.p_value) == (1.0, 1.0, 1.0, 1.0)
    one = compare([0.0, 0.0], [1.0, 1.0], level=0.95, floor=0.05)
    assert one.ratio == pytest.approx(21)
    assert one.p_value == 0.0


def ratio(low: float, high: float, pairs: int = 20, spread: float = 0.1) -> Ratio:
    return Ratio(math.sqrt(low * high), low, high, pairs, spread, 0.99, 0.5)


@pytest.mark.parametrize(
    ("low", "high", "differs", "within"),
    [
        (1.01, 1.20, True, False),
        (0.80, 0.99, True, False),
        (0.96, 1.04, False, True),
        (0.94, 1.04, False, False),
        (0.96, 1.06, False, False),
        (1.01, 1.04, True, True),
    ],
)
def test_an_interval_decides_when_it_leaves_out_1_or_is_within_the_precision(
    low: float, high: float, *, differs: bool, within: bool
) -> None:
    one = ratio(low, high)
    assert (one.differs, one.is_within(0.05)) == (differs, within)
    assert one.decides(0.05) == (differs or within)


def test_what_is_not_ruled_out_is_the_farther_end() -> None:
    assert ratio(0.8, 1.1).unseen == pytest.approx(0.25)
    assert ratio(0.98, 1.12).unseen == pytest.approx(0.12)


def test_the_pairs_that_will_decide_are_as_many_as_the_noise_needs() -> None:
    same, different = ratio(0.9, 1 / 0.9), ratio(1.0, 1.0816)
    for one, distance in ((same, math.log(1.05)), (different, math.log(1.04))):
        n = one.wanted(0.05)
        t = NormalDist().inv_cdf(0.995)
        assert t * 0.1 / math.sqrt(n) < distance
        assert n < 2 * (t * 0.1 / distance) ** 2
    assert ratio(0.9, 1.1, pairs=1).wanted(0.05) == LOOKS[0]


def test_holm_multiplies_the_least_by_all_and_stays_in_order() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.9, 0.9]) == [1.0, 1.0]
    assert holm([]) == []


@pytest.mark.parametrize("wanted", [paired.student_quantile, paired.student_cdf])
def test_without_scipy_it_is_told_what_to_install(
    wanted: Callable[[float, int], float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(extras, "find_spec", lambda _name: None)
    with pytest.raises(MissingPackageError, match=r"scipy .*greeterd\[bench\]"):
        wanted(0.5, 3)
