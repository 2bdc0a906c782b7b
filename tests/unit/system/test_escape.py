"""What may be shown, and how the rest is escaped."""

import json
import unicodedata

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from greeterd.system.escape import escape, escape_lines, to_ascii, to_ascii_json


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("Zoë 😀 文", "Zoë 😀 文"),
        ("\x1b[31m", "\\x1b[31m"),
        ("a\nb\tc", "a\\nb\\tc"),
        ("\x7f\x9b", "\\x7f\\x9b"),
        ("\u2028\u202e\u200b", "\\u2028\\u202e\\u200b"),
        ("\U000e0041", "\\U000e0041"),
        ("\ud800", "\\ud800"),
    ],
)
def test_only_unprintable_characters_are_escaped(text: str, shown: str) -> None:
    assert escape(text) == shown


@given(st.text())
def test_escaped_text_is_one_line_without_controls(text: str) -> None:
    shown = escape(text)
    assert shown.isprintable()
    assert not any(unicodedata.category(c) in {"Cc", "Cf", "Cs", "Zl", "Zp"} for c in shown)


def test_a_traceback_keeps_its_lines_and_nothing_else() -> None:
    assert escape_lines("a\n  b\x1b\r\n") == "a\n  b\\x1b\\r\n"


@given(st.text(alphabet=st.characters()))
def test_ascii_json_is_printable_and_parses_back(text: str) -> None:
    line = to_ascii_json(text)
    assert line.isascii()
    assert line.isprintable()
    assert json.loads(line) == text


@given(st.dictionaries(st.text(), st.text()))
def test_json_says_the_same_in_ascii(value: dict[str, str]) -> None:
    encoded = msgspec.json.encode(value)
    line = to_ascii(encoded)
    assert line.isascii()
    assert line.isprintable()
    assert json.loads(line) == value
    assert len(line) >= len(encoded.decode())


def test_printable_ascii_stays_as_it_is() -> None:
    encoded = msgspec.json.encode({"a ~": ["!", 1, None], "\u00e9\x7f": "\U0001f600"})
    assert to_ascii(encoded) == (r'{"a ~":["!",1,null],"\u00e9\u007f":"\ud83d\ude00"}')
