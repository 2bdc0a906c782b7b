"""The names of descriptors in the service manager's store."""

from hashlib import sha256

import pytest
from hypothesis import given
from hypothesis import strategies as st

from greeterd.master.systemd.fdstore import PREFIX, Stored, label_of, parse_name

LABELS = st.text(min_size=1, max_size=120).map(label_of)
NUMBERS = st.integers(0, 2**63)


@given(
    st.one_of(
        st.builds(Stored, label=LABELS),
        st.builds(Stored, label=LABELS, guard=st.just(True)),
        st.builds(Stored, label=LABELS, slot=NUMBERS, index=NUMBERS),
        st.builds(Stored, label=LABELS, file=st.tuples(NUMBERS, NUMBERS)),
    )
)
def test_a_name_is_one_for_systemd_and_tells_all(stored: Stored) -> None:
    name = stored.name
    assert name.startswith(PREFIX)
    assert len(name) <= 255
    assert name.isascii()
    assert name.isprintable()
    assert ":" not in name
    assert parse_name(name) == stored


def test_names_can_be_read_by_people() -> None:
    label = label_of("[::1]:80")
    assert Stored(label=label).name == "escrow/shared/[%3A%3A1]%3A80"
    assert Stored(label=label, guard=True).name == "escrow/guard/[%3A%3A1]%3A80"
    assert Stored(label=label, slot=3, index=0).name == "escrow/slot-3-index-0/[%3A%3A1]%3A80"


def test_fdstore_names_entries_as_other_versions_do() -> None:
    longest = "unix:/" + "a" * 140
    assert label_of(longest) == "unix%3A%2F" + "a" * 140
    assert label_of(longest + "a") == ("sha256-" + sha256((longest + "a").encode()).hexdigest()), (
        "a store outlives the version that has filled it"
    )


def test_long_entries_have_names_of_their_own() -> None:
    entries = ["unix:/" + "\N{SNOWMAN}" * 30 + end for end in ("a", "\udc80")]
    assert len({label_of(entry) for entry in entries}) == 2
    assert all(len(label_of(entry)) < 100 for entry in entries)


@pytest.mark.parametrize(
    "name",
    [
        "greeterd.socket",
        "escrow/",
        "escrow/other/127.0.0.1%3A80",
        "escrow/slot-x-index-0/a",
        "escrow/slot-1/a",
        "escrow/guard/",
        "escrow/guard/a/b",
        "x-escrow/guard/a",
    ],
)
def test_any_other_name_is_none_of_these(name: str) -> None:
    assert parse_name(name) is None
