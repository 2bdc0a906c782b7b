"""Every command of greeterctl with every exit code that it has, from a real daemon, and as JSON."""

import json
import os
import shutil
import signal
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from greeterd.cli.greeterctl import EXIT_CODES
from greeterd.control.protocol import COMMANDS
from tests.support import until
from tests.system.asking import Ask, answer
from tests.system.books import serving
from tests.system.clients import connect, greet
from tests.system.conftest import StartDaemon
from tests.system.harness import Daemon, clean_environment, program
from tests.system.image import Image
from tests.system.obstacles import obstruct

DONE = 0
REFUSED = 1
USAGE = 2
NOT_RUNNING = 69
SYSTEM = 71
NOT_TOLD = 74
NO_ANSWER = 75
NOT_PERMITTED = 77
INTERRUPTED = 130
NO_READER = 141

LINES = (
    ("ping",),
    ("status",),
    ("balance",),
    ("reload",),
    ("scale", "2"),
    ("restart",),
    ("restart", "1"),
    ("reopen",),
    ("upgrade",),
    ("stop", "--now"),
    ("stop",),
)
"""Every command, the stops last."""
EACH = pytest.mark.parametrize("line", LINES, ids=" ".join)
NOBODY = 65534
as_root = pytest.mark.skipif(
    os.geteuid() != 0 or shutil.which("setpriv") is None, reason="becomes another user"
)


def test_every_command_and_every_exit_code_is_tested_here() -> None:
    assert {line[0] for line in LINES} == {*COMMANDS, "balance"}
    listed = [int(line.split(":")[0][2:]) for line in EXIT_CODES.splitlines() if line[:2] == "- "]
    listed.remove(SYSTEM)  # tests/integration/cli/test_program.py
    assert listed == [
        *(DONE, REFUSED, USAGE, NOT_RUNNING, NOT_TOLD, NO_ANSWER, NOT_PERMITTED),
        *(INTERRUPTED, NO_READER),
    ]


def check(done: subprocess.CompletedProcess[str], code: int, reason: str = "") -> None:
    """Assert that greeterctl ended with this code and, unless it is 0, one line that says why."""
    assert done.returncode == code, done
    if code == DONE:
        assert done.stdout
        assert done.stderr == ""
    else:
        assert done.stdout == ""
        assert done.stderr.startswith("greeterctl: ")
        assert done.stderr.count("\n") == 1
        assert reason in done.stderr


def check_json(done: subprocess.CompletedProcess[str], code: int, reason: str = "") -> None:
    """Assert that greeterctl ended with this code, and one JSON object that says so."""
    assert (done.returncode, done.stderr) == (code, ""), done
    told = json.loads(done.stdout)
    if "ok" in told:  # but for a status, which is the daemon's own
        assert told["version"] == 1
        assert told["ok"] == (code == DONE)
    if code != DONE:
        assert told["code"] == code
        assert reason in told["error"]


# 0


ANSWERS = {
    "ping": "greeterd answers: pid ",
    "status": "greeterd ",
    "balance": "greeterd pid ",
    "reload": "reloaded: generation 2\n",
    "scale 2": "workers: 2\n",
    "restart": "restarted: every slot\n",
    "restart 1": "restarted: slot 1\n",
    "reopen": "reopened: every log\n",
    "upgrade": "upgraded: generation 2 serves\n",
    "stop --now": "stopped\n",
    "stop": "stopped\n",
}
"""How what is printed of each command begins, or all of it where it ends with a line."""


def check_effect(server: Daemon, line: tuple[str, ...], before: dict[int, tuple[int, int]]) -> None:
    """Assert that a command has done to a daemon of three workers what it is for, and no more."""
    if line[0] == "stop":
        assert server.wait() == 0
        return
    assert server.status()["state"] == "running"
    after = serving(server)
    replaced = {slot for slot in before if after.get(slot) != before[slot]}
    generations = {generation for _, generation in after.values()}
    pids = {pid for pid, _ in before.values()} & {pid for pid, _ in after.values()}
    match line:
        case ("reload",) | ("upgrade",):
            assert (sorted(after), generations, pids) == ([1, 2, 3], {2}, set())
        case ("scale", _):
            assert after == {slot: before[slot] for slot in (1, 2)}
        case ("restart",):
            assert (sorted(after), generations, pids) == ([1, 2, 3], {1}, set())
        case ("restart", _):
            assert (sorted(after), generations, replaced) == ([1, 2, 3], {1}, {1})
        case _:
            assert after == before
    assert len(server.events("logs reopened")) == (line[0] == "reopen")


