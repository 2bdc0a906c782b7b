"""The documents' tables, lists and pictures are what the code says; nothing is run.

What does not agree is shown by the line that belongs into the document.
"""

import ast
import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

from greeterd import errors
from greeterd.bench import export, peers, predicates
from greeterd.cli import greeter, greeterctl
from greeterd.config.loader import _app, _settings
from greeterd.config.schema import Config
from greeterd.config.types import kind_of
from greeterd.control.protocol import COMMANDS
from greeterd.supervisor.ids import WorkerState
from greeterd.supervisor.machine import WORKERS
from greeterd.system.daemonize import INTERRUPTED
from greeterd.system.signals import MASTER_SIGNALS
from greeterd.worker.counters import Counters
from greeterd.worker.record import Record

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "greeterd"
PLACES = (".", "conf", "greeterd", "greeterd/bench", "greeterd/cli", "systemd", "tests")
DOCUMENTS = {path: path.read_text() for place in PLACES for path in [ROOT / place / "README.md"]}
TEXT = "\n".join(DOCUMENTS.values())
SOURCES = {path: ast.parse(path.read_text()) for path in sorted(PACKAGE.rglob("*.py"))}

LEVELS = {"debug", "info", "warning", "error", "critical", "exception"}
GREETING_LOG = {PACKAGE / "worker/greeting_log.py", *(PACKAGE / "bench" / "peers").glob("*.py")}
"""The modules whose records go to a greeting log, not to the daemon log."""


def section(title: str) -> str:
    """Return the text below a heading, up to the next of the same depth or a higher one."""
    heading = re.compile(rf"^(#+) {re.escape(title)}\n", re.MULTILINE)
    found = [match for text in DOCUMENTS.values() for match in heading.finditer(text)]
    assert len(found) == 1, f"not one section {title}"
    rest = found[0].string[found[0].end() :]
    end = re.search(rf"^#{{1,{len(found[0][1])}}} ", rest, re.MULTILINE)
    return rest[: end.start()] if end else rest


def table(title: str) -> list[list[str]]:
    """Return the cells of a section's first table, without its head."""
    (found, *_) = re.findall(r"(?:^\|.*\n)+", section(title), re.MULTILINE)
    lines = found.splitlines()[2:]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def column(title: str, index: int = 0) -> list[str]:
    """Return one column of a section's table, without the marks of code."""
    return [row[index].strip("`") for row in table(title)]


def block(title: str, language: str, start: str) -> str:
    """Return the code block of a section that begins with a text."""
    blocks = re.findall(rf"```{language}\n(.*?)```", section(title), re.DOTALL)
    (found,) = (one for one in blocks if one.startswith(start))
    return str(found)


def test_the_settings_are_those_of_the_code_with_default_unit_meaning_and_reload() -> None:
    shown = _settings(_app().assemble_argument_collection())
    wanted = []
    for one in fields(Config):
        parameter = shown[one.name].parameter
        meaning, _, default = one.metadata["help"].removesuffix("]").partition(" [default: ")
        default = default or f"`{kind_of(parameter).text(one.default)}`"
        unit = str(parameter.metavar or "").lower().replace("mib", "MiB")
        reload = "yes" if one.metadata["reload"] else "no"
        wanted.append([f"`{one.name}`", default, unit, reload, meaning])
    assert table("Settings") == wanted


def handled_signals() -> Iterator[str]:
    """Yield the signals that the master's loop has a case for."""
    for node in ast.walk(SOURCES[PACKAGE / "master/master.py"]):
        match node:
            case ast.match_case(pattern=ast.MatchValue(value=ast.Attribute(attr=name))):
                if name.startswith("SIG"):
                    yield name.removeprefix("SIG")
            case _:
                pass


def test_the_signals_are_those_that_the_master_takes_and_handles() -> None:
    rows = column("Signals")
    assert sorted(rows) == sorted(one.name.removeprefix("SIG") for one in MASTER_SIGNALS)
    assert sorted(rows) == sorted(handled_signals())


def test_the_commands_are_those_of_the_control_protocol_and_what_is_made_of_a_status() -> None:
    words = list(dict.fromkeys(row.split()[0] for row in column("Commands")))
    assert [word for word in words if word != "balance"] == list(COMMANDS)
    assert set(words) == set(app_commands()) == {*COMMANDS, "balance"}


def app_commands() -> list[str]:
    """Return the commands of greeterctl, without its flags."""
    return [name for name in greeterctl.app if not name.startswith("-")]


