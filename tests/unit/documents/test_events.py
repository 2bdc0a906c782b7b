"""The table of the daemon log's events, greeterd/cli/README.md, is what the code writes."""

import ast
import re
from collections import defaultdict
from collections.abc import Iterator

from greeterd.control.protocol import COMMANDS
from tests.documents import CLI, PACKAGE, sources

LEVELS = {"debug", "info", "warning", "error", "critical", "exception"}
GREETING_LOG = {PACKAGE / "worker/greeting_log.py", *(PACKAGE / "bench" / "peers").glob("*.py")}
"""The modules whose records go to a greeting log, not to the daemon log."""


def words(node: ast.expr) -> str | None:
    """Return a text; what is only known at run time stands for a command's name."""
    match node:
        case ast.Constant(value=str(text)):
            return text
        case ast.JoinedStr(values=parts):
            return "".join(words(part) or "COMMAND" for part in parts)
        case _:
            return None


def choices(function: ast.AST) -> dict[str, set[str]]:
    """Return the texts, or the levels of a log, that a name stands for by a condition."""
    found: dict[str, set[str]] = {}
    for node in ast.walk(function):
        match node:
            case ast.Assign(targets=[ast.Name(id=name)], value=ast.IfExp(body=one, orelse=other)):
                both = [
                    each.attr if isinstance(each, ast.Attribute) else words(each)
                    for each in (one, other)
                ]
                found[name] = {each for each in both if each is not None}
            case _:
                pass
    return found


def events(function: ast.AST) -> Iterator[tuple[str, str]]:
    """Yield event and level of each record that a function writes; not what it passes on."""
    known = choices(function)
    passed_on = {node.arg for node in ast.walk(function) if isinstance(node, ast.arg)}

    def told(event: ast.expr) -> set[str]:
        if isinstance(event, ast.Name) and event.id in {*known, *passed_on}:
            return known.get(event.id, set())
        text = words(event)
        assert text is not None, f"an event that only a run could tell: {ast.unparse(event)}"
        return {text}

    for node in ast.walk(function):
        match node:
            case ast.Call(func=ast.Name(id="log"), args=[event, *_]):
                levels = known["log"]
            case ast.Call(func=ast.Attribute(attr=level), args=[event, *_]) if level in LEVELS:
                levels = {"error" if level == "exception" else level}
            case ast.Call(func=ast.Attribute(attr="say"), args=[level, event, *_]):
                levels = told(level)
            case ast.Call(func=ast.Attribute(attr="_warn") | ast.Name(id="warn"), args=[event, *_]):
                levels = {"warning"}
            case _:
                continue
        assert levels <= LEVELS
        yield from ((text, level) for text in told(event) for level in levels)


def functions(source: ast.AST) -> Iterator[ast.AST]:
    """Yield the functions of a source, so that a name has one meaning in each."""
    for node in ast.walk(source):
        if isinstance(node, ast.FunctionDef):
            yield node


def test_the_events_are_those_that_the_code_writes_with_their_levels() -> None:
    wanted = defaultdict(set)
    for path, source in sources().items():
        if path not in GREETING_LOG:
            for function in functions(source):
                for event, level in events(function):
                    wanted[event].add(level)
    told = {row[0].strip("`"): set(row[1].split(", ")) for row in CLI.table("Daemon log")}
    assert told == wanted
    assert len(CLI.table("Daemon log")) == len(told)


def test_an_event_is_seen_however_it_is_written() -> None:
    source = """
self._log.info("plain", a=1)
log.exception("crashed")
self._log.error(f"{name} failed")
state.say("warning", "said", a=1)
self._warn("warned", a=1)
what = "one" if a else "other"
self._log.info(what)
log = x.debug if a else x.info
log("chosen")
print("printed"), self._logger.log("other")
"""
    assert set(events(ast.parse(source))) == {
        ("plain", "info"), ("crashed", "error"), ("COMMAND failed", "error"), ("said", "warning"),
        ("warned", "warning"), ("one", "info"), ("other", "info"), ("chosen", "debug"),
        ("chosen", "info"),
    }  # fmt: skip


def test_the_commands_that_the_log_tells_the_end_of_are_named() -> None:
    (sentence,) = re.findall(r"`COMMAND` stands for (.*?)\.", CLI.section("Daemon log"), re.DOTALL)
    takes_time = {one for one in COMMANDS if one not in {"ping", "status", "reopen"}}
    assert set(re.findall(r"`(\w+)`", sentence)) == takes_time
