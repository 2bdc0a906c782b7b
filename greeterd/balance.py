"""Says how evenly connections are spread over workers, beside how evenly chance spreads them.

The null hypothesis is that each connection chose its worker with equal probability and on its own,
which is what hashing of many different clients comes to.  Its 95th percentiles stand beside every
figure, because a figure alone cannot be read: of 4,000 connections over 4 workers, the busiest has
6 % more than the idlest by chance alone in half of all cases.

Figures, of counts c over k workers with mean m:
- max/min: infinite when a worker has none (JSON by msgspec then says null);
- cv: the standard deviation of the counts (of all, not of a sample) over m;
- jain: sum(c)^2 / (k * sum(c^2)), from 1/k (one has all) to 1 (R. Jain et al., 1984, DEC-TR-301);
- gini: the mean difference of two counts over 2 * m, from 0 to (k - 1) / k;
- chi-square: sum((c - m)^2) / m, with k - 1 degrees of freedom; its p-value is the probability of
  so large a value, or a larger one, under the null, and rough where m is below 5.
With n connections in all, chi-square = n * cv^2 and jain = 1 / (1 + cv^2): these three are one.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from random import Random
from typing import Final

MOST_DRAWS: Final = 2000
"""Simulated spreads from which percentiles are read: those of max/min and gini err by about 2 %."""
LEAST_DRAWS: Final = 200
"""Of very many workers, where one spread is much like the other."""
DRAWN_COUNTS: Final = 64_000
"""How many counts are drawn in all: some 20 ms of work for 4 workers, 0.2 s for 512."""
EXACT_MEAN: Final = 20
"""Up to so many connections a worker each one is drawn; beyond, counts come from the normal curve,
which has become the multinomial distribution's shape by then."""
BYTE: Final = 256
SURE: Final = 0.05
"""The probability below which a spread is not put down to chance."""
TURNS: Final = 0.001
"""The probability below which a spread is so even that chance is not believed."""
NEARLY: Final = 0.1
"""Shares that differ by so little from the fair one are called close to it, however sure it is."""


@dataclass(frozen=True, slots=True)
class Evenness:
    """The figures that are read off one set of counts."""

    max_over_min: float
    cv: float
    jain: float
    gini: float
    chi_square: float


@dataclass(frozen=True, slots=True)
class Chance:
    """What chance alone makes of so many connections."""

    worst: Evenness
    """95th percentiles; of jain, where small is uneven, the 5th."""
    best_chi_square: float
    """What chance is below so seldom that it is not believed (TURNS), as far as draws can tell."""


@dataclass(frozen=True, slots=True)
class Balance:
    """A set of counts, how even it is, and what chance would make of as many connections."""

    counts: dict[int, int]
    total: int
    shares: dict[int, float]
    """Fractions of the whole; 0 for all when nothing was counted."""
    ratios: dict[int, float]
    """Shares as multiples of the fair share, which is the same for all."""
    found: Evenness
    chance: Evenness
    """95th percentiles under the null; of jain, where small is uneven, the 5th."""
    p_value: float
    even: bool
    """Chance may well be all that made it uneven: the p-value is 0.05 or more."""
    sentence: str


def balance(counts: Mapping[int, int]) -> Balance:
    """Return how evenly the counts, by slot, are spread.

    Raises:
        ValueError: there is no slot, or a count is negative.

    """
    values = list(counts.values())
    if not values or min(values) < 0:
        raise ValueError("a balance needs a count of 0 or more for one slot at least")
    whole, k = sum(values), len(values)
    found, null = evenness(values), chance(k, whole)
    p_value = chi_square_tail(found.chi_square, k - 1)
    ratios = {slot: count * k / whole if whole else 0.0 for slot, count in counts.items()}
    even = p_value >= SURE
    if not even:
        sentence = _uneven(counts, ratios)
    elif p_value > 1 - TURNS and found.chi_square < null.best_chi_square:
        # The draws know of what the p-value does not: equal counts of two workers are no wonder.
        sentence = "more even than chance: as if they took turns"
    else:
        sentence = _even(k, whole)
    return Balance(
        counts=dict(counts),
        total=whole,
        shares={slot: ratio / k for slot, ratio in ratios.items()},
        ratios=ratios,
        found=found,
        chance=null.worst,
        p_value=p_value,
        even=even,
        sentence=sentence,
    )


def measure(counts: Sequence[int]) -> Balance:
    """Return the balance of the counts of slots 1, 2, 3 ...; as `balance`."""
    return balance(dict(enumerate(counts, 1)))


def evenness(counts: Sequence[int]) -> Evenness:
    """Return the figures of these counts; of nothing at all, those of perfect evenness."""
    k, whole = len(counts), sum(counts)
    if whole == 0:
        return Evenness(1.0, 0.0, 1.0, 0.0, 0.0)
    # In whole numbers as far as possible: equal counts are to give 0 and 1, not nearly.
    squares = sum(count * count for count in counts)
    excess = k * squares - whole * whole
    ranks = sum((2 * rank - k - 1) * count for rank, count in enumerate(sorted(counts), 1))
    return Evenness(
        max_over_min=max(counts) / min(counts) if min(counts) else math.inf,
        cv=math.sqrt(excess) / whole,
        jain=whole * whole / (k * squares),
        gini=ranks / (k * whole),
        chi_square=excess / whole,
    )


