"""The program greeterctl: exit codes and output, against nobody and against a stand-in's answers.

The stand-in is the control server in a thread, which answers as the test says; no daemon runs.
"""

import json
import os
import selectors
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog

from greeterd.cli.greeterctl import EXIT_CODES
from greeterd.cli.run_dirs import usual_run_dir
from greeterd.config.loader import load
from greeterd.control import ControlServer, Request
from greeterd.control.status import (
    BACK_OFF,
    ListenerStatus,
    SlotCounters,
    Status,
    WorkerStatus,
    total,
)
from tests.support import until
from tests.system.harness import program
from tests.system.terminal import on_terminal, without_colours

COUNTERS = {
    1: SlotCounters(connections=1_234_567, greetings=1_234_560, empty=7),
    2: SlotCounters(connections=987_654, greetings=987_650, open=4, blocked=1),
    3: SlotCounters(connections=1_100_000, greetings=1_100_000, rescued=42),
}
STATUS = Status(
    version="1.2.3",
    pid=4_194_303,
    mode="reuseport",
    wait="epoll",
    state="running",
    generation=3,
    since=1_700_000_000.0,
    uptime=90_000.0,
    addresses=["127.0.0.1:12345"],
    workers=[
        WorkerStatus(
            slot=1, pid=4_194_301, generation=3, state="ready", age=86_000, heartbeat_age=0.1
        ),
        WorkerStatus(slot=2, generation=3, state=BACK_OFF, backoff=1.2, lent_to=3, restarts=12),
        WorkerStatus(
            slot=3, pid=4_194_302, generation=3, state="ready", age=720, heartbeat_age=0.2
        ),
        WorkerStatus(slot=3, pid=4_194_300, generation=2, state="draining", age=3, leaving=True),
    ],
    counters=COUNTERS,
    totals=total(COUNTERS.values()),
    listeners=[ListenerStatus(address="127.0.0.1:12345", slot=2, queued=17, limit=4096)],
    restarts_in_window=12,
    max_restarts=8,
    restart_window=60.0,
    last_error="worker 2 died: \x1b[31msignal 11",
)
NOTES = ["not accepting: log cannot be written, back-off 1.2 s, lent to 3", "42 rescued", "leaving"]

Answer = Callable[[Request], None]


