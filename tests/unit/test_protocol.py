"""What a connection's bytes mean: one fact of the protocol per test."""

from collections.abc import Iterable
from itertools import pairwise, product

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from greeterd.protocol import NameReader, Outcome, Refusal, classify, encode_reply

LIMIT = 4096


def read(pieces: Iterable[bytes], max_name_bytes: int, *, allow_exit: bool) -> Outcome:
    """Return the outcome of a stream as a worker reads it: it stops at oversize."""
    reader = NameReader(max_name_bytes, allow_exit=allow_exit)
    for piece in pieces:
        if reader.feed(piece):
            return Refusal.OVERSIZE
    return reader.finish()


@pytest.mark.parametrize(
    ("stream", "name"),
    [
        (b"Alice", "Alice"),
        (b"Alice\n", "Alice"),
        (b"Alice\r\n", "Alice"),
        (b"Alice\r", "Alice\r"),
        (b"Alice\n\n", "Alice\n"),
        (b"Alice\r\n\r\n", "Alice\r\n"),
        (b"Alice\n\r", "Alice\n\r"),
        (b"Alice\r\r\n", "Alice\r"),
        (b"\r", "\r"),
        (b"\n\n", "\n"),
        (b" Alice ", " Alice "),
        (b"Alice\nBob", "Alice\nBob"),
        (b"\0", "\0"),
        ("Zoë 🐍".encode(), "Zoë 🐍"),
    ],
)
def test_a_name_is_the_stream_less_one_trailing_newline(stream: bytes, name: str) -> None:
    assert classify(stream, LIMIT, allow_exit=False) == name


@pytest.mark.parametrize("stream", [b"", b"\n", b"\r\n"])
def test_nothing_or_a_lone_newline_is_empty(stream: bytes) -> None:
    assert classify(stream, LIMIT, allow_exit=False) is Refusal.EMPTY


@pytest.mark.parametrize("newline", [b"", b"\n", b"\r\n"])
def test_the_limit_is_of_the_name_without_its_newline(newline: bytes) -> None:
    assert classify(b"x" * LIMIT + newline, LIMIT, allow_exit=False) == "x" * LIMIT
    assert classify(b"x" * (LIMIT + 1) + newline, LIMIT, allow_exit=False) is Refusal.OVERSIZE


def test_the_limit_counts_bytes_not_characters() -> None:
    assert classify("éé".encode(), 4, allow_exit=False) == "éé"
    assert classify("éé".encode(), 3, allow_exit=False) is Refusal.OVERSIZE


def test_escapes_do_not_count_towards_the_limit() -> None:
    assert classify(b"\xff" * 4, 4, allow_exit=False) == r"\xff\xff\xff\xff"


@pytest.mark.parametrize(
    ("stream", "name"),
    [
        (b"caf\xe9", r"caf\xe9"),
        (b"\xff\xfe", r"\xff\xfe"),
        (b"\xed\xa0\x80", r"\xed\xa0\x80"),  # a surrogate: UTF-8 has none
        (b"\xc0\xaf", r"\xc0\xaf"),  # overlong
        (b"a\xf0\x9f", r"a\xf0\x9f"),  # cut short
    ],
)
def test_undecodable_bytes_are_greeted_as_escapes(stream: bytes, name: str) -> None:
    assert classify(stream, LIMIT, allow_exit=False) == name


@pytest.mark.shows("protocol exactly exit, with allow_exit = false")
@pytest.mark.parametrize("stream", [b"exit", b"exit\n", b"exit\r\n"])
def test_exit_is_a_command_only_where_it_is_allowed(stream: bytes) -> None:
    assert classify(stream, LIMIT, allow_exit=True) is Refusal.EXIT
    assert classify(stream, LIMIT, allow_exit=False) == "exit"


@pytest.mark.parametrize("stream", [b"Exit", b"exit ", b" exit", b"exit\r", b"exit\n\n", b"exit0"])
def test_what_only_resembles_exit_is_a_name(stream: bytes) -> None:
    assert isinstance(classify(stream, LIMIT, allow_exit=True), str)


def test_an_exit_longer_than_the_limit_is_oversize() -> None:
    assert classify(b"exit", 3, allow_exit=True) is Refusal.OVERSIZE


