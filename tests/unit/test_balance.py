"""How even counts are: against SciPy and NumPy, by the laws of each figure, and in words."""

import math
from collections.abc import Callable

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from greeterd.balance import (
    EXACT_MEAN,
    Evenness,
    balance,
    chance,
    chi_square_tail,
    evenness,
    measure,
)

COUNTS = st.lists(st.integers(0, 10**7), min_size=1, max_size=24)
SOME = COUNTS.filter(lambda counts: sum(counts) > 0)
FIGURES = [field for field in Evenness.__slots__ if field != "jain"]


def close(one: Evenness, other: Evenness) -> bool:
    """Tell whether all figures agree but for rounding."""
    return all(
        getattr(one, name) == pytest.approx(getattr(other, name), rel=1e-9, abs=1e-9)
        for name in Evenness.__slots__
    )


# The figures --------------------------------------------------------------------------------


@settings(deadline=None)
@given(SOME)
def test_the_figures_are_those_of_numpy_and_scipy(counts: list[int]) -> None:
    found, array = evenness(counts), np.array(counts, dtype=float)
    differences = np.abs(array[:, None] - array[None, :]).mean()
    assert found.cv == pytest.approx(array.std() / array.mean(), rel=1e-6, abs=1e-6)
    assert found.gini == pytest.approx(differences / (2 * array.mean()), rel=1e-9, abs=1e-9)
    assert found.jain == pytest.approx(array.sum() ** 2 / (len(array) * (array**2).sum()))
    if len(counts) > 1:
        wanted = stats.chisquare(counts)
        assert found.chi_square == pytest.approx(wanted.statistic, rel=1e-6, abs=1e-6)
        tail = chi_square_tail(found.chi_square, len(counts) - 1)
        assert tail == pytest.approx(wanted.pvalue, rel=1e-6, abs=1e-12)


@settings(deadline=None)
@given(st.integers(1, 600), st.floats(0, 3000))
def test_the_tail_of_chi_square_is_that_of_scipy(degrees: int, value: float) -> None:
    wanted = stats.chi2.sf(value, degrees)
    assert chi_square_tail(value, degrees) == pytest.approx(wanted, rel=1e-6, abs=1e-12)


@given(SOME)
def test_the_figures_stay_within_their_bounds(counts: list[int]) -> None:
    found, k = evenness(counts), len(counts)
    assert 1 / k <= found.jain * (1 + 1e-12)
    assert found.jain <= 1
    assert 0 <= found.cv <= math.sqrt(k - 1) * (1 + 1e-12)
    assert 0 <= found.gini <= (k - 1) / k
    assert 0 <= found.chi_square <= sum(counts) * (k - 1)
    assert found.max_over_min >= 1


@given(SOME, st.randoms(use_true_random=False))
def test_who_has_which_count_does_not_matter(
    counts: list[int], random: Callable[..., object]
) -> None:
    shuffled = list(counts)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert evenness(shuffled) == evenness(counts)


@given(SOME, st.integers(2, 1000))
def test_a_multiple_is_as_even_but_surer(counts: list[int], factor: int) -> None:
    once, often = evenness(counts), evenness([factor * count for count in counts])
    assert close(
        often,
        Evenness(once.max_over_min, once.cv, once.jain, once.gini, factor * once.chi_square),
    )


@given(st.integers(1, 64), st.integers(1, 10**9))
def test_equal_counts_are_perfectly_even(k: int, each: int) -> None:
    assert evenness([each] * k) == Evenness(1.0, 0.0, 1.0, 0.0, 0.0)


@given(st.integers(2, 64), st.integers(1, 10**9))
def test_one_who_has_all_is_the_worst_case(k: int, whole: int) -> None:
    worst = Evenness(math.inf, math.sqrt(k - 1), 1 / k, (k - 1) / k, whole * (k - 1.0))
    assert close(evenness([0] * (k - 1) + [whole]), worst)


# The null -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("workers", "connections"),
    [(2, 30), (3, 12), (4, 4 * EXACT_MEAN), (4, 4 * EXACT_MEAN + 1), (4, 40_000), (7, 500),
     (16, 300), (64, 5000), (300, 900)],
)  # fmt: skip
def test_the_percentiles_are_those_of_numpys_multinomial(workers: int, connections: int) -> None:
    random = np.random.default_rng(20261122)
    drawn = [
        evenness([int(count) for count in draw])
        for draw in random.multinomial(connections, [1 / workers] * workers, size=3000)
    ]
    worst = chance(workers, connections).worst
    for name in FIGURES:
        # A lattice has steps: the value lies between those of two percentiles close by.
        values = sorted(getattr(each, name) for each in drawn)
        low, high = values[int(0.935 * 3000)], values[int(0.965 * 3000)]
        assert low * (1 - 1e-9) <= getattr(worst, name) <= high * (1 + 1e-9), name
    jains = sorted(each.jain for each in drawn)
    assert jains[int(0.035 * 3000)] <= worst.jain * (1 + 1e-9)
    assert worst.jain <= jains[int(0.065 * 3000)] * (1 + 1e-9)