def documented(text: str) -> set[int]:
    """Return the codes of a program's own list."""
    return {int(code) for code in re.findall(r"^- (\d+):", text, re.MULTILINE)}


def test_the_exit_codes_are_those_of_the_three_programs() -> None:
    kinds = [one for one in vars(errors).values() if isinstance(one, type)]
    own = {one.exit_code for one in kinds if issubclass(one, errors.GreeterdError)}
    programs = {
        1: {0, INTERRUPTED, *own},
        2: documented(greeterctl.EXIT_CODES),
        3: documented(greeter.EXIT_CODES),
    }
    rows = table("Exit codes")
    assert [int(row[0]) for row in rows] == sorted(set.union(*programs.values()))
    for index, codes in programs.items():
        assert {int(row[0]) for row in rows if row[index]} == codes


def test_the_counters_are_the_cells_of_the_scoreboard() -> None:
    assert column("Counters") == [one.name for one in fields(Counters)]


def test_the_fields_of_a_greeting_are_those_of_the_record() -> None:
    assert column("Greeting records") == list(Record.__struct_fields__)


# The events of the daemon log ---------------------------------------------------------------


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
    for path, source in SOURCES.items():
        if path not in GREETING_LOG:
            for function in functions(source):
                for event, level in events(function):
                    wanted[event].add(level)
    told = {row[0].strip("`"): set(row[1].split(", ")) for row in table("Daemon log")}
    assert told == wanted
    assert len(table("Daemon log")) == len(told)


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
    (sentence,) = re.findall(r"`COMMAND` stands for (.*?)\.", section("Daemon log"), re.DOTALL)
    takes_time = {one for one in COMMANDS if one not in {"ping", "status", "reopen"}}
    assert set(re.findall(r"`(\w+)`", sentence)) == takes_time


# The experiment -----------------------------------------------------------------------------


def test_the_fields_and_metrics_of_an_expectation_are_those_of_the_code() -> None:
    assert set(column("Expectations")) == set(predicates.Predicate.__struct_fields__)
    (listed,) = re.findall(r"Metrics:\n(.*?)\.\n", section("Expectations"), re.DOTALL)
    assert re.findall(r"`(\w+)`", listed) == list(predicates.OF)


def test_the_expectation_that_is_shown_makes_sense() -> None:
    (one,) = predicates.parse(block("Expectations", "toml", "[[expect]]"))
    assert one.than == {"mode": "inherit"}


def test_the_columns_of_csv_are_those_of_the_code() -> None:
    assert column("CSV columns") == list(export.COLUMNS)


def test_the_peers_are_those_of_the_code() -> None:
    assert column("Peers") == list(peers.PEERS)


# Design -------------------------------------------------------------------------------------


def about(path: Path) -> str:
    """Return the first line of a module's docstring."""
    return (ast.get_docstring(SOURCES[path]) or "").splitlines()[0]


def test_the_packages_are_those_of_the_code_with_what_they_say_of_themselves() -> None:
    packages = [path for path in SOURCES if path.name == "__init__.py" and path.parent != PACKAGE]
    modules = [path for path in SOURCES if path.parent == PACKAGE and path.name != "__init__.py"]
    wanted = [[f"`{path.parent.relative_to(PACKAGE)}/`", about(path)] for path in packages]
    wanted += [[f"`{path.name}`", about(path)] for path in modules]
    assert table("Packages") == wanted


def test_the_life_of_a_worker_is_that_of_the_supervisor() -> None:
    picture = block("Design", "mermaid", "stateDiagram")
    arrows = re.findall(r"^ +(\S+) --> (\w+): \S", picture, re.MULTILINE)
    assert len(arrows) == picture.count("-->")
    known = {
        ("[*]" if before is WorkerState.GONE else before.value, after.value)
        for row in WORKERS.values()
        for before, after in row.items()
        if isinstance(after, WorkerState)
    }
    assert set(arrows) == known
    assert len(arrows) == len(set(arrows))


# What is shown by tests and files -----------------------------------------------------------


def cases_of(path: Path) -> set[str]:
    """Return the names of the tests in a file."""
    nodes = ast.walk(ast.parse(path.read_text()))
    return {node.name for node in nodes if isinstance(node, ast.FunctionDef)}


