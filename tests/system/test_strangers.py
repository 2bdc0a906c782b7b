"""The programs and those who answer them: servers, files and names of somebody who means harm.

greeterctl asks root, its own user or a directory's owner, and nobody else.  What comes is bounded
in size and time, and what is shown of it is text: no control character reaches the terminal.
"""

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec
import pytest

from greeterd.bench.model import Case
from greeterd.bench.report.export import to_json
from greeterd.cli.greeterctl import main
from greeterd.control.protocol import MAX_ANSWER_BYTES, MAX_WORKERS, parse_answer, render_answer
from greeterd.control.status import ListenerStatus, SlotCounters, Status, WorkerStatus, total
from tests.bench_results import make_results
from tests.support import until
from tests.system.harness import clean_environment, program
from tests.system.terminal import on_terminal, without_colours

NOBODY = 65534
OTHER = 65533
HOSTILE = "\x1b]0;title\x07\x1b[2J\x9b31m [red]\r\n\x7f\u202e"
COMMANDS = (
    *(["ping"], ["status"], ["balance"], ["reload"], ["scale", "2"], ["restart"], ["reopen"]),
    *(["upgrade"], ["stop"], ["stop", "--now"]),
)
MIB = 2**20

Behave = Callable[[socket.socket], None]


class Stranger:
    """Listens at an address, and does with each connection as the test says."""

    def __init__(self, listener: socket.socket, behave: Behave) -> None:
        self.sent = 0
        self._listener, self._behave = listener, behave
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            with connection, contextlib.suppress(OSError):
                connection.settimeout(60)
                self._behave(connection)

    def flood(self, connection: socket.socket, piece: bytes, size: int = 300 * MIB) -> None:
        """Send a piece again and again, and count what was taken."""
        while self.sent < size:
            self.sent += connection.send(piece)

    def close(self) -> None:
        """Stop, when the connection in hand is done with."""
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join(60)
        self._listener.close()


Meet = Callable[[Behave], Stranger]


@pytest.fixture
def directory() -> Iterator[Path]:
    """Return a directory with a short name, which all may enter."""
    path = Path(tempfile.mkdtemp(prefix="greeterd-test-"))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path)


@pytest.fixture
def meet(directory: Path) -> Iterator[Meet]:
    """Put somebody at the control socket."""
    with contextlib.ExitStack() as stack:

        def start(behave: Behave) -> Stranger:
            listener = socket.socket(socket.AF_UNIX)
            listener.bind(str(directory / "control.sock"))
            listener.listen()
            stranger = Stranger(listener, behave)
            stack.callback(stranger.close)
            return stranger

        yield start


@pytest.fixture
def meet_tcp() -> Iterator[Callable[[Behave], tuple[Stranger, str]]]:
    """Put somebody at a TCP port; return where."""
    with contextlib.ExitStack() as stack:

        def start(behave: Behave) -> tuple[Stranger, str]:
            listener = socket.create_server(("127.0.0.1", 0))
            stranger = Stranger(listener, behave)
            stack.callback(stranger.close)
            return stranger, f"127.0.0.1:{listener.getsockname()[1]}"

        yield start