@EACH
def test_what_was_done_exits_with_0(daemon: StartDaemon, line: tuple[str, ...]) -> None:
    server = daemon("--workers", "3")
    before = serving(server)
    done = server.ctl(*line, "--timeout", "30")
    check(done, DONE)
    expected = ANSWERS[" ".join(line)]
    assert done.stdout == expected if expected.endswith("\n") else done.stdout.startswith(expected)
    check_effect(server, line, before)


@EACH
def test_what_was_done_is_told_as_json(daemon: StartDaemon, line: tuple[str, ...]) -> None:
    server = daemon("--workers", "3")
    before = serving(server)
    done = server.ctl("--json", *line)
    check_json(done, DONE)
    told = json.loads(done.stdout)
    if line[0] == "ping":
        assert told["pid"] == server.pid
    elif line[0] in {"reload", "scale", "restart", "upgrade"}:
        after = serving(server)
        assert {told["generation"]} == {generation for _, generation in after.values()}
        assert told["workers"] == len(after)
    check_effect(server, line, before)


# 1

Refusal = tuple[tuple[str, ...], tuple[Callable[[Daemon, Path, Image], object], str]]


def spoil_file(server: Daemon, file: Path, image: Image) -> None:  # noqa: ARG001 - a Refusal's
    """Let a reload find a setting that there is not."""
    file.write_text(file.read_text() + "werkers = 1\n")


def spoil_log(server: Daemon, file: Path, image: Image) -> None:  # noqa: ARG001 - as above
    """Let no further worker start, and no log be opened anew."""
    obstruct(server.log_dir / "worker-1.log")
    (server.log_dir / "worker-3.log").mkdir()


def spoil_image(server: Daemon, file: Path, image: Image) -> None:  # noqa: ARG001 - as above
    """Let no new image start."""
    image.spoil("worker/main.py", "def main", "def def main")


REFUSALS: list[Refusal] = [
    (("reload",), (spoil_file, "no such setting")),
    (("reload",), (spoil_log, "worker 1 did not start")),
    (("scale", "3"), (spoil_log, "worker 3 did not start")),
    (("restart",), (spoil_log, "worker 1 did not start")),
    (("restart", "1"), (spoil_log, "worker 1 did not start")),
    (("restart", "9"), (lambda *_: None, "there is no worker 9")),
    (("reopen",), (spoil_log, "worker-1.log")),
    (("upgrade",), (spoil_image, "SyntaxError")),
]


@pytest.mark.shows("command restart refused", "command reopen refused")
@pytest.mark.parametrize(("line", "refusal"), REFUSALS)
def test_what_was_refused_or_failed_exits_with_1_and_changes_nothing(
    daemon: StartDaemon,
    image: Image,
    tmp_path: Path,
    line: tuple[str, ...],
    refusal: tuple[Callable[[Daemon, Path, Image], object], str],
) -> None:
    spoil, reason = refusal
    file = tmp_path / "greeterd.toml"
    file.write_text("workers = 2\nreply = true\n")
    server = daemon("--config", str(file), environment=image.environment)
    before = server.worker_pids()
    spoil(server, file, image)
    check(server.ctl(*line), REFUSED, reason)
    check_json(server.ctl(*line, "--json"), REFUSED, reason)
    until(lambda: server.worker_pids() == before)
    assert server.status()["state"] == "running"
    assert greet(server.address, "Alice") == "Hello, Alice\n"


