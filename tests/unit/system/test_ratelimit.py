"""Which warnings are told."""

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from greeterd.system.ratelimit import RateLimit


def test_the_first_is_told_and_the_rest_of_the_period_is_not() -> None:
    limit = RateLimit(10.0)
    assert limit.admit("oversize", 100.0) == 0
    assert limit.admit("oversize", 100.0) is None
    assert limit.admit("oversize", 109.9) is None


def test_the_next_one_told_says_how_many_were_kept_back() -> None:
    limit = RateLimit(10.0)
    for now in (0.0, 1.0, 2.0, 3.0):
        limit.admit("oversize", now)
    assert limit.admit("oversize", 10.0) == 3
    assert limit.admit("oversize", 20.0) == 0


def test_one_key_does_not_silence_another() -> None:
    limit = RateLimit(10.0)
    limit.admit("oversize", 0.0)
    limit.admit("oversize", 1.0)
    assert limit.admit("timeout", 1.0) == 0


@given(st.lists(st.integers(0, 30), max_size=60))
def test_every_call_is_told_or_counted_and_told_ones_are_a_period_apart(steps: list[int]) -> None:
    limit = RateLimit(10)
    now, told, accounted, kept_back = 0, [], 0, 0
    for step in steps:
        now += step
        suppressed = limit.admit("k", now)
        if suppressed is None:
            kept_back += 1
        else:
            told.append(now)
            accounted += suppressed
            assert accounted == kept_back
    assert all(later - earlier >= 10 for earlier, later in pairwise(told))
    assert len(told) + kept_back == len(steps)