def run(name: str, *arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run a program in a pipe."""
    return subprocess.run(
        [program(name), *arguments], env=clean_environment({}), stdin=subprocess.DEVNULL,
        capture_output=True, text=True, timeout=60, check=False, **options,
    )  # fmt: skip


def says(line: bytes) -> Behave:
    """Take the request, and answer with this."""

    def behave(connection: socket.socket) -> None:
        connection.recv(65536)
        connection.sendall(line)

    return behave


def is_text(text: str) -> bool:
    """Tell whether a terminal obeys nothing in a text but its newlines."""
    return all(one == "\n" or one.isprintable() for one in text)


def is_one_line(text: str) -> bool:
    """Tell whether a text is one line that a terminal obeys nothing of."""
    return text.endswith("\n") and text[:-1].isprintable()


# What answers greeterctl


@pytest.mark.parametrize(
    ("piece", "reason"), [(b"x" * 65536, "more than 8 MiB"), (b"\n" * 65536, "more than one line")]
)
def test_an_answer_of_300_mb_is_not_read(
    meet: Meet, directory: Path, piece: bytes, reason: str
) -> None:
    stranger = meet(lambda connection: stranger.flood(connection, piece))
    done = run("greeterctl", "--run-dir", str(directory), "status")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"greeterctl: what answered is no greeterd: {reason}\n"
    assert stranger.sent < 2 * MAX_ANSWER_BYTES


def test_the_status_of_the_largest_daemon_is_read() -> None:
    counters = {slot: SlotCounters(connections=10**12) for slot in range(1, MAX_WORKERS + 1)}
    addresses = [f"[2001:db8:1111:2222:3333:4444:5555:{port}]:{port}" for port in range(1000, 1064)]
    status = Status(
        version="1.2.3", pid=4_194_303, mode="reuseport", wait="epoll", state="running",
        generation=9, since=1e9, uptime=1e9, addresses=addresses,
        workers=[
            WorkerStatus(slot=slot, generation=9, state="draining", pid=4_194_303, age=1e6 / 7,
                         title="greeterd: worker 512 gen 999 [draining]")
            for slot in counters for _ in range(2)
        ],
        counters=counters, totals=total(counters.values()),
        listeners=[ListenerStatus(address=address, slot=slot, queued=1, limit=4096, drops=0)
                   for slot in counters for address in addresses],
    )  # fmt: skip
    line = render_answer(True, {"status": status})
    assert len(line) < MAX_ANSWER_BYTES
    assert parse_answer(line)["ok"]


def test_an_answer_that_comes_byte_by_byte_has_no_more_time_than_another(
    meet: Meet, directory: Path
) -> None:
    over = threading.Event()

    def drip(connection: socket.socket) -> None:
        while not over.is_set():  # as fast as it can: a pause would end the waiting by itself
            connection.send(b" ")

    meet(drip)
    began = time.monotonic()
    try:
        done = run("greeterctl", "--run-dir", str(directory), "reload", "--timeout", "0.3")
    finally:
        over.set()
    assert done.returncode == 75
    assert "no answer in time" in done.stderr
    assert time.monotonic() - began < 30


def test_who_never_answers_is_waited_for_as_long_as_was_said(meet: Meet, directory: Path) -> None:
    over = threading.Event()
    meet(lambda _: (over.wait(60), None)[1])
    done = run("greeterctl", "--run-dir", str(directory), "status", "--timeout", "0.3")
    over.set()
    assert done.returncode == 75


STATUS = {
    "version": HOSTILE, "pid": 1, "mode": HOSTILE, "wait": HOSTILE, "state": "running",
    "generation": 1, "since": 0.0, "uptime": 1.0, "addresses": [HOSTILE],
    "workers": [{"slot": 1, "generation": 1, "state": HOSTILE}],
    "counters": {"1": {}}, "totals": {}, "last_error": HOSTILE, "log_dir": HOSTILE,
    "reload": {"ok": False, "generation": 1, "at": 0.0, "took": 0.0, "error": HOSTILE},
}  # fmt: skip
ANSWERS: list[dict[str, Any]] = [
    {"ok": True, "generation": HOSTILE, "status": STATUS, HOSTILE: HOSTILE},
    {"ok": True, "generation": {HOSTILE: [HOSTILE]}, "status": {HOSTILE: HOSTILE}},
    {"ok": True, "status": {**STATUS, "uptime": 1e308, "since": 1e308}},
    {"ok": True, "status": {**STATUS, "uptime": "nan"}},
    {"ok": True, "status": {**STATUS, "counters": {"1": {"greetings": -(10**30)}}}},
    {"ok": True, "status": {**STATUS, "counters": {"1": {"greetings": 10**400}}}},
    {"ok": True, "status": HOSTILE},
    {"ok": False, "error": HOSTILE, "code": 77},
    {"ok": False, "error": {HOSTILE: [HOSTILE]}, "code": HOSTILE},
    {"ok": False, "code": True},
]


@pytest.mark.parametrize("more", [[], ["--json"]])
@pytest.mark.parametrize("answer", ANSWERS, ids=range(len(ANSWERS)))
def test_what_is_answered_is_shown_as_text(
    meet: Meet,
    directory: Path,
    capfd: pytest.CaptureFixture[str],
    answer: Mapping[str, Any],
    more: list[str],
) -> None:
    meet(says(json.dumps({"version": 1, **answer}).encode() + b"\n"))
    for command in COMMANDS[:-2]:  # a stop waits for this process's end
        code = main(["--run-dir", str(directory), *command, *more])
        out, err = capfd.readouterr()
        assert code in {0, 1, 77}, command
        assert is_text(out)
        assert err == "" or is_one_line(err)
        if more:
            assert isinstance(json.loads(out), dict | str)


@pytest.mark.parametrize("line", [HOSTILE, f'"{HOSTILE}"', "[" * 10**6, "{}", "1", ""])
def test_what_is_no_answer_is_one_line_of_text(meet: Meet, directory: Path, line: str) -> None:
    meet(says(line.replace("\n", "").encode() + b"\n"))
    done = run("greeterctl", "--run-dir", str(directory), "status")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("greeterctl: what answered is no greeterd: ")
    assert is_one_line(done.stderr)


def test_a_terminal_gets_our_colours_and_nothing_of_a_stranger_s(
    meet: Meet, directory: Path
) -> None:
    meet(says(json.dumps({"version": 1, "ok": True, "status": STATUS}).encode() + b"\n"))
    for more in ([], ["--json"]):
        command = [program("greeterctl"), "--run-dir", str(directory), "status", *more]
        shown = without_colours(on_terminal(command, clean_environment({}), 80))
        assert is_text(shown), shown


# Who answers greeterctl

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="becomes other users")
LISTEN = """\
import socket, sys
listener = socket.socket(socket.AF_UNIX)
listener.bind(sys.argv[1])
listener.listen()
print("listening", flush=True)
while True:
    connection, _ = listener.accept()
    request = connection.recv(65536)
    if not request:
        continue
    print("asked", flush=True)
    connection.sendall(b'{"version":1,"ok":true}\\n')
    connection.close()
"""


@contextlib.contextmanager
def listening(directory: Path, uid: int) -> Iterator[subprocess.Popen[str]]:
    """Have a process of a user answer at the control socket."""
    path = directory / "control.sock"
    # The system's own interpreter: it need not be able to read this one's.
    with subprocess.Popen(
        ["/usr/bin/env", "-i", "/usr/bin/python3", "-c", LISTEN, str(path)],
        user=uid, group=uid, extra_groups=[], stdout=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "listening\n"
            path.chmod(0o666)
            yield process
        finally:
            process.kill()
            path.unlink()


def ctl_as(uid: int, directory: Path) -> tuple[int, str, str]:
    """Run `greeterctl ping` as a user, who need not be able to read the interpreter."""
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        child = os.fork()  # noqa: TID251 - tests may
        if child == 0:
            os.setgroups([])
            os.setresgid(uid, uid, uid)
            os.setresuid(uid, uid, uid)
            sys.stdout, sys.stderr = out, err
            os._exit(main(["--run-dir", str(directory), "ping"]))
        _, status = os.waitpid(child, 0)
        out.seek(0)
        err.seek(0)
        return os.waitstatus_to_exitcode(status), out.read(), err.read()


@as_root
@pytest.mark.skipif(not Path("/usr/bin/python3").exists(), reason="needs the system's python3")
@pytest.mark.parametrize(
    ("asker", "owner", "answerer", "served"),
    [
        (0, 0, 0, True),
        (0, NOBODY, NOBODY, True),
        (0, NOBODY, 0, True),
        (0, 0, NOBODY, False),
        (0, OTHER, NOBODY, False),
        (NOBODY, NOBODY, NOBODY, True),
        (NOBODY, 0, NOBODY, True),
        (NOBODY, NOBODY, 0, True),
        (NOBODY, OTHER, OTHER, False),
        (NOBODY, 0, OTHER, False),
    ],
)
def test_only_root_ourselves_and_for_root_the_owner_are_asked(
    directory: Path, asker: int, owner: int, answerer: int, *, served: bool
) -> None:
    os.chown(directory, owner, owner)
    directory.chmod(0o777)
    with listening(directory, answerer) as stranger:
        code, said, reason = ctl_as(asker, directory)
        assert stranger.stdout is not None
        if served:
            assert (code, reason) == (0, "")
            assert stranger.stdout.readline() == "asked\n"
        else:
            expected = " or ".join(f"{one}" for one in sorted({asker, 0, *([owner] * (not asker))}))
            assert (code, said) == (77, "")
            assert reason == (
                f"greeterctl: user {answerer} answers at {directory}/control.sock,"
                f" and not user {expected}\n"
            )
            stranger.kill()
            assert stranger.stdout.read() == "", "nothing was said to a stranger"


# Logs that greeterctl counts


def test_balance_shows_no_more_of_a_log_than_its_numbers(directory: Path) -> None:
    log = directory / f"{HOSTILE[:12]}.log".replace("\n", "")
    lines = [
        {"event": "greeting", "worker": 1, "name": HOSTILE, HOSTILE: HOSTILE},
        {"event": HOSTILE, "worker": HOSTILE},
    ]
    deep = '{"event":"greeting","worker":1,"x":' + "[" * 10**6
    log.write_text("".join(json.dumps(one) + "\n" for one in lines) + f"{HOSTILE}\n{deep}\n{deep}")
    for more in ([], ["--json"]):
        done = run("greeterctl", "balance", str(log), *more)
        assert done.returncode == 0, done
        assert is_text(done.stdout)
    for lost in (f"{log}.gz", f"{directory}/{HOSTILE}"):
        if lost.endswith(".gz"):
            Path(lost).write_text(HOSTILE)
        done = run("greeterctl", "balance", lost)
        assert done.returncode == 1
        assert is_one_line(done.stderr)


# Replies to greeter

MeetTcp = Callable[[Behave], tuple[Stranger, str]]


@pytest.mark.parametrize("piece", [b"x" * 65536, b"\n" * 65536])
@pytest.mark.parametrize(
    "command", [["send", "Alice", "--wait-reply"], ["send", "Alice"], ["load", "--count", "1"]]
)
def test_a_reply_of_300_mb_is_not_read(meet_tcp: MeetTcp, command: list[str], piece: bytes) -> None:
    stranger, address = meet_tcp(lambda connection: stranger.flood(connection, piece))
    done = run("greeter", *command, "--address", address)
    assert done.returncode == 1
    assert stranger.sent < 64 * MIB  # the kernel's own buffers hold some of it


def test_a_reply_that_comes_byte_by_byte_has_no_more_time_than_another(
    meet_tcp: MeetTcp,
) -> None:
    over = threading.Event()

    def drip(connection: socket.socket) -> None:
        while not over.wait(1e-3):
            connection.send(b"x")

    _, address = meet_tcp(drip)
    try:
        done = run("greeter", "send", "Alice", "--timeout", "0.3", "--address", address)
    finally:
        over.set()
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "greeter: 'Alice': no end-of-stream within 0.3 s\n"


def test_a_terminal_gets_a_reply_as_text(meet_tcp: MeetTcp) -> None:
    _, address = meet_tcp(says(HOSTILE.encode() + b"\xff\n"))
    command = [program("greeter"), "send", "Alice", "--wait-reply", "--address", address]
    assert is_one_line(on_terminal(command, clean_environment({}), 80))


# Files that greeter bench reads


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return results whose texts mean harm, in a file whose name does, too."""
    made = msgspec.to_builtins(make_results([Case(mode=HOSTILE), Case(mode="handoff")]))
    for name in ("date", "kernel", "machine", "cpu", "python", "greeterd", "commit"):
        made["environment"][name] = HOSTILE
    made["trials"][0]["invalid"] = HOSTILE
    file = tmp_path_factory.mktemp("results") / HOSTILE.replace("/", "")
    file.write_text(json.dumps(made))
    return file


def test_reports_show_what_files_hold_as_text(results: Path) -> None:
    other = results.parent / "other.json"
    other.write_text(to_json(make_results([Case(mode=HOSTILE)], seed=2)))
    for arguments in (["report", str(results)], ["compare", str(results), str(other)]):
        done = run("greeter", "bench", *arguments)
        assert done.returncode in {0, 1}, done
        assert is_text(done.stdout)
        command = [program("greeter"), "bench", *arguments]
        shown = on_terminal(command, clean_environment({}), 80, code=done.returncode)
        assert is_text(without_colours(shown))


def test_what_holds_no_results_is_one_line_of_text(results: Path) -> None:
    huge = results.parent / "huge"
    with huge.open("wb") as file:
        file.truncate(2**40)
    deep = results.parent / "deep"
    deep.write_text('{"format":1,"x":' + "[" * 10**6)
    for path in (huge, deep, results.parent, Path(f"{results}.none"), Path("/dev/zero")):
        done = run("greeter", "bench", "report", str(path))
        assert (done.returncode, done.stdout) == (66, "")
        assert is_one_line(done.stderr)


# Where another daemon runs


def test_a_daemon_that_runs_elsewhere_is_named_with_its_user() -> None:
    run_dir = Path(tempfile.mkdtemp(prefix="greeterd-", dir="/tmp"))
    environment = clean_environment({"TMPDIR": "/nonexistent", "XDG_RUNTIME_DIR": "/nonexistent"})
    command = [program("greeterctl"), "ping"]
    try:
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(run_dir / "control.sock"))
            listener.listen()
            done = subprocess.run(
                command, env=environment, capture_output=True, text=True, check=False, timeout=60
            )
        assert done.returncode == 69
        assert f" runs one: greeterctl --run-dir {run_dir}" in done.stderr
        assert is_one_line(done.stderr)
        until(lambda: not _is_listed(run_dir))
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, check=False, timeout=60
        )
        assert str(run_dir) not in done.stderr
    finally:
        shutil.rmtree(run_dir)


def _is_listed(run_dir: Path) -> bool:
    return f"{run_dir}/" in Path("/proc/net/unix").read_text(errors="replace")
