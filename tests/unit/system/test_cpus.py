"""Lists of CPUs, as text and back."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from greeterd.system.cpus import MAX_CPU, parse_cpus, render_cpus


@pytest.mark.parametrize(
    ("text", "cpus"),
    [
        ("0", (0,)),
        ("0,2-3", (0, 2, 3)),
        ("2-3,0", (2, 3, 0)),
        (" 1 , 4-4 ", (1, 4)),
        (f"{MAX_CPU}", (MAX_CPU,)),
    ],
)
def test_a_list_is_read_in_its_order(text: str, cpus: tuple[int, ...]) -> None:
    assert parse_cpus(text) == cpus


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "looks like 0,2-3"),
        ("0,", "looks like 0,2-3"),
        ("a", "looks like 0,2-3"),
        ("-1", "looks like 0,2-3"),
        ("1-", "looks like 0,2-3"),
        ("٣", "looks like 0,2-3"),
        ("9" * 5000, "looks like 0,2-3"),
        ("3-2", "3-2 is no range of CPUs"),
        ("8192", "8192 is no range of CPUs between 0 and 8191"),
        ("0-999999999", "is no range"),
        ("0-2,1", "CPU 1 is listed twice"),
    ],
)
def test_what_is_no_list_is_refused_with_a_reason(text: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        parse_cpus(text)


def test_runs_are_written_as_ranges_and_the_order_is_kept() -> None:
    assert render_cpus([0, 1, 2, 5, 4, 7, 8]) == "0-2,5,4,7-8"
    assert render_cpus([]) == ""


@given(st.lists(st.integers(0, MAX_CPU), min_size=1, unique=True))
def test_what_is_written_is_read(cpus: list[int]) -> None:
    assert parse_cpus(render_cpus(cpus)) == tuple(cpus)
