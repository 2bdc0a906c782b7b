"""The command `greeter bench`, run here, with no trial."""

import io
from pathlib import Path

import pytest
from rich.console import Console

from greeterd.bench import experiment, progress, servers, store, tables
from greeterd.bench.experiment import Progress
from greeterd.bench.model import Case
from greeterd.cli import bench as command
from greeterd.cli.bench import Axes, BenchOptions, bench


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


def test_the_bar_says_nothing_before_it_knows_something(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = io.StringIO()
    monkeypatch.setattr(progress, "Console", lambda **_: Console(file=screen, force_terminal=True))
    case = Case()
    with progress.telling({case: "the case"}) as tell:
        assert "/" not in screen.getvalue()
        tell(Progress(0, 4, 9.0, None, case))
        assert "0/4" in screen.getvalue()
        assert "the case" in screen.getvalue()
        assert "?" not in screen.getvalue().replace("\x1b[?25", "")
