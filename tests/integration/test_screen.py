"""Whatever stands in a status, in results or in a text: a terminal is told nothing but text.

The programs' own colours are SGR sequences, and of rich's table; nobody else's come through.
"""

import contextlib
import io
import re
from collections.abc import Callable
from typing import Any, Final

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from greeterd.bench.analysis.compare import compare
from greeterd.bench.analysis.expectations import Predicate, check
from greeterd.bench.model import Case, Results
from greeterd.bench.report import tables
from greeterd.bench.report.export import to_json
from greeterd.cli.balance import count_daemon, render, to_plain
from greeterd.cli.greeterctl import _judged
from greeterd.cli.status import render_status
from greeterd.control import ControlError
from greeterd.control.status import (
    ListenerStatus,
    ReloadResult,
    SlotCounters,
    Status,
    WorkerStatus,
    from_plain,
    total,
)
from greeterd.screen import Screen
from greeterd.system.escape import to_ascii
from tests.bench_results import make_results

COLOUR: Final = re.compile(r"\x1b\[(?:0|1|2|3|4|3[0-7]|9[0-7])(?:;(?:1|2|3|4|3[0-7]|9[0-7]))*m")
HOSTILE: Final = (
    "\x1b]0;title\x07\x1b[2J\x9b5m\x1b[5mblink [red]m[/red] [link=x]y\r\n\t\x7f\u202e\u2066\u200b"
)
COUNTERS: Final = {1: SlotCounters(greetings=3), 2: SlotCounters(greetings=5)}
TEXT = st.one_of(st.just(HOSTILE), st.text(max_size=20))


class Terminal(io.StringIO):
    """A terminal's end that remembers."""

    encoding = "utf-8"

    def isatty(self) -> bool:
        """Say so."""
        return True


@pytest.fixture(autouse=True)
def colours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)


def unsafe(text: str, *, terminal: bool) -> set[str]:
    """Return the characters of a text that a terminal could obey, but for newlines and colours."""
    plain = COLOUR.sub("", text) if terminal else text
    return {one for one in plain if one != "\n" and not one.isprintable()}


def shown_safely(show: Callable[[Any], str]) -> None:
    assert unsafe(show(io.StringIO()), terminal=False) == set()
    assert unsafe(show(Terminal()), terminal=True) == set()


def status_of(text: str) -> Status:
    """Return a status whose every text is this one."""
    return Status(
        version=text, pid=1, mode=text, wait=text, state="running", generation=1, since=0.0,
        uptime=1.0, addresses=[text, "127.0.0.1:1"],
        workers=[WorkerStatus(slot=1, generation=1, state=text, title=text)],
        counters=COUNTERS, totals=total(COUNTERS.values()),
        listeners=[ListenerStatus(address=text, queued=1, limit=1)],
        last_error=text, log_dir=text, run_dir=text, config=text,
        reload=ReloadResult(ok=False, generation=1, at=0.0, took=0.0, error=text),
    )  # fmt: skip


def results_of(text: str) -> Results:
    """Return results whose every free text is this one."""
    made = make_results([Case(mode=text, steering=text, handoff_policy=text), Case(mode="handoff")])
    plain = msgspec.to_builtins(made)
    for name in ("date", "kernel", "machine", "cpu", "python", "greeterd", "command", "commit"):
        plain["environment"][name] = text
    plain["environment"]["sysctls"] = plain["environment"]["packages"] = {text: text}
    for trial in plain["trials"]:
        trial["began"] = trial["commit"] = trial["load"]["address"] = text
        trial["load"]["bottleneck"] = text
        trial["load"]["errors"] = {text: 1}
    plain["trials"][0]["invalid"] = text or "invalid"
    return msgspec.convert(plain, Results)


@given(TEXT)
def test_a_status_shows_text_and_nothing_else(text: str) -> None:
    status = status_of(text)
    shown_safely(lambda file: render_status(status, file))
    shown_safely(lambda file: render(count_daemon(status), file))


@given(TEXT)
@settings(max_examples=15, deadline=None)
def test_a_report_shows_text_and_nothing_else(text: str) -> None:
    results = results_of(text)
    other = make_results(list({one.case for one in results.trials}), seed=2)
    predicate = Predicate(name=text or "x", metric="rate", op=">", value=0.0)
    verdicts = check([predicate], results)
    shown_safely(lambda file: tables.show(tables.render(results, verdicts), file))
    both = compare(results, other)
    shown_safely(lambda file: tables.show(tables.comparison(both, results, other), file))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXT,
    lambda of: st.lists(of, max_size=3) | st.dictionaries(TEXT, of, max_size=3),
    max_leaves=5,
)


@given(st.data())
def test_whatever_is_claimed_is_shown_as_text_or_refused_in_words(data: st.DataObject) -> None:
    claim = msgspec.to_builtins(status_of("x"))
    for _ in range(data.draw(st.integers(1, 3))):
        place = claim
        while True:
            key = data.draw(st.sampled_from(sorted(place)))
            inner = place[key][0] if isinstance(place[key], list) and place[key] else place[key]
            if not isinstance(inner, dict) or not inner or data.draw(st.booleans()):
                break
            place = inner
        place[key] = data.draw(JSON)
    shows: list[Callable[[Any], str]] = [
        lambda file: render_status(from_plain(claim), file),
        lambda file: render(count_daemon(from_plain(claim)), file),
        lambda _: to_ascii(msgspec.json.encode(to_plain(count_daemon(from_plain(claim))))),
    ]
    for show in shows:
        with contextlib.suppress(ControlError):
            shown_safely(lambda file, show=show: _judged(lambda: show(file)))  # type: ignore[misc]


def row(text: str) -> Table:
    table = Table(text, title=text)
    table.add_row(text)
    return table


@given(TEXT)
@pytest.mark.parametrize("kind", [str, Text, row, lambda text: Group(text, row(text))])
def test_a_screen_escapes_what_nobody_has(kind: Callable[[str], RenderableType], text: str) -> None:
    shown_safely(lambda file: Screen(file).text_of(kind(text)))


def test_markup_is_text() -> None:
    assert Screen(io.StringIO()).text_of("[red]x[/red] :smile:") == "[red]x[/red] :smile:\n"


def test_our_own_colours_come_through() -> None:
    assert Screen(Terminal()).text_of(Text("x", "red")) == "\x1b[31mx\x1b[0m\n"


@given(st.lists(TEXT | st.dictionaries(TEXT, TEXT)))
def test_json_is_printable_ascii_and_says_the_same(value: object) -> None:
    encoded = msgspec.json.encode(value)
    text = to_ascii(encoded)
    assert text.isascii()
    assert text.isprintable()
    assert msgspec.json.decode(text) == msgspec.json.decode(encoded)


def test_results_as_json_are_as_safe() -> None:
    written = to_json(results_of(HOSTILE))
    assert unsafe(written, terminal=False) == set()
    assert msgspec.json.decode(written, type=Results) == results_of(HOSTILE)