def test_a_name_of_the_limit_and_its_crlf_in_three_pieces_is_a_greeting() -> None:
    reader = NameReader(LIMIT, allow_exit=False)
    assert [reader.feed(piece) for piece in (b"x" * LIMIT, b"\r", b"\n")] == [False] * 3
    assert reader.finish() == "x" * LIMIT


def test_a_stream_is_oversize_at_once_past_the_limit_and_a_crlf() -> None:
    reader = NameReader(LIMIT, allow_exit=False)
    assert not reader.feed(b"x" * (LIMIT + 2))
    assert reader.feed(b"x")


def test_oversize_is_final() -> None:
    reader = NameReader(4, allow_exit=False)
    assert reader.feed(b"1234567")
    assert reader.feed(b"")
    assert reader.feed(b"a")
    assert reader.finish() is Refusal.OVERSIZE


def test_a_reader_keeps_no_more_than_the_limit_and_a_crlf() -> None:
    reader = NameReader(4, allow_exit=False)
    reader.feed(b"123456")
    assert len(reader._data) == 6
    reader.feed(b"x" * 1_000_000)
    assert reader._data == b""


def test_a_stream_without_a_read_is_empty() -> None:
    assert NameReader(LIMIT, allow_exit=True).finish() is Refusal.EMPTY


@pytest.mark.parametrize("allow_exit", [False, True])
@pytest.mark.parametrize("limit", [1, 2, 3])
def test_reader_and_classify_agree_for_every_split_of_every_short_stream(
    limit: int, allow_exit: bool
) -> None:
    for length in range(limit + 4):
        for symbols in product(b"\r\nx\xff", repeat=length):
            stream = bytes(symbols)
            whole = classify(stream, limit, allow_exit)
            for cuts in product((False, True), repeat=max(0, length - 1)):
                assert read(split(stream, cuts), limit, allow_exit=allow_exit) == whole


@pytest.mark.parametrize("stream", [b"exit", b"exit\n", b"exit\r\n"])
def test_exit_is_exit_in_whatever_pieces_it_arrives(stream: bytes) -> None:
    for cuts in product((False, True), repeat=len(stream) - 1):
        assert read(split(stream, cuts), LIMIT, allow_exit=True) is Refusal.EXIT
        assert read(split(stream, cuts), LIMIT, allow_exit=False) == "exit"


def split(stream: bytes, cuts: Iterable[bool]) -> Iterable[bytes]:
    """Yield the pieces of `stream`, cut after byte i where the i-th of `cuts` is true."""
    start = 0
    for end, cut in enumerate(cuts, start=1):
        if cut:
            yield stream[start:end]
            start = end
    yield stream[start:]


streams = st.one_of(
    st.binary(max_size=24),
    st.lists(
        st.sampled_from([b"exit", b"\r", b"\n", b"a", "ß".encode(), b"\xff"]), max_size=12
    ).map(b"".join),
)


@given(
    stream=streams,
    cuts=st.lists(st.integers(0, 24), max_size=8),
    limit=st.integers(1, 16),
    allow_exit=st.booleans(),
)
@example(stream=b"exit\r\n", cuts=[2, 5], limit=4, allow_exit=True)
@example(stream=b"abcd\r\n", cuts=[4, 5], limit=4, allow_exit=False)
@example(stream=b"abcdef\r\n", cuts=[6, 7], limit=4, allow_exit=False)
def test_reader_and_classify_agree_for_every_split(
    stream: bytes, cuts: list[int], limit: int, allow_exit: bool
) -> None:
    edges = [0, *sorted(min(cut, len(stream)) for cut in cuts), len(stream)]
    pieces = [stream[start:end] for start, end in pairwise(edges)]
    assert b"".join(pieces) == stream
    assert read(pieces, limit, allow_exit=allow_exit) == classify(stream, limit, allow_exit)


@given(stream=st.binary(max_size=64))
def test_every_greeted_name_can_be_answered_in_utf8(stream: bytes) -> None:
    outcome = classify(stream, LIMIT, allow_exit=False)
    if isinstance(outcome, str):
        assert encode_reply(outcome) == b"Hello, " + outcome.encode() + b"\n"
        assert outcome


def test_a_reply_is_the_greeting_as_text_and_one_newline() -> None:
    assert encode_reply("Zoë") == b"Hello, Zo\xc3\xab\n"
    assert encode_reply("two\nlines") == b"Hello, two\nlines\n"
    assert encode_reply(r"caf\xe9") == rb"Hello, caf\xe9" + b"\n"