@lru_cache(maxsize=256)
def chance(workers: int, connections: int) -> Chance:
    """Return the percentiles of each figure if chance alone spreads the connections.

    Simulated, with a seed of its own, so that equal questions have equal answers.  Up to EXACT_MEAN
    connections a worker (of 256 workers; of more, as many in all) the draws are those of the null
    itself.  Beyond, they are normal ones with its means and covariances, so that millions cost no
    more, and chi-square is its limit, from which the p-value comes too: it is above its percentile
    just when the p-value is below 0.05.
    """
    random = Random(f"{workers} {connections}")  # noqa: S311 - a simulation
    exact = connections <= EXACT_MEAN * min(workers, BYTE)
    draw = _draw_each if exact else _draw_normal
    number = max(LEAST_DRAWS, min(MOST_DRAWS, DRAWN_COUNTS // workers))
    drawn = [evenness(draw(random, workers, connections)) for _ in range(number)]
    squares = sorted(each.chi_square for each in drawn)
    upper = math.ceil(0.95 * number) - 1
    high = squares[upper] if exact else _chi_square_quantile(workers - 1)
    variance = high / connections if connections else 0.0
    worst = Evenness(
        max_over_min=sorted(each.max_over_min for each in drawn)[upper],
        cv=math.sqrt(variance),
        jain=1 / (1 + variance),
        gini=sorted(each.gini for each in drawn)[upper],
        chi_square=high,
    )
    return Chance(worst, best_chi_square=squares[int(TURNS * number)])


def chi_square_tail(value: float, degrees: int) -> float:
    """Return the probability that chi-square with these degrees of freedom is `value` or more.

    The regularized upper incomplete gamma function Q(degrees/2, value/2), for a whole or half first
    argument: a finite sum for even degrees, and erfc with a finite sum for odd ones (M. Abramowitz
    and I. Stegun, Handbook of Mathematical Functions, 26.4.4 and 26.4.5).
    """
    half = value / 2
    if degrees < 1 or half <= 0:
        return 1.0
    if degrees % 2:
        total, exponent = math.erfc(math.sqrt(half)), 0.5
    else:
        total, exponent = math.exp(-half), 1.0
    while exponent < degrees / 2:
        # Each term in logarithms, or exp(-half) alone would be 0 for large values.
        total += math.exp(exponent * math.log(half) - half - math.lgamma(exponent + 1))
        exponent += 1
    return min(1.0, total)


def _chi_square_quantile(degrees: int) -> float:
    """Return the value that chi-square exceeds with a probability of 0.05; 0 without freedom."""
    if degrees < 1:
        return 0.0
    low, high = 0.0, degrees + 5 * math.sqrt(2 * degrees) + 5
    while high - low > high * 1e-9:
        middle = (low + high) / 2
        low, high = (middle, high) if chi_square_tail(middle, degrees) > SURE else (low, middle)
    return high


def _draw_each(random: Random, workers: int, connections: int) -> list[int]:
    """Draw a worker for each connection."""
    if workers > BYTE:
        chosen = Counter(random.choices(range(workers), k=connections))
        return [chosen[worker] for worker in range(workers)]
    # Ten times as fast: bytes that no worker has an equal part of are left out, and more are drawn.
    fair = BYTE - BYTE % workers
    table, others = bytes(byte % workers for byte in range(BYTE)), bytes(range(fair, BYTE))
    drawn = b""
    while len(drawn) < connections:
        drawn += random.randbytes(2 * (connections - len(drawn))).translate(table, others)
    drawn = drawn[:connections]
    return [drawn.count(worker) for worker in range(workers)]


def _draw_normal(random: Random, workers: int, connections: int) -> list[int]:
    """Draw counts with the multinomial's means and variances; their sum is nearly `connections`.

    The last term bends the curve as the Poisson distribution is bent (Cornish-Fisher, skewness).
    """
    mean = connections / workers
    drawn = [random.gauss(0.0, 1.0) for _ in range(workers)]
    middle, width = sum(drawn) / workers, math.sqrt(mean)
    centred = [each - middle for each in drawn]
    return [max(0, round(mean + width * each + (each * each - 1) / 6)) for each in centred]


def _even(k: int, whole: int) -> str:
    if whole == 0:
        return "nothing was counted"
    if k == 1:
        return "one worker has all"
    if chi_square_tail(whole * (k - 1), k - 1) >= SURE:
        return f"too few to tell: {whole} over {k} workers"
    return "as even as chance allows"


def _uneven(counts: Mapping[int, int], ratios: Mapping[int, float]) -> str:
    """Name the worker that is farthest from its share; those who get nothing come first."""
    k = len(counts)
    most, least = max(ratios, key=ratios.__getitem__), min(ratios, key=ratios.__getitem__)
    idle = [slot for slot, count in counts.items() if count == 0]
    if len(idle) == k - 1:
        return f"worker {most} gets all, the other{'s' if k > 2 else ''} nothing"  # noqa: PLR2004
    above = f"worker {most} gets {_times(ratios[most])} its share"
    if idle:
        return f"{_idle(idle, k)} nothing, {above}"
    below = f"worker {least} gets {_times(ratios[least])} its share"
    chief = above if ratios[most] - 1 >= 1 - ratios[least] else below
    if max(ratios[most] - 1, 1 - ratios[least]) < NEARLY:
        return f"close to even, but not by chance alone: {chief}"
    return chief


def _idle(idle: Sequence[int], k: int) -> str:
    match idle:
        case [one]:
            return f"worker {one} gets"
        case [one, other]:
            return f"workers {one} and {other} get"
        case _:
            return f"{len(idle)} of {k} workers get"


def _times(ratio: float) -> str:
    return f"{ratio:.1f} times" if ratio >= 1.5 else f"{ratio:.2f} times"  # noqa: PLR2004 - two digits