@pytest.mark.parametrize("line", [LINES[0], *LINES[3:9]], ids=" ".join)
def test_nothing_is_begun_while_the_daemon_stops(
    daemon: StartDaemon, line: tuple[str, ...]
) -> None:
    server = daemon("--workers", "2", "--client-timeout", "60")
    with connect(server.address):
        until(lambda: server.status()["totals"]["open"] == 1)
        server.signal(signal.SIGTERM)
        until(lambda: server.status()["state"] == "stopping")
        code, reason = (DONE, "") if line == ("reopen",) else (REFUSED, "stopping")
        check(server.ctl(*line), code, reason)
        check(server.ctl("stop", "--now"), DONE)


# 2


@pytest.mark.parametrize(
    "line",
    [
        *(["dance"], ["scale"], ["scale", "0"], ["scale", "513"], ["scale", "two"]),
        *(["restart", "-1"], ["restart", "x"], ["stop", "--later"], ["reload", "now"]),
        *(["ping", "--timeout", "0"], ["status", "--timeout", "x"], ["reopen", "--jason"]),
    ],
)
def test_a_wrong_command_line_exits_with_2_and_asks_nothing(
    daemon: StartDaemon, line: list[str]
) -> None:
    server = daemon("--workers", "1", "--log-level", "debug")
    check(server.ctl(*line), USAGE)
    assert server.events("control request") == []


# 69


def test_a_daemon_that_does_not_run_any_more_exits_with_69(daemon: StartDaemon) -> None:
    server = daemon("--workers", "1")
    assert server.stop() == 0
    for line in LINES:
        check(server.ctl(*line), NOT_RUNNING, "no greeterd is running (no socket at ")
        check_json(server.ctl("--json", *line), NOT_RUNNING, "no greeterd is running")


def test_a_daemon_that_was_killed_exits_with_69(daemon: StartDaemon) -> None:
    server = daemon("--workers", "1")
    server.signal(signal.SIGKILL)
    server.wait()
    for line in LINES:
        check(server.ctl(*line), NOT_RUNNING, "no greeterd is running (nobody listens at ")


def test_a_daemon_that_dies_before_it_answers_exits_with_69(
    daemon: StartDaemon, ask: Ask, image: Image
) -> None:
    server = daemon("--workers", "1", environment=image.environment)
    image.spoil(
        "master/upgrade/preflight.py",
        r"\n    log = ",
        "\n    __import__('signal').pause()\n    log = ",
    )
    asked = ask(server, "upgrade")
    server.wait_event("trying the new image")
    server.signal(signal.SIGKILL)
    assert answer(asked) == (
        NOT_RUNNING,
        "greeterctl: greeterd went away before it answered\n",
    )
    server.wait()


# 74


def test_what_was_done_and_cannot_be_told_exits_with_74(daemon: StartDaemon) -> None:
    server = daemon("--workers", "1")
    for line in LINES[:-1]:
        with Path("/dev/full").open("wb") as full:
            done = subprocess.run(
                [program("greeterctl"), "--run-dir", str(server.run_dir), *line],
                stdout=full, stderr=subprocess.PIPE, text=True, timeout=60, check=False,
            )  # fmt: skip
        assert done.returncode == NOT_TOLD, done
        assert done.stderr.endswith("standard output: No space left on device\n")
        assert done.stderr.count("\n") == 1
    assert server.wait() == 0


# 75


def test_a_daemon_that_does_not_answer_in_time_exits_with_75(daemon: StartDaemon) -> None:
    server = daemon("--workers", "2")
    server.signal(signal.SIGSTOP)
    for line in LINES[:-2]:
        check(server.ctl(*line, "--timeout", "0.2"), NO_ANSWER, "no answer in time")
    check_json(server.ctl("ping", "--timeout", "0.2", "--json"), NO_ANSWER, "(--timeout 0.2)")
    server.signal(signal.SIGCONT)
    # What was asked is carried out, as the answer has warned.
    server.wait_event("upgrade done", timeout=30.0)
    until(lambda: server.status()["state"] == "running", timeout=30.0)
    for line in LINES[-2:]:
        server.signal(signal.SIGSTOP)
        check(server.ctl(*line, "--timeout", "0.2"), NO_ANSWER)
        server.signal(signal.SIGCONT)
        assert server.wait() == 0
        server = daemon("--workers", "2")