class StandIn:
    """A control server in a thread; `answer` is called for each request."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.requests: list[tuple[str, dict[str, Any]]] = []
        self.answer: Answer = lambda request: request.answer(True)
        self._selector = selectors.DefaultSelector()
        self._stop, self._stopped = socket.socketpair()
        self._selector.register(self._stopped, selectors.EVENT_READ, None)
        log = structlog.wrap_logger(
            structlog.ReturnLogger(), wrapper_class=structlog.make_filtering_bound_logger("error")
        )
        self._server = ControlServer(
            path, self._selector, self._on_request, allowed_uids=frozenset(), log=log
        )
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _on_request(self, request: Request) -> None:
        self.requests.append((request.command, request.arguments))
        self.answer(request)

    def _run(self) -> None:
        while True:
            for key, mask in self._selector.select():
                if key.data is None:
                    return
                key.data(mask)

    def close(self) -> None:
        """End the thread and the server."""
        self._stop.close()
        self._thread.join()
        self._server.close()
        self._selector.close()
        self._stopped.close()


@pytest.fixture
def stand_in(tmp_path: Path) -> Iterator[StandIn]:
    """Return a stand-in whose run directory is `tmp_path`."""
    running = StandIn(tmp_path / "control.sock")
    yield running
    running.close()


Ctl = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """Return an environment that tells of nothing but this test."""
    return {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "GREETERD_RUN_DIR": str(tmp_path)}


@pytest.fixture
def ctl(environment: dict[str, str]) -> Ctl:
    """Run greeterctl to its end."""

    def run(*arguments: str, **changes: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [program("greeterctl"), *arguments], env=environment | changes, check=False,
            capture_output=True, text=True, timeout=30, stdin=subprocess.DEVNULL,
        )  # fmt: skip

    return run


# Nobody answers


@pytest.mark.shows("exit 69 greeterctl")
@pytest.mark.parametrize("command", ["ping", "status", "reload", "reopen", "restart", "stop"])
def test_without_a_daemon_every_command_says_so(ctl: Ctl, tmp_path: Path, command: str) -> None:
    done = ctl(command)
    assert done.returncode == 69
    assert done.stdout == ""
    reason, *_hints = done.stderr.rstrip("\n").split("; ")  # on daemons of others, if there are any
    assert reason == f"greeterctl: no greeterd is running (no socket at {tmp_path}/control.sock)"


def test_at_the_socket_of_a_dead_daemon_nobody_listens(ctl: Ctl, tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(tmp_path / "control.sock"))
    done = ctl("ping")
    assert done.returncode == 69
    assert "nobody listens" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "changes", "where"),
    [
        (["--run-dir", "/a"], {}, "/a/control.sock"),
        (["--run-dir=/a"], {"RUNTIME_DIRECTORY": "/b"}, "/a/control.sock"),
        (["--socket", "/a/b"], {}, "/a/b"),
        ([], {"GREETERD_RUN_DIR": "/a", "RUNTIME_DIRECTORY": "/b"}, "/a/control.sock"),
        ([], {"GREETERD_RUN_DIR": "", "RUNTIME_DIRECTORY": "/b:/c"}, "/b/control.sock"),
        ([], {"GREETERD_RUN_DIR": "", "XDG_RUNTIME_DIR": "/d"}, "/d/greeterd/control.sock"),
    ],
)
def test_the_socket_is_looked_for_where_greeterd_would_put_it(
    ctl: Ctl, arguments: list[str], changes: dict[str, str], where: str
) -> None:
    assert f"no socket at {where})" in ctl("ping", *arguments, **changes).stderr


@pytest.mark.parametrize("uid", [0, 1000])
@pytest.mark.parametrize(
    "environ",
    [
        {},
        {"GREETERD_RUN_DIR": "/a", "RUNTIME_DIRECTORY": "/b"},
        {"GREETERD_RUN_DIR": "", "RUNTIME_DIRECTORY": "/b:/c", "XDG_RUNTIME_DIR": "/d"},
        {"XDG_RUNTIME_DIR": "/d"},
        {"XDG_RUNTIME_DIR": "d"},
        {"TMPDIR": "/e"},
    ],
)
def test_the_default_run_directory_is_greeterds_own(environ: dict[str, str], uid: int) -> None:
    assert usual_run_dir(environ, uid) == load([], environ, uid=uid).config.run_dir


def test_a_failure_is_json_when_json_is_asked_for(ctl: Ctl) -> None:
    done = ctl("--json", "ping")
    answer = json.loads(done.stdout)
    assert (answer["ok"], answer["code"], done.returncode) == (False, 69, 69)
    assert done.stderr == ""


@pytest.mark.shows("exit 2 greeterctl")
@pytest.mark.parametrize(
    "arguments",
    [
        ["dance"],
        ["scale"],
        ["scale", "0"],
        ["scale", "513"],
        ["scale", "many"],
        ["scale", "1", "2"],
        ["restart", "513"],
        ["stop", "--soon"],
        ["ping", "--timeout", "0"],
        ["ping", "--timeout", "nan"],
        ["ping", "--timeout", "inf"],
        ["ping", "--run-dir", "/a", "--socket", "/b"],
    ],
)
def test_a_wrong_command_line_exits_with_2_and_one_line(ctl: Ctl, arguments: list[str]) -> None:
    done = ctl(*arguments)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("greeterctl: ")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("arguments", [["--help"], ["status", "--help"], ["stop", "--help"]])
def test_every_help_page_lists_the_exit_codes(ctl: Ctl, arguments: list[str]) -> None:
    done = ctl(*arguments)
    assert done.returncode == 0
    codes = [line.split(":")[0].strip("- ") for line in EXIT_CODES.splitlines() if ": " in line]
    assert codes == ["0", "1", "2", "69", "71", "74", "75", "77", "130", "141"]
    assert all(f"• {code}: " in done.stdout for code in codes)
    assert "--run-dir" in done.stdout


def test_the_version_is_told(ctl: Ctl) -> None:
    assert ctl("--version").stdout.startswith("greeterctl ")


# Somebody answers


def test_ping_names_the_process(ctl: Ctl, stand_in: StandIn) -> None:
    done = ctl("ping")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"greeterd answers: pid {os.getpid()}, ")
    assert stand_in.requests == [("ping", {})]


@pytest.mark.shows("exit 0 greeterctl")
@pytest.mark.parametrize(
    ("arguments", "request_made", "told"),
    [
        (["reload"], ("reload", {}), "reloaded\n"),
        (["scale", "4"], ("scale", {"workers": 4}), "workers: 4\n"),
        (["restart"], ("restart", {"slot": None}), "restarted: every slot\n"),
        (["restart", "2"], ("restart", {"slot": 2}), "restarted: slot 2\n"),
        (["reopen"], ("reopen", {}), "reopened: every log\n"),
    ],
)
def test_a_command_that_was_done_exits_with_0(
    ctl: Ctl,
    stand_in: StandIn,
    arguments: list[str],
    request_made: tuple[str, dict[str, Any]],
    told: str,
) -> None:
    done = ctl(*arguments)
    assert (done.returncode, done.stdout, done.stderr) == (0, told, "")
    assert stand_in.requests == [request_made]


def test_a_reload_tells_the_generation(ctl: Ctl, stand_in: StandIn) -> None:
    stand_in.answer = lambda request: request.answer(True, generation=4)
    assert ctl("reload").stdout == "reloaded: generation 4\n"
    assert json.loads(ctl("reload", "--json").stdout) == {
        "version": 1, "ok": True, "generation": 4,
    }  # fmt: skip


@pytest.mark.shows("exit 1 greeterctl", "exit 77 greeterctl")
@pytest.mark.parametrize(("code", "exit_code"), [(1, 1), (77, 77), (0, 1), (3, 1), ([], 1)])
def test_a_refusal_prints_its_reason_and_sets_the_exit_code(
    ctl: Ctl, stand_in: StandIn, code: object, exit_code: int
) -> None:
    stand_in.answer = lambda request: request.answer(
        False, error="worker 1 \x1b[2J never became ready", code=code
    )
    done = ctl("reload")
    assert done.returncode == exit_code
    assert done.stdout == ""
    assert done.stderr == r"greeterctl: reload: worker 1 \x1b[2J never became ready" + "\n"


@pytest.mark.shows("exit 75 greeterctl")
def test_a_command_without_an_answer_times_out_and_says_what_that_means(
    ctl: Ctl, stand_in: StandIn
) -> None:
    stand_in.answer = lambda request: None  # noqa: ARG005 - it never answers
    done = ctl("reload", "--timeout", "0.2")
    assert done.returncode == 75
    assert "may still be under way" in done.stderr
    assert "--timeout 0.2" in done.stderr


def test_a_foreign_status_is_an_error_in_words(ctl: Ctl, stand_in: StandIn) -> None:
    stand_in.answer = lambda request: request.answer(True, status={"pid": "x"})
    done = ctl("status")
    assert done.returncode == 1
    assert "of another version" in done.stderr


@pytest.mark.shows("exit 130 greeterctl")
def test_an_interrupt_ends_the_waiting_in_words(
    stand_in: StandIn, environment: dict[str, str]
) -> None:
    stand_in.answer = lambda request: None  # noqa: ARG005 - it never answers
    with subprocess.Popen(
        [program("greeterctl"), "reload"], env=environment, stderr=subprocess.PIPE, text=True
    ) as process:
        until(lambda: stand_in.requests)
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate(timeout=30)
    assert process.returncode == 130
    assert stderr == "greeterctl: interrupted; the command may still be under way\n"


# Status


@pytest.fixture
def tells_status(stand_in: StandIn) -> StandIn:
    """Return a stand-in that answers with STATUS."""
    stand_in.answer = lambda request: request.answer(True, status=STATUS)
    return stand_in


def table(text: str) -> list[list[str]]:
    """Return the words of the table's lines, its head first."""
    lines = text.splitlines()
    start = next(index for index, line in enumerate(lines) if line.startswith("slot "))
    return [line.split() for line in lines[start:]]


