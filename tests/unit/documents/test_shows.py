"""Each row of a table of behaviour is shown by a test, which says so: `pytest.mark.shows(row)`.

A row is named by its kind and its first cell: "signal HUP", "command scale refused",
"exit 69 greeterctl", "when a worker hangs".
"""

import ast
from collections.abc import Iterator
from functools import cache

from tests.documents import BENCH, CLI, CONF, DESIGN, README, ROOT, SYSTEMD

PROGRAMS = ("greeterd", "greeterctl", "greeter")


def rows() -> Iterator[str]:
    """Yield the rows that have to be shown."""
    for one in CLI.column("Signals"):
        yield f"signal {one}"
    for one in CLI.column("Signals", head="signal to a worker"):
        yield f"signal {one} to a worker"
    for command, _, _, refused in CLI.table("Commands"):
        name = " ".join(word for word in command.strip("`").split() if word.strip("-").islower())
        yield f"command {name}"
        if refused:
            yield f"command {name} refused"
    for code, *cells in CLI.table("Exit codes"):
        yield from (f"exit {code} {one}" for one, cell in zip(PROGRAMS, cells, strict=True) if cell)
    for kind, document, title in (
        ("protocol", README, "Protocol"),
        ("wait", CONF, "wait"),
        ("steering", CONF, "steering"),
        ("handoff_policy", CONF, "handoff_policy"),
        ("arrival", BENCH, "Load"),
        ("peer", BENCH, "Peers"),
    ):
        for one in document.column(title):
            yield f"{kind} {one.removesuffix(' (default)')}"
    for one in DESIGN.statements("What happens when"):
        yield f"when {one}"
    for one in SYSTEMD.statements("As a service"):
        yield f"service {one}"


def may_be_shown() -> Iterator[str]:
    """Yield the rows that a test may show: what cannot be done is not always there to be seen."""
    for one in DESIGN.statements("Limits"):
        yield f"limit {one}"


@cache
def marked() -> list[tuple[str, str]]:
    """Return each row that a test is marked with, and the place of that mark."""
    return list(marks())


def marks() -> Iterator[tuple[str, str]]:
    """Yield what `marked` returns."""
    for path in sorted((ROOT / "tests").rglob("test_*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            match node:
                case ast.Call(func=ast.Attribute(attr="shows"), args=[*arguments]):
                    place = f"{path.relative_to(ROOT)}:{node.lineno}"
                    yield from ((str(ast.literal_eval(one)), place) for one in arguments)
                case _:
                    pass


def test_rows_have_names_of_their_own() -> None:
    names = list(rows())
    assert len(names) > 100
    assert len(names) == len(set(names))


def test_every_row_is_shown_by_a_test() -> None:
    shown = {row for row, _ in marked()}
    assert [row for row in rows() if row not in shown] == []


def test_every_mark_names_a_row() -> None:
    known = {*rows(), *may_be_shown()}
    assert [f"{place}: {row}" for row, place in marked() if row not in known] == []
