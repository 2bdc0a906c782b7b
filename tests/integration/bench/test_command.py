"""The command `greeter bench`, run here, with no trial."""

import io
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from greeterd.bench.experiment import progress, runner, servers, store
from greeterd.bench.experiment.plan import Plan
from greeterd.bench.experiment.runner import Progress
from greeterd.bench.model import Case
from greeterd.bench.report import tables
from greeterd.cli import bench as command
from greeterd.cli.bench import Asked, Axes, BenchOptions, Others, bench
from greeterd.cli.outputs import Outputs
from greeterd.errors import GreeterdError


@pytest.fixture(autouse=True)
def no_trial(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(command, "terminate_as_interrupt", lambda: None)
    monkeypatch.setattr(servers, "version_of", lambda _: "9.9")
    monkeypatch.setattr(runner, "run", lambda *_: None)


def interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def test_an_interrupted_report_tells_how_to_get_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(tables, "render", interrupt)
    options = BenchOptions(results=Path("a b.jsonl"), pin="off", pairs=1)
    assert bench(axes=Axes(mode="inherit"), options=options) == 130
    said = capsys.readouterr().err
    assert "greeter: 1 comparison of 1 case, nothing pinned, results in a b.jsonl\n" in said
    assert said.endswith("greeter: greeter bench report 'a b.jsonl'\n")
    assert store.load_results(Path("a b.jsonl")).pairs == 1


def test_what_was_begun_with_another_daemon_does_not_go_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    other = BenchOptions(greeterd=("other  'the build'",), results=Path("kept"))
    with monkeypatch.context() as patch:
        patch.setattr(runner, "run", interrupt)
        assert bench(axes=Axes(mode="inherit"), options=other) == 130
    again = shlex.split(capsys.readouterr().err.splitlines()[-1])
    assert again[-4:] == ["--resume", "kept", "--greeterd", "other 'the build'"]
    environment = store.load_results(Path("kept")).environment
    assert (environment.command, environment.commit) == ("other 'the build'", "")
    for options in (BenchOptions(), BenchOptions(greeterd=("third",))):
        with pytest.raises(store.UnusableError, match="kept was begun with --greeterd: other"):
            bench(options=replace(options, resume=Path("kept")))
    monkeypatch.setattr(tables, "render", interrupt)
    assert bench(options=BenchOptions(greeterd=(again[-1],), resume=Path("kept"))) == 130


def test_the_bar_says_nothing_before_it_knows_something(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = io.StringIO()
    monkeypatch.setattr(progress, "Screen", lambda **_: Console(file=screen, force_terminal=True))
    case = Case()
    with progress.telling({case: "the case"}) as tell:
        assert "%" not in screen.getvalue()
        tell(Progress(0.25, None, case))
        assert "25%" in screen.getvalue()
        assert "the case" in screen.getvalue()
        assert "?" not in screen.getvalue().replace("\x1b[?25", "")


@pytest.mark.parametrize("dry_run", [True, False])
@pytest.mark.parametrize(
    ("axes", "options", "said"),
    [
        ({}, {"bind": "0.0.0.0:0"}, "--bind 0.0.0.0:0: must be this machine's loopback"),
        ({}, {"bind": "example.org:80"}, "--bind example.org:80: must be this machine's"),
        ({}, {"bind": "unix:/tmp/no/sock"}, "two servers are up at a time"),
        ({}, {"bind": "127.0.0.1:4"}, "two servers are up at a time: take port 0"),
        ({"mode": "reuseport"}, {"bind": "unix:/tmp/no"}, "mode reuseport has no unix sockets"),
        ({"arrival": "constant", "rate": "1e9"}, {}, "--rate must be 0 to 1e.08"),
        ({"concurrency": "10000000"}, {}, "--concurrency 10000000: .* descriptors allowed"),
        ({"rate": "100"}, {}, "--rate is of open loop"),
        ({"arrival": "closed,burst", "rate": "100"}, {}, "--rate is of open loop"),
        ({}, {"greeterd": ("'",)}, "--greeterd ': No closing quotation"),
        ({}, {"greeterd": ("a=x", "a=y")}, "--greeterd: two are called a"),
        ({}, {"precision": "none"}, "--precision none: a precision looks like 5%"),
        ({}, {"precision": "0%"}, "--precision 0%: a precision looks like 5%"),
        ({}, {"max_time": "soon"}, "--max-time soon: a time looks like 90s"),
        ({}, {"pin": "8000"}, "--pin 8000: not usable here: 8000"),
        ({}, {"pin": "a"}, "--pin a: a list looks like"),
        ({"server": "nginx"}, {}, "--server nginx: must be a list of greeterd, socketserver"),
        ({}, {"predicates": Path("none")}, "none"),
        ({}, {"results": Path("none/results")}, "none/results: No such file"),
        ({}, {"results": Path("there")}, "there is there already"),
    ],
)
def test_what_cannot_be_run_is_found_before_the_run(
    axes: dict[str, str], options: dict[str, Any], said: str, *, dry_run: bool
) -> None:
    Path("there").write_text("something")
    axes = {"mode": "inherit,reuseport", **axes}
    with pytest.raises(GreeterdError, match=said):
        bench(axes=Axes(**axes), options=BenchOptions(dry_run=dry_run, **options))
    assert [one.name for one in Path().iterdir()] == ["there"]


@pytest.mark.parametrize("bind", ["127.0.0.1:0", "[::1]:0", "localhost:0"])
def test_a_dry_run_leaves_nothing(bind: str, capsys: pytest.CaptureFixture[str]) -> None:
    options = BenchOptions(dry_run=True, bind=bind, results=Path("results"))
    assert bench(axes=Axes(rate="100", arrival="closed,poisson"), options=options) == 0
    assert "2 comparisons of 4 cases" in capsys.readouterr().out
    assert list(Path().iterdir()) == []


# Other servers ------------------------------------------------------------------------------


def planned(**others: Any) -> Plan:
    return command._plan(Asked(BenchOptions(), Axes(), Others(**others), Outputs()))[0]


def test_commands_are_compared_with_the_first_and_have_the_names_that_they_are_given() -> None:
    plan = planned(command=("a=one -p {port}", "/usr/sbin/two", "two x=y"), request="GET")
    assert [one.name for one in plan.commands] == ["a", "two", "two-3"]
    assert [one.command for one in plan.commands] == ["one -p {port}", "/usr/sbin/two", "two x=y"]
    assert [(one.a.server, one.b and one.b.server) for one in plan.comparisons] == [
        ("a", "two"),
        ("a", "two-3"),
    ]
    assert plan.request == "GET"


def test_a_reload_is_the_signal_of_all_but_those_that_have_one_of_their_own() -> None:
    plan = planned(command=("a=x", "b=y", "c=z"), reload_signal=("b=SIGUSR2", "quit"),
                   reload_command=("c=reload {pid} k=v",))  # fmt: skip
    assert [one.reload_signal for one in plan.commands] == ["QUIT", "USR2", "QUIT"]
    assert [one.reload_command for one in plan.commands] == ["", "", "reload {pid} k=v"]


@pytest.mark.parametrize(
    ("others", "said"),
    [
        ({"command": ("a=x", "a=y")}, "--command: two are called a"),
        ({"command": ("uvloop=x",)}, "there is a server of this name already"),
        ({"command": ("a=",)}, "the command is empty"),
        ({"command": ("a=x",), "reload_signal": ("NONE",)}, "there is no such signal"),
        ({"reload_signal": ("HUP",)}, "--reload-signal is of --command"),
    ],
)
def test_a_command_that_makes_no_sense_is_refused(others: dict[str, Any], said: str) -> None:
    with pytest.raises(GreeterdError, match=said):
        planned(**others)


def test_builds_are_compared_in_mode_inherit_unless_said_otherwise() -> None:
    builds = BenchOptions(greeterd=("old=/opt/greeterd", "new=greeterd -v"))
    plan, _ = command._plan(Asked(builds, Axes(), Others(), Outputs()))
    assert [(one.a.build, one.b and one.b.build) for one in plan.comparisons] == [("old", "new")]
    assert plan.builds == {"old": "/opt/greeterd", "new": "greeterd -v"}
    plan, _ = command._plan(Asked(builds, Axes(mode="inherit,handoff"), Others(), Outputs()))
    assert [one.a.mode for one in plan.comparisons] == ["inherit", "handoff"]
