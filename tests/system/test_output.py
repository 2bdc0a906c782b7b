"""What the three programs do when their output cannot be written: a code, one line, no traceback.

Standard output is a full disk, closed, or a pipe that nobody reads; standard error likewise.
"""

import json
import os
import subprocess
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from tests.system.conftest import StartDaemon
from tests.system.harness import clean_environment, program

FULL = 74
NO_READER = 141

SAY = {
    "greeterd": (["--version"], ["--help"], ["--check"]),
    "greeterctl": (["--version"], ["--help"], ["status", "--help"]),
    "greeter": (["--version"], ["--help"], ["send", "--help"], ["bench", "--dry-run"]),
}
"""What each program prints without a daemon."""
EACH = pytest.mark.parametrize(
    ("name", "arguments"), [(name, line) for name, lines in SAY.items() for line in lines], ids=str
)


def run(
    name: str, *arguments: str, redirect: str = "", stdout: int = subprocess.PIPE
) -> subprocess.CompletedProcess[str]:
    """Run a program with its streams redirected by a shell, as a user does."""
    return subprocess.run(
        ["sh", "-c", f'exec "$@" {redirect}', "sh", program(name), *arguments],
        env=clean_environment({}),
        stdin=subprocess.DEVNULL,
        stdout=stdout,
        stderr=subprocess.PIPE,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.fixture
def gone() -> Iterator[int]:
    """Return the writing end of a pipe that nobody reads."""
    reading, writing = os.pipe()
    os.close(reading)
    yield writing
    os.close(writing)


@pytest.mark.shows("exit 74 greeterd")
@EACH
@pytest.mark.parametrize(
    ("redirect", "reason"),
    [(">/dev/full", "No space left on device"), (">&-", "Bad file descriptor")],
)
def test_what_cannot_be_said_exits_with_74_and_one_line(
    name: str, arguments: list[str], redirect: str, reason: str
) -> None:
    done = run(name, *arguments, redirect=redirect)
    assert (done.returncode, done.stdout) == (FULL, "")
    assert done.stderr == f"{name}: standard output: {reason}\n"


@pytest.mark.shows("exit 141 greeterd")
@EACH
def test_a_reader_that_has_gone_is_exit_141_in_silence(
    name: str, arguments: list[str], gone: int
) -> None:
    done = run(name, *arguments, stdout=gone)
    assert (done.returncode, done.stderr) == (NO_READER, "")


@pytest.mark.parametrize("redirect", ["2>/dev/full", "2>&-", "2>&- <&-"])
@pytest.mark.parametrize(
    ("name", "arguments", "code"),
    [
        ("greeterd", ["--nonsense"], 2),
        ("greeterctl", ["--nonsense"], 2),
        ("greeterctl", ["ping", "--run-dir", "/nonexistent"], 69),
        ("greeter", ["--nonsense"], 2),
        ("greeter", ["send", "Alice", "--address", "unix:/nonexistent"], 69),
    ],
)
def test_a_reason_that_cannot_be_told_changes_no_exit_code(
    name: str, arguments: list[str], code: int, redirect: str
) -> None:
    done = run(name, *arguments, redirect=redirect)
    assert (done.returncode, done.stdout, done.stderr) == (code, "", "")


def test_streams_that_are_not_needed_may_all_be_missing(daemon: StartDaemon) -> None:
    server = daemon("--workers", "1")
    for redirect in (">&-", "<&- >&- 2>&-", ">/dev/full 2>/dev/full"):
        done = run("greeter", "send", "Alice", "--address", server.address, redirect=redirect)
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    for redirect in (">&- 2>&-", ">/dev/full 2>/dev/full"):
        done = run("greeterctl", "ping", "--run-dir", str(server.run_dir), redirect=redirect)
        assert (done.returncode, done.stdout, done.stderr) == (FULL, "", "")


# greeterctl: what was done stays done

Told = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def told(daemon: StartDaemon) -> tuple[Told, Callable[[], int]]:
    """Return greeterctl for one daemon, and what tells that daemon's generation."""
    server = daemon("--workers", "1")

    def ctl(*arguments: str, **options: object) -> subprocess.CompletedProcess[str]:
        return run("greeterctl", "--run-dir", str(server.run_dir), *arguments, **options)  # type: ignore[arg-type]

    return ctl, lambda: int(server.status()["generation"])


@pytest.mark.shows("exit 74 greeterctl")
@pytest.mark.parametrize("more", [[], ["--json"]])
def test_a_reload_that_was_done_and_cannot_be_told_says_so(
    told: tuple[Told, Callable[[], int]], more: list[str], gone: int
) -> None:
    ctl, generation = told
    done = ctl("reload", *more, redirect=">/dev/full")
    assert (done.returncode, done.stderr) == (
        FULL,
        "greeterctl: reload: done, but not reported: standard output: No space left on device\n",
    )
    assert generation() == 2
    done = ctl("reload", *more, stdout=gone)
    assert (done.returncode, done.stderr) == (NO_READER, "")
    assert generation() == 3


@pytest.mark.parametrize("redirect", [">/dev/full", ">&-"])
def test_a_refusal_that_cannot_be_told_as_json_is_still_one(
    told: tuple[Told, Callable[[], int]], redirect: str
) -> None:
    ctl, _ = told
    done = ctl("restart", "9", "--json", redirect=redirect)
    assert (done.returncode, done.stderr) == (
        1,
        "greeterctl: restart: there is no worker 9\n",
    )


@pytest.mark.parametrize("command", [["status"], ["balance"], ["status", "--json"]])
def test_a_status_that_cannot_be_shown_exits_with_74(
    told: tuple[Told, Callable[[], int]], command: Sequence[str]
) -> None:
    ctl, _ = told
    done = ctl(*command, redirect=">/dev/full")
    assert (done.returncode, done.stderr) == (
        FULL,
        "greeterctl: standard output: No space left on device\n",
    )


# greeter


def test_standard_input_that_cannot_be_read_exits_with_74() -> None:
    done = run("greeter", "send", "-", redirect="0>/dev/null")
    assert (done.returncode, done.stdout, done.stderr) == (
        FULL,
        "",
        "greeter: standard input: Bad file descriptor\n",
    )


def test_a_report_s_files_are_written_though_nobody_reads_it(tmp_path: Path, gone: int) -> None:
    results = tmp_path / "results.json"
    done = run(
        *("greeter", "bench", "--mode", "inherit", "--workers", "1", "--greetings", "50"),
        *("--pairs", "1", "--warmup", "0", "--results", str(tmp_path / "kept.jsonl")),
        *("--json", str(results)),
        stdout=gone,
    )
    assert done.returncode == NO_READER, done.stderr
    assert json.loads(results.read_text())["trials"]
