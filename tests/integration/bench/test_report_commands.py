"""`greeter bench report` and `greeter bench compare` as a shell runs them, with exit codes."""

import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from greeterd.bench.model import Case
from greeterd.bench.report.export import read, to_json
from tests.bench_results import make_results

PROGRAM = "import sys; from greeterd.cli.greeter import main; sys.exit(main())"
CASES = [Case(greetings=400), Case(mode="reuseport", greetings=400)]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a directory with results."""
    directory = tmp_path_factory.mktemp("results")
    runs = {
        "a": make_results(CASES, 20),
        "again": make_results(CASES, seed=2),
        "slow": make_results(CASES, 20, seed=3, slowdown=1.5),
        "other": make_results([Case(workers=8, greetings=400)]),
    }
    for name, run in runs.items():
        (directory / f"{name}.json").write_text(to_json(run))
    (directory / "alien.json").write_text("{}")
    none = msgspec.structs.replace(make_results(CASES), trials=[])
    (directory / "empty.json").write_text(to_json(none))
    return directory


def greeter(files: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", PROGRAM, "bench", *arguments],
        cwd=files, check=False, capture_output=True, text=True, timeout=60,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("b", "code", "said"),
    [
        ("a", 0, "No difference of 10 % or more seen"),
        ("again", 0, "No difference of 10 % or more seen"),
        ("slow", 1, "B differs from A"),
    ],
)
def test_compare_exits_with_1_when_there_is_a_difference(
    files: Path, b: str, code: int, said: str
) -> None:
    ended = greeter(files, "compare", "a.json", f"{b}.json")
    assert (ended.returncode, ended.stderr) == (code, "")
    assert ended.stdout.startswith("These are two runs: ")
    assert ended.stdout.splitlines()[-1].startswith(said)


@pytest.mark.shows("exit 66 greeter")
@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["compare", "a.json", "none.json"], 66, "none.json: No such file"),
        (["compare", "alien.json", "a.json"], 66, "alien.json holds no results"),
        (["compare", "a.json", "other.json"], 66, "no case of which both have valid trials"),
        (["compare", "a.json"], 2, "requires an argument"),
        (["report", "empty.json"], 66, "empty.json holds no trial yet"),
        (["report", "alien.json"], 66, "alien.json holds no results"),
        (["report", "a.json", "--html", "/proc/none"], 74, "/proc/none"),
        (["report", "a.json", "--html", "./a.json"], 2, "FILE and --html are the same"),
        (["report"], 2, "requires an argument"),
    ],
)
def test_a_failure_is_one_line_and_an_exit_code(
    files: Path, arguments: list[str], code: int, said: str
) -> None:
    ended = greeter(files, *arguments)
    assert (ended.returncode, ended.stdout) == (code, "")
    assert said in ended.stderr
    assert ended.stderr.startswith("greeter: ")
    assert ended.stderr.count("\n") == 1


def test_a_report_is_printed_or_written(files: Path) -> None:
    printed = greeter(files, "report", "a.json")
    assert (printed.returncode, printed.stderr) == (0, "")
    assert "Does reuseport take more CPU than inherit?" in printed.stdout
    written = greeter(
        files, "report", "a.json", "--html", "o.html", "--csv", "o.csv", "--json", "o.json"
    )
    assert (written.returncode, written.stdout) == (0, "")
    assert (files / "o.html").read_text().startswith("<!DOCTYPE html>")
    assert (files / "o.csv").read_text().count("\n") == 41
    assert read(files / "o.json") == read(files / "a.json")