@pytest.mark.usefixtures("tells_status")
def test_status_in_a_pipe_has_no_colours_and_cuts_nothing(ctl: Ctl) -> None:
    done = ctl("status", COLUMNS="40")
    assert done.returncode == 0, done.stderr
    assert "\x1b" not in done.stdout
    assert "…" not in done.stdout
    assert not any(line != line.rstrip() for line in done.stdout.splitlines())
    head, one, two, three, leaving, everything, footing = table(done.stdout)
    assert head[0] == "slot"
    assert head[-1] == "note"
    assert one[:7] == ["1", "4194301", "3", "ready", "23h53m", "1234567", "1234560"]
    assert two[:4] == ["2", "-", "3", "back-off"]
    assert " ".join(two).endswith(NOTES[0])
    assert " ".join(three).endswith(NOTES[1])
    assert leaving == ["3", "4194300", "2", "draining", "3s", "-", "leaving"]
    assert everything == ["all", "3322221", "3322210", "100.0%", "4", "12"]
    assert footing == ["not", "greeted:", "7", "empty"]


@pytest.mark.usefixtures("tells_status")
def test_status_begins_with_the_daemon(ctl: Ctl) -> None:
    lines = ctl("status").stdout.splitlines()
    assert lines[:5] == [
        "greeterd 1.2.3: running, reuseport (epoll), pid 4194303, up 1d01h, generation 3",
        "listening on 127.0.0.1:12345",
        "restarts: 12 in the last 1m00s, 8 are allowed to each worker",
        r"last error: worker 2 died: \x1b[31msignal 11",
        "",
    ]