def test_a_stop_that_takes_too_long_exits_with_75(daemon: StartDaemon) -> None:
    server = daemon("--workers", "1", "--client-timeout", "60")
    with connect(server.address):
        until(lambda: server.status()["totals"]["open"] == 1)
        check(server.ctl("stop", "--timeout", "0.5"), NO_ANSWER)
        assert server.status()["state"] == "stopping"
        check(server.ctl("stop", "--now"), DONE)


# 77


def ctl_as_nobody(server: Daemon, *line: str) -> subprocess.CompletedProcess[str]:
    """Run greeterctl as a user that is neither root nor the daemon's."""
    become = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"]
    return subprocess.run(
        [*become, sys.executable, program("greeterctl"), "--run-dir", str(server.run_dir), *line],
        env=clean_environment({"HOME": "/"}),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def nobody_can_run_it() -> bool:
    """Tell whether the interpreter and the program can be read by anyone."""
    become = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"]
    command = [*become, sys.executable, program("greeterctl"), "--version"]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


@as_root
def test_another_user_does_not_reach_the_socket_and_exits_with_77(daemon: StartDaemon) -> None:
    if not nobody_can_run_it():
        pytest.skip("the interpreter is root's own")
    server = daemon("--workers", "1")
    for line in LINES:
        check(ctl_as_nobody(server, *line), NOT_PERMITTED, "is another user's")
    assert server.ctl("ping").returncode == DONE


@as_root
def test_another_user_who_reaches_the_socket_is_refused_and_logged(daemon: StartDaemon) -> None:
    if not nobody_can_run_it():
        pytest.skip("the interpreter is root's own")
    server = daemon("--workers", "1")
    server.run_dir.chmod(0o755)
    (server.run_dir / "control.sock").chmod(0o666)
    for number, line in enumerate(LINES, start=1):
        done = ctl_as_nobody(server, *line)
        check(done, NOT_PERMITTED, f"user {NOBODY} may not control this daemon")
        refused = server.wait_event("control request refused", count=number)
        assert (refused["level"], refused["peer_uid"]) == ("warning", NOBODY)
    assert server.ctl("ping").returncode == DONE
    assert server.events("signal") == []


@as_root
def test_the_daemon_s_own_user_is_served_and_root_is_too(daemon: StartDaemon) -> None:
    if not nobody_can_run_it():
        pytest.skip("the interpreter is root's own")
    server = daemon(
        *("--workers", "1"),
        prefix=(
            *("sh", "-c", f'chown {NOBODY} .; exec setpriv "$@"', "sh"),
            *(f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"),
        ),
    )
    assert psutil.Process(server.pid).uids().real == NOBODY
    assert ctl_as_nobody(server, "ping").returncode == DONE
    assert server.ctl("ping").returncode == DONE
    assert ctl_as_nobody(server, "reload").returncode == DONE


def test_the_socket_is_its_owner_s_alone(daemon: StartDaemon) -> None:
    server = daemon("--workers", "1", "--umask", "0")
    found = (server.run_dir / "control.sock").stat()
    assert stat.filemode(found.st_mode) == "srw-------"
    assert found.st_uid == os.geteuid()


# 130, 141


def test_an_interrupted_command_exits_with_130(daemon: StartDaemon, ask: Ask) -> None:
    server = daemon("--workers", "1", "--client-timeout", "60")
    with connect(server.address):
        until(lambda: server.status()["totals"]["open"] == 1)
        asked = ask(server, "stop")
        until(lambda: server.status()["state"] == "stopping")
        asked.send_signal(signal.SIGINT)
        told = "greeterctl: interrupted; the command may still be under way\n"
        assert answer(asked) == (INTERRUPTED, told)


def test_a_reader_that_has_gone_exits_with_141(daemon: StartDaemon) -> None:
    server = daemon("--workers", "1")
    reading, writing = os.pipe()
    os.close(reading)
    command = [program("greeterctl"), "--run-dir", str(server.run_dir), "status"]
    with os.fdopen(writing, "wb") as gone:
        done = subprocess.run(command, stdout=gone, stderr=subprocess.PIPE, check=False, timeout=30)
    assert (done.returncode, done.stderr) == (NO_READER, b"")