def test_the_null_of_millions_or_of_many_workers_is_drawn_from_as_few_numbers() -> None:
    assert chance(4, 10**9).worst.max_over_min == pytest.approx(1.0, abs=1e-3)
    assert chance(600, 10**6).worst.chi_square == pytest.approx(stats.chi2.isf(0.05, 599))
    assert chance(600, 10**6).worst.cv == pytest.approx(math.sqrt(stats.chi2.isf(0.05, 599) / 1e6))


def test_equal_questions_have_equal_answers() -> None:
    first = chance(5, 77)
    chance.cache_clear()
    assert chance(5, 77) == first


@settings(deadline=None, max_examples=25)
@given(st.lists(st.integers(200, 300), min_size=2, max_size=5))
def test_chi_square_is_beyond_its_percentile_just_when_the_p_value_says_so(
    counts: list[int],
) -> None:
    told = measure(counts)
    assert told.even == (told.p_value >= 0.05) == (told.found.chi_square <= told.chance.chi_square)


# The whole ----------------------------------------------------------------------------------


def test_shares_and_ratios_go_by_slot() -> None:
    told = balance({3: 10, 7: 30})
    assert (told.total, told.counts) == (40, {3: 10, 7: 30})
    assert told.shares == {3: 0.25, 7: 0.75}
    assert told.ratios == {3: 0.5, 7: 1.5}


def test_of_nothing_all_is_even() -> None:
    told = measure([0, 0, 0])
    assert told.shares == {1: 0.0, 2: 0.0, 3: 0.0}
    assert told.found == told.chance == Evenness(1.0, 0.0, 1.0, 0.0, 0.0)
    assert (told.p_value, told.even) == (1.0, True)


@pytest.mark.parametrize("counts", [[], [1, -1]])
def test_what_is_no_set_of_counts_is_refused(counts: list[int]) -> None:
    with pytest.raises(ValueError, match="a balance needs a count"):
        measure(counts)


def test_an_infinite_ratio_is_null_in_json() -> None:
    told = measure([0, 100])
    assert told.found.max_over_min == math.inf
    assert msgspec.json.decode(msgspec.json.encode(told))["found"]["max_over_min"] is None


@pytest.mark.parametrize(
    ("counts", "sentence"),
    [
        ([0, 0], "nothing was counted"),
        ([5], "one worker has all"),
        ([1, 1], "too few to tell: 2 over 2 workers"),
        ([2, 0, 0, 0], "too few to tell: 2 over 4 workers"),
        ([1008, 996, 962, 1034], "as even as chance allows"),
        ([5, 3, 2, 0], "as even as chance allows"),
        ([1000, 1000, 1001, 1000], "more even than chance: as if they took turns"),
        ([500, 500], "as even as chance allows"),
        ([100, 100, 100, 100], "more even than chance: as if they took turns"),
        ([50, 50], "as even as chance allows"),
        ([480, 490, 1300, 500], "worker 3 gets 1.9 times its share"),
        ([1000, 1000, 1290, 1000], "worker 3 gets 1.20 times its share"),
        ([1000, 400, 1000, 1000], "worker 2 gets 0.47 times its share"),
        ([1000, 0, 1000, 1000], "worker 2 gets nothing, worker 1 gets 1.33 times its share"),
        ([0, 9, 0, 90], "workers 1 and 3 get nothing, worker 4 gets 3.6 times its share"),
        ([0, 9, 0, 0, 9], "3 of 5 workers get nothing, worker 2 gets 2.5 times its share"),
        ([0, 20], "worker 2 gets all, the other nothing"),
        ([0, 20, 0], "worker 2 gets all, the others nothing"),
        (
            [100_000, 100_000, 103_000, 100_000],
            "close to even, but not by chance alone: worker 3 gets 1.02 times its share",
        ),
    ],
)
def test_a_sentence_says_it(counts: list[int], sentence: str) -> None:
    assert measure(counts).sentence == sentence


@pytest.mark.parametrize("workers", [2, 3, 4, 16])
@pytest.mark.parametrize("connections", [60, 4000])
def test_chance_is_seldom_said_to_be_more_even_than_itself(workers: int, connections: int) -> None:
    draws = np.random.default_rng(1).multinomial(connections, [1 / workers] * workers, size=1000)
    said = sum("took turns" in measure(draw.tolist()).sentence for draw in draws)
    assert said <= 5