@pytest.mark.usefixtures("tells_status")
def test_status_as_json_is_the_daemons_own(ctl: Ctl) -> None:
    told = json.loads(ctl("status", "--json").stdout)
    assert told["pid"] == STATUS.pid
    assert told["counters"]["2"]["connections"] == 987_654
    assert told["workers"][1] == {
        "slot": 2, "generation": 3, "state": "back-off", "pid": None, "age": 0.0,
        "heartbeat_age": None, "restarts": 12, "backoff": 1.2, "lent_to": 3, "title": "",
        "leaving": False, "log": None,
    }  # fmt: skip


def test_status_as_json_keeps_what_a_newer_daemon_tells(ctl: Ctl, stand_in: StandIn) -> None:
    stand_in.answer = lambda request: request.answer(True, status={"unheard": "of"})
    assert json.loads(ctl("status", "--json").stdout) == {"unheard": "of"}


@pytest.mark.usefixtures("tells_status")
def test_status_fits_a_terminal_of_80_columns(environment: dict[str, str]) -> None:
    text = on_terminal([program("greeterctl"), "status"], environment, 80)
    assert "\x1b[" in text
    plain = without_colours(text)
    assert max(map(len, plain.splitlines())) <= 80
    head, one, *_ = table(plain)
    assert head[-1] == "beat"
    assert one[:7] == ["1", "4194301", "3", "ready", "23h53m", "1234567", "1234560"]
    # The notes do not fit beside the table, so they stand under it.
    assert f"slot 2: {NOTES[0]}\nslot 3: {NOTES[1]}\nslot 3: {NOTES[2]}\n" in plain


@pytest.mark.usefixtures("tells_status")
def test_status_has_its_notes_in_the_table_of_a_wide_terminal(environment: dict[str, str]) -> None:
    plain = without_colours(on_terminal([program("greeterctl"), "status"], environment, 160))
    assert table(plain)[0][-1] == "note"
    assert "slot 2:" not in plain


