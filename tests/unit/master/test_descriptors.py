"""How many descriptors a daemon takes, and how many workers can be had with some."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from greeterd.master.descriptors import most_workers, needed

MODES = st.sampled_from(["inherit", "reuseport", "handoff"])


@given(mode=MODES, workers=st.integers(1, 512), addresses=st.integers(1, 300))
def test_with_what_is_needed_so_many_workers_can_be_had_and_no_more(
    mode: str, workers: int, addresses: int
) -> None:
    files = needed(mode, workers=workers, addresses=addresses)
    assert most_workers(mode, addresses=addresses, files=files) == workers
    assert most_workers(mode, addresses=addresses, files=files - 1) == workers - 1


@given(mode=MODES, addresses=st.integers(1, 300), files=st.integers(0, 20))
def test_with_next_to_none_there_is_no_worker(mode: str, addresses: int, files: int) -> None:
    assert most_workers(mode, addresses=addresses, files=files) == 0


@pytest.mark.shows("limit descriptors")
@pytest.mark.parametrize(
    ("mode", "number"),
    [("inherit", 28 + 10 * 4), ("handoff", 38 + 12 * 4), ("reuseport", 28 + 11 * 4)],
)
def test_the_descriptors_that_a_daemon_needs_depend_on_its_mode(mode: str, number: int) -> None:
    assert needed(mode, workers=4, addresses=1) == number
