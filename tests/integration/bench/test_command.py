"""The command `greeter bench`, run here, with no trial."""

import io
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from greeterd.bench.experiment import progress, servers, store
from greeterd.bench.experiment import runner as experiment
from greeterd.bench.experiment.runner import Progress
from greeterd.bench.model import Case
from greeterd.bench.report import tables
from greeterd.cli import bench as command
from greeterd.cli.bench import Axes, BenchOptions, bench
from greeterd.errors import GreeterdError


@pytest.fixture(autouse=True)
def no_trial(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(command, "terminate_as_interrupt", lambda: None)
    monkeypatch.setattr(servers, "version_of", lambda _: "9.9")
    monkeypatch.setattr(experiment, "run", lambda *_: None)


def interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def test_an_interrupted_report_tells_how_to_get_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(tables, "render", interrupt)
    options = BenchOptions(results=Path("a b.jsonl"), trials=1)
    assert bench(axes=Axes(mode="inherit"), options=options) == 130
    said = capsys.readouterr().err
    assert "greeter: 1 trial of 1 case, results in a b.jsonl\n" in said
    assert said.endswith("greeter: greeter bench report 'a b.jsonl'\n")
    assert store.load_results(Path("a b.jsonl")).planned == 1


def test_what_was_begun_with_another_daemon_does_not_go_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    other = BenchOptions(greeterd="other  'the build'", results=Path("kept"))
    with monkeypatch.context() as patch:
        patch.setattr(experiment, "run", interrupt)
        assert bench(axes=Axes(mode="inherit"), options=other) == 130
    again = shlex.split(capsys.readouterr().err.splitlines()[-1])
    assert again[-4:] == ["--resume", "kept", "--greeterd", "other 'the build'"]
    environment = store.load_results(Path("kept")).environment
    assert (environment.command, environment.commit) == ("other 'the build'", "")
    for options in (BenchOptions(), BenchOptions(greeterd="third")):
        with pytest.raises(store.UnusableError, match="kept was begun with --greeterd: other"):
            bench(options=replace(options, resume=Path("kept")))
    monkeypatch.setattr(tables, "render", interrupt)
    assert bench(options=BenchOptions(greeterd=again[-1], resume=Path("kept"))) == 130


def test_the_bar_says_nothing_before_it_knows_something(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = io.StringIO()
    monkeypatch.setattr(progress, "Screen", lambda **_: Console(file=screen, force_terminal=True))
    case = Case()
    with progress.telling({case: "the case"}) as tell:
        assert "/" not in screen.getvalue()
        tell(Progress(0, 4, 9.0, None, case))
        assert "0/4" in screen.getvalue()
        assert "the case" in screen.getvalue()
        assert "?" not in screen.getvalue().replace("\x1b[?25", "")


@pytest.mark.parametrize("dry_run", [True, False])
@pytest.mark.parametrize(
    ("axes", "options", "said"),
    [
        ({}, {"bind": "0.0.0.0:0"}, "--bind 0.0.0.0:0: must be this machine's loopback"),
        ({}, {"bind": "example.org:80"}, "--bind example.org:80: must be this machine's"),
        ({}, {"bind": "unix:/tmp/no/sock"}, "mode reuseport has no unix sockets"),
        ({"arrival": "constant", "rate": "1e9"}, {}, "--rate must be 0 to 1e.08"),
        ({"concurrency": "10000000"}, {}, "--concurrency 10000000: .* descriptors allowed"),
        ({"rate": "100"}, {}, "--rate is of open loop"),
        ({"arrival": "closed,burst", "rate": "100"}, {}, "--rate is of open loop"),
        ({}, {"greeterd": "'"}, "--greeterd ': No closing quotation"),
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
    assert "4 cases, 3 times each: 12 trials" in capsys.readouterr().out
    assert list(Path().iterdir()) == []
