"""Judges how evenly the greetings of a case were spread over workers, each trial by itself.

Counts of several trials are never added up: where every trial favours a worker of its own, the sum
is even.  Instead the trials' chi-squares are added, and so are their degrees of freedom; chance has
so large a sum, or a larger one, with the p-value.  Cases that are judged at once share one error:
their p-values are multiplied as S. Holm (1979) says, so that in a run without any unevenness one
case or more is called uneven with a probability of 5 % at most.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

from greeterd.balance import SURE, Balance, chi_square_tail, evenness, measure
from greeterd.bench.analysis.paired import holm

LEAST: Final = 5
"""Greetings a worker in each trial, without which chi-square is too rough to judge by."""
TURNS: Final = 0.01
"""The probability below which so much evenness is not put down to chance."""
LEAST_DEGREES: Final = 3
"""With fewer, chance too is often perfectly even: 5,000 of 10,000 for each of two workers."""

FAIR: Final = 0.99
"""The Jain index from which on a spread is fair for all that matters: of four, one is 17 % off."""


@dataclass(frozen=True, slots=True)
class Spread:
    """How even a case is."""

    typical: Balance
    """Of the trial whose Jain index is in the middle, or just below it."""
    p_value: float
    """The probability that chance alone is so uneven in as many trials."""
    p_turns: float
    """The probability that chance alone is so even."""
    few: bool
    """There are too few greetings to tell."""

    @property
    def even(self) -> bool:
        """Tell whether chance may well be all that made it uneven."""
        return self.few or self.p_value >= SURE

    @property
    def fair(self) -> bool:
        """Tell whether it is even for all that matters, be it less than chance."""
        return self.even or self.typical.found.jain >= FAIR

    @property
    def sentence(self) -> str:
        """Return it in words."""
        told = self.typical
        if len(told.counts) == 1 or not told.total:
            return told.sentence
        if self.few:
            return f"too few to tell: {told.total} over {len(told.counts)} workers"
        if self.p_value < SURE:
            return "less even than chance over all trials" if told.even else told.sentence
        if self.p_turns < TURNS:
            return "more even than chance: as if they took turns"
        return "as even as chance allows"


def spread_of(trials: Sequence[Sequence[int]]) -> Spread | None:
    """Return how even the trials are, each given as greetings by slot; None when none tells."""
    told = sorted((counts for counts in trials if counts), key=lambda each: evenness(each).jain)
    if not told:
        return None
    value, degrees = summed_chi_square(told)
    tail = chi_square_tail(value, degrees)
    return Spread(
        typical=measure(told[(len(told) - 1) // 2]),
        p_value=tail,
        p_turns=1 - tail if degrees >= LEAST_DEGREES else 1.0,
        few=any(sum(counts) < LEAST * len(counts) for counts in told),
    )


def summed_chi_square(trials: Sequence[Sequence[int]]) -> tuple[float, int]:
    """Return the sum of the trials' chi-squares, and its degrees of freedom."""
    value = sum(evenness(counts).chi_square for counts in trials)
    return value, sum(len(counts) - 1 for counts in trials)


def judge_together(spreads: Sequence[Spread | None]) -> list[Spread | None]:
    """Return the spreads of one run with p-values that hold for all of them together."""
    told = [
        index
        for index, one in enumerate(spreads)
        if one is not None and not one.few and len(one.typical.counts) > 1
    ]
    mine = [one for index in told if (one := spreads[index]) is not None]
    uneven = holm([one.p_value for one in mine])
    turns = holm([one.p_turns for one in mine])
    found = list(spreads)
    for index, one, p_value, p_turns in zip(told, mine, uneven, turns, strict=True):
        found[index] = replace(one, p_value=p_value, p_turns=p_turns)
    return found