def test_every_test_that_is_named_exists() -> None:
    named = re.findall(r"`(tests/[\w/]+\.py)`:?((?:,?\s+`test_\w+`)*)", TEXT)
    missing = []
    count = 0
    for file, tests in named:
        assert (ROOT / file).is_file(), file
        for name in re.findall(r"`(test_\w+)`", tests):
            count += 1
            if name not in cases_of(ROOT / file):
                missing.append(f"{file}: {name}")
    assert missing == []
    assert count == len(re.findall(r"`test_\w+`", TEXT)), "a test without its file"


def shown(title: str) -> dict[str, tuple[str, str]]:
    """Return the file and the test that a section's comment names for each row."""
    (comment,) = re.findall(r"<!-- Shown by:\n(.*?)-->", section(title), re.DOTALL)
    rows = re.findall(r"^(.+): (\S+) (\w+)$", comment, re.MULTILINE)
    assert len(rows) == len(comment.splitlines())
    return {row: (file, test) for row, file, test in rows}


def test_every_row_of_signals_commands_and_exit_codes_has_a_test() -> None:
    programs = ["greeterd", "greeterctl", "greeter"]
    cells = {
        f"{row[0]} {program}"
        for row in table("Exit codes")
        for program, cell in zip(programs, row[1:], strict=True)
        if cell
    }
    assert set(column("Signals")) <= set(shown("Signals"))
    assert set(column("Commands")) <= set(shown("Commands"))
    assert cells == set(shown("Exit codes"))
    tests = [
        one for title in ("Signals", "Commands", "Exit codes") for one in shown(title).values()
    ]
    assert [one for one in tests if one[1] not in cases_of(ROOT / one[0])] == []


def test_the_short_table_has_every_command_and_signal() -> None:
    rows = table("Commands and signals")
    assert {row[0].strip("`").split()[0] for row in rows} == set(app_commands())
    signals = {one for row in rows for one in row[1].split(", ") if one}
    assert signals == set(column("Signals")) - {"CHLD"}


def test_the_first_document_is_short() -> None:
    assert len(DOCUMENTS[ROOT / "README.md"].splitlines()) < 200


def test_every_link_leads_somewhere() -> None:
    broken = []
    for path, text in DOCUMENTS.items():
        for link in re.findall(r"\]\(([^)\s]+)\)", text):
            if not link.startswith("https://"):
                file, _, anchor = link.partition("#")
                target = (path.parent / file).resolve() if file else path
                if not target.exists() or (anchor and anchor not in anchors(target)):
                    broken.append(f"{path.relative_to(ROOT)}: {link}")
    assert broken == []


def anchors(path: Path) -> set[str]:
    """Return the anchors of a document's headings."""
    text = re.sub(r"^```.*?^```", "", path.read_text(), flags=re.MULTILINE | re.DOTALL)
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w -]", "", one.lower()).replace(" ", "-") for one in headings}


def test_what_happens_is_shown_by_tests_each_time() -> None:
    statements = re.split(r"^- ", section("What happens when"), flags=re.MULTILINE)[1:]
    assert len(statements) > 10
    assert [one for one in statements if not re.search(r"`test_\w+`", one)] == []


def test_every_file_that_is_named_exists() -> None:
    files = re.findall(r"`((?:conf|systemd|tests|\.ci)/[\w./@-]*)`", TEXT)
    assert len(files) > 10
    assert [file for file in files if not (ROOT / file).exists()] == []


def test_the_unit_is_installed_as_its_head_says() -> None:
    head = (ROOT / "systemd" / "greeterd.service").read_text().partition("[Unit]")[0]
    commands = block("Running as a unit", "sh", "python3").replace(
        "install .\n", "install greeterd\n"
    )
    assert [one for one in commands.splitlines() if f"#   {one}" not in head.splitlines()] == []


def test_every_file_for_an_installation_is_in_the_table() -> None:
    files = [path for name in ("systemd", "conf") for path in (ROOT / name).iterdir()]
    others = {f"{path.parent.name}/{path.name}" for path in files if path.name != "README.md"}
    assert set(column("Running as a unit")) == others - {"conf/greeterd.toml"}


def test_every_setting_that_is_written_as_one_is_one() -> None:
    names = {one.name for one in fields(Config)}
    written = set(re.findall(r"`(\w+) = \w+`", TEXT))
    assert written <= names
    flags = re.findall(r"greeterd (--[\w-]+(?: [\w-]+)*)", TEXT)
    known = {f"--{name.replace('_', '-')}" for name in names} | {"--check"}
    assert {word for one in flags for word in one.split() if word.startswith("--")} <= known