@pytest.mark.usefixtures("tells_status")
def test_status_cuts_nothing_on_a_narrow_terminal(environment: dict[str, str]) -> None:
    plain = without_colours(on_terminal([program("greeterctl"), "status"], environment, 30))
    assert "…" not in plain
    assert table(plain)[1][:7] == ["1", "4194301", "3", "ready", "23h53m", "1234567", "1234560"]


@pytest.mark.usefixtures("tells_status")
def test_no_color_is_respected(environment: dict[str, str]) -> None:
    text = on_terminal([program("greeterctl"), "status"], environment | {"NO_COLOR": "1"}, 80)
    assert "\x1b[32m" not in text


@pytest.mark.shows("exit 141 greeterctl")
@pytest.mark.usefixtures("tells_status")
def test_a_reader_that_has_gone_is_no_traceback(environment: dict[str, str]) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    try:
        done = subprocess.run(
            [program("greeterctl"), "status"], env=environment, stdout=writing, check=False,
            stderr=subprocess.PIPE, text=True, timeout=30,
        )  # fmt: skip
    finally:
        os.close(writing)
    assert (done.returncode, done.stderr) == (141, "")


# Stop

STOPPING = """\
import selectors, sys
from pathlib import Path
import structlog
from greeterd.control import ControlServer
log = structlog.wrap_logger(structlog.ReturnLogger(),
                            wrapper_class=structlog.make_filtering_bound_logger("error"))
selector = selectors.DefaultSelector()
def on_request(request):
    if sys.argv[2] == "answers":
        request.answer(True)
    elif sys.argv[2] == "refuses":
        request.answer(False, error="not now", code=1)
    elif sys.argv[2] == "dies":
        sys.exit()
    print(request.command, request.arguments["now"], flush=True)
server = ControlServer(Path(sys.argv[1]), selector, on_request, allowed_uids=frozenset(), log=log)
selector.register(sys.stdin, selectors.EVENT_READ, lambda mask: sys.exit())
print("listening", flush=True)
while True:
    for key, mask in selector.select():
        key.data(mask)
"""
"""A daemon that lives until its standard input ends."""


@pytest.fixture
def stopping(tmp_path: Path) -> Iterator[Callable[[str], subprocess.Popen[str]]]:
    """Start a process that does with `stop` as it is told."""
    started: list[subprocess.Popen[str]] = []

    def start(manner: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-c", STOPPING, str(tmp_path / "control.sock"), manner],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        started.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == "listening\n"
        return process

    yield start
    for process in started:
        with process:
            process.kill()


Stopping = Callable[[str], subprocess.Popen[str]]


def test_stop_returns_when_the_process_has_ended(
    stopping: Stopping, environment: dict[str, str]
) -> None:
    daemon = stopping("answers")
    assert daemon.stdin is not None
    assert daemon.stdout is not None
    with subprocess.Popen(
        [program("greeterctl"), "stop", "--now"], env=environment, stdout=subprocess.PIPE, text=True
    ) as asking:
        assert daemon.stdout.readline() == "stop True\n"
        with pytest.raises(subprocess.TimeoutExpired):
            asking.wait(timeout=0.5)
        daemon.stdin.close()
        out, _ = asking.communicate(timeout=30)
    assert (asking.returncode, out) == (0, "stopped\n")


def test_a_process_that_ends_before_it_answers_has_stopped(ctl: Ctl, stopping: Stopping) -> None:
    stopping("dies")
    done = ctl("stop")
    assert (done.returncode, done.stdout) == (0, "stopped\n")


def test_a_process_that_goes_on_is_told_of_in_time(ctl: Ctl, stopping: Stopping) -> None:
    stopping("answers")
    done = ctl("stop", "--timeout", "0.5")
    assert done.returncode == 75
    assert "still runs" in done.stderr


def test_a_refused_stop_does_not_wait_for_the_end(ctl: Ctl, stopping: Stopping) -> None:
    stopping("refuses")
    done = ctl("stop")
    assert (done.returncode, done.stderr) == (1, "greeterctl: stop: not now\n")
