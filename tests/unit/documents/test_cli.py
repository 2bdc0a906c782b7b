"""greeterd/cli/README.md agrees with the code: signals, commands, codes, counters, records."""

import re
from dataclasses import fields

from greeterd import errors
from greeterd.cli import greeter, greeterctl
from greeterd.control.protocol import COMMANDS
from greeterd.master.signal_handler import SignalHandler
from greeterd.system.daemonize import INTERRUPTED
from greeterd.system.signals import MASTER_SIGNALS
from greeterd.worker.counters import Counters
from greeterd.worker.record import Record
from tests.documents import CLI, README


def test_the_signals_are_those_that_the_master_takes_and_handles() -> None:
    rows = CLI.column("Signals")
    assert sorted(rows) == sorted(one.name.removeprefix("SIG") for one in MASTER_SIGNALS)
    handlers = [name for name in dir(SignalHandler) if name.startswith("on_")]
    assert sorted(rows) == sorted(name.removeprefix("on_").upper() for name in handlers)


def test_the_commands_are_those_of_the_control_protocol_and_what_is_made_of_a_status() -> None:
    words = list(dict.fromkeys(row.split()[0] for row in CLI.column("Commands")))
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
    rows = CLI.table("Exit codes")
    assert [int(row[0]) for row in rows] == sorted(set.union(*programs.values()))
    for index, codes in programs.items():
        assert {int(row[0]) for row in rows if row[index]} == codes


def test_the_counters_are_the_cells_of_the_scoreboard() -> None:
    assert CLI.column("Counters") == [one.name for one in fields(Counters)]


def test_the_fields_of_a_greeting_are_those_of_the_record() -> None:
    assert CLI.column("Greeting records") == list(Record.__struct_fields__)


def test_the_short_table_has_every_command_and_signal() -> None:
    rows = README.table("Commands and signals")
    assert {row[0].strip("`").split()[0] for row in rows} == set(app_commands())
    signals = {one for row in rows for one in row[1].split(", ") if one}
    assert signals == set(CLI.column("Signals")) - {"CHLD"}
