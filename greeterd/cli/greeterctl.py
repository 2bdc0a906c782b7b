"""The program `greeterctl`: one command to a running daemon, its answer, an exit code.

Every command is synchronous: it returns when the daemon reports that it is done, and `stop` only
when the daemon's process has ended. Standard output carries results; reasons go to standard error,
a line each, beginning `greeterctl: `. With --json everything is one JSON object on standard output,
failures too.
"""

import contextlib
import os
import select
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from time import monotonic
from typing import Annotated, Any, Final, TypeVar

import msgspec
from cyclopts import App, CycloptsError, Group, Parameter
from cyclopts.validators import Number

from greeterd import __version__
from greeterd.cli.balance import LogError, count_daemon, count_logs, render, to_plain
from greeterd.cli.program import complain, run_program
from greeterd.cli.run_dirs import others, usual_run_dir
from greeterd.cli.status import render_status
from greeterd.cli.usage import epilogue, expand_help, print_usage, refusal
from greeterd.control import (
    ControlError,
    NoAnswerError,
    NotRunningError,
    ask,
    connect,
    exchange,
    peer_of,
)
from greeterd.control.protocol import FAILED, MAX_WORKERS, render_answer
from greeterd.control.status import from_plain
from greeterd.errors import NoReaderError, OutputError, UsageError
from greeterd.system.escape import escape, to_ascii
from greeterd.system.socket_file import CONTROL_SOCKET

EXIT_CODES: Final = """\
Exit codes:

- 0: done
- 1: the daemon refused, or the command failed; the reason is printed
- 2: the command line is wrong
- 69: no greeterd is running: no socket, or nobody answers at it; or a package is missing
- 71: the system refuses what this program needs, such as a descriptor
- 74: done, but standard output cannot be written
- 75: no answer in time; the command may still be under way
- 77: not permitted: the daemon is another user's, or another user listens in its place
- 130: interrupted; the command may still be under way
- 141: done, but the reader of standard output has gone
"""
NAME: Final = "greeterctl"
INTERRUPTED: Final = "interrupted; the command may still be under way"
MAX_TIMEOUT: Final = 86_400.0

_CODES: Final = frozenset({1, 2, 69, 75, 77})
"""The exit codes that an answer's `code` may set."""


@dataclass(frozen=True, slots=True)
class Options:
    """The values of the options that all commands have."""

    socket: Path
    timeout: float
    json: bool


T = TypeVar("T")
F = TypeVar("F", bound=Callable[..., int])
Common = Annotated[Options, Parameter(parse=False)]

app = App(
    name="greeterctl",
    help="Tell a running greeterd what to do, and wait until it is done.",
    help_format="markdown",
    help_epilogue=epilogue(
        ["greeterctl status", "greeterctl --run-dir /run/greeterd-mine reload"], EXIT_CODES
    ),
    version=f"greeterctl {__version__}",
    print_error=False,
    exit_on_error=False,
    suppress_keyboard_interrupt=False,
    result_action="return_value",
)
app.meta.suppress_keyboard_interrupt = False
app.meta.group_parameters = Group("Options of every command")
# No .bashrc is edited: bash-completion and fish find the script, for zsh it prints what to add.
app.register_install_completion_command(
    add_to_startup=False, help="Write a completion script where bash, zsh or fish looks for it."
)


def _check_timeout(_type: object, seconds: float) -> None:
    if not 0 < seconds <= MAX_TIMEOUT:  # also refuses NaN
        raise ValueError(f"Must be more than 0 and at most {MAX_TIMEOUT:g}.")


def _command(*examples: str) -> Callable[[F], F]:
    """Make a function a command whose help page has these examples."""
    return app.command(help_epilogue=epilogue(examples, EXIT_CODES))


@_command("greeterctl ping && echo it serves", "greeterctl ping --timeout 1")
def ping(*, options: Common) -> int:
    """Ask whether the daemon answers, and is not about to stop."""
    asked = monotonic()
    deadline = asked + options.timeout
    with connect(options.socket, deadline) as sock:
        answer = exchange(sock, "ping", deadline)
        took_ms = 1e3 * (monotonic() - asked)
        pid = peer_of(sock).pid
    return _report(options, "ping", answer, f"greeterd answers: pid {pid}, {took_ms:.1f} ms")


@_command("greeterctl status", "greeterctl status --json | jq .totals.greetings")
def status(*, options: Common) -> int:
    """Show the daemon, its slots and what they count.

    "conns" are connections accepted, "greeted" those that became a greeting, "share" the slot's
    part of all connections, "queue" the connections that wait in the slot's own listener, "open"
    those not finished, "beat" the time since the worker last turned its loop.
    """
    answer = ask(options.socket, "status", options.timeout)
    if not answer["ok"] or "status" not in answer:
        return _report(options, "status", answer, "")
    if options.json:
        # As it came: a newer daemon may send more fields than this program knows.
        _print_json(msgspec.json.encode(answer["status"]))
    else:
        _write(_judged(lambda: render_status(from_plain(answer["status"]), sys.stdout)))
    return 0


@_command("greeterctl balance", "greeterctl balance logs/worker-*.log")
def balance(*logs: Path, options: Common) -> int:
    """Show how evenly greetings are spread over the workers, beside what chance alone would do.

    "of fair" is a worker's share as a multiple of the fair one, "chance alone" the bound that each
    figure keeps 95 of 100 times if every connection draws its worker. Counted are the greetings
    of the running daemon since its start, or those in logs.

    Parameters
    ----------
    logs
        Greeting logs (`worker-*.log`, also `.gz`) to count instead of asking the daemon.
    """
    if logs:
        try:
            tally = count_logs(logs)
        except LogError as error:
            return _fail(options, f"balance: {error}", error.exit_code)
    else:
        answer = ask(options.socket, "status", options.timeout)
        if not answer["ok"] or "status" not in answer:
            return _report(options, "balance", answer, "")
        tally = _judged(lambda: count_daemon(from_plain(answer["status"])))
    if options.json:
        _print_json(_judged(lambda: msgspec.json.encode(to_plain(tally))))
    else:
        _write(_judged(lambda: render(tally, sys.stdout)))
    return 0


def _judged(read: Callable[[], T]) -> T:
    """Return the result of reading a status that a daemon has sent.

    Raises:
        ControlError: it makes no sense.

    """
    try:
        return read()
    except (ValueError, ArithmeticError) as error:
        raise ControlError(f"status: of another version than this program: {error}") from error


@_command("greeterd --check --config greeterd.toml && greeterctl reload")
def reload(*, options: Common) -> int:
    """Read the configuration again and replace every worker; a bad one changes nothing."""
    answer = ask(options.socket, "reload", options.timeout)
    generation = answer.get("generation")
    done = "reloaded" if generation is None else f"reloaded: generation {generation}"
    return _report(options, "reload", answer, done)


@_command("greeterctl scale 4")
def scale(
    workers: Annotated[int, Parameter(validator=Number(gte=1, lte=MAX_WORKERS))],
    /,
    *,
    options: Common,
) -> int:
    """Have this many workers.

    Parameters
    ----------
    workers
        How many.
    """
    answer = ask(options.socket, "scale", options.timeout, workers=workers)
    return _report(options, "scale", answer, f"workers: {workers}")


@_command("greeterctl restart", "greeterctl restart 2")
def restart(
    slot: Annotated[int | None, Parameter(validator=Number(gte=0, lte=MAX_WORKERS))] = None,
    /,
    *,
    options: Common,
) -> int:
    """Replace the worker of one slot, or of each slot in turn, without a reload.

    Parameters
    ----------
    slot
        Which; 0 is the dispatcher of mode handoff. [default: each]
    """
    answer = ask(options.socket, "restart", options.timeout, slot=slot)
    done = "restarted: every slot" if slot is None else f"restarted: slot {slot}"
    return _report(options, "restart", answer, done)


@_command("mv logs/worker-1.log old.log && greeterctl reopen")
def reopen(*, options: Common) -> int:
    """Open the log files again, after they were rotated."""
    answer = ask(options.socket, "reopen", options.timeout)
    return _report(options, "reopen", answer, "reopened: every log")


@_command("pip install --upgrade greeterd && greeterctl upgrade")
def upgrade(*, options: Common) -> int:
    """Replace the running version of greeterd by the installed one; return when it serves."""
    answer = ask(options.socket, "upgrade", options.timeout)
    done = f"upgraded: generation {answer.get('generation')} serves"
    return _report(options, "upgrade", answer, done)


@_command("greeterctl stop --timeout 120", "greeterctl stop --now")
def stop(
    *, now: Annotated[bool, Parameter(negative=(), show_default=False)] = False, options: Common
) -> int:
    """Stop the daemon; return when its process has ended.

    Parameters
    ----------
    now
        Drop unfinished connections instead of serving them.
    """
    deadline = monotonic() + options.timeout
    answer: dict[str, Any] = {"version": 1, "ok": True}
    with connect(options.socket, deadline) as sock, _process(peer_of(sock).pid) as process:
        try:
            answer = exchange(sock, "stop", deadline, now=now)
        except NotRunningError:
            # It may end before it answers: wait for its end then.
            if process is None:
                raise
        if answer["ok"] and process is not None and not _ends(process, deadline):
            raise NoAnswerError("the daemon still runs, and may be stopping")
    return _report(options, "stop", answer, "stopped")


@contextlib.contextmanager
def _process(pid: int) -> Iterator[int | None]:
    """Give a pidfd; None for a process of another PID namespace."""
    try:
        descriptor = os.pidfd_open(pid)
    except OSError:
        yield None
        return
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _ends(process: int, deadline: float) -> bool:
    """Wait for the process's end; False if `deadline` comes first."""
    poll = select.poll()
    poll.register(process, select.POLLIN)
    return bool(poll.poll(max(0.0, 1e3 * (deadline - monotonic()))))


@app.meta.default
def launch(
    *tokens: Annotated[str, Parameter(show=False, allow_leading_hyphen=True)],
    run_dir: Path | None = None,
    socket: Path | None = None,
    timeout: Annotated[float, Parameter(validator=_check_timeout)] = 60.0,
    json: Annotated[bool, Parameter(negative=(), show_default=False)] = False,
) -> int | None:
    """Run one command with the options of all.

    Parameters
    ----------
    run_dir
        The daemon's run directory. [default: $GREETERD_RUN_DIR, else what greeterd itself uses]
    socket
        The daemon's control socket, instead of a run directory.
    timeout
        Seconds to wait for the answer.
    json
        Print one JSON object, also for a failure.
    """
    if run_dir is not None and socket is not None:
        raise UsageError("--run-dir and --socket exclude each other")
    if not tokens:
        return print_usage(app)
    command, bound, ignored = app.parse_args(expand_help([*tokens]))
    if "options" not in ignored:
        # Such as --help, --version, --install-completion.
        code: int | None = command(*bound.args, **bound.kwargs)
        return code
    usual = usual_run_dir(os.environ, os.geteuid())
    where = socket or (run_dir or usual) / CONTROL_SOCKET
    options = Options(where.absolute(), timeout, json)
    try:
        code = command(*bound.args, **bound.kwargs, options=options)
    except ControlError as error:
        reason = str(error)
        if isinstance(error, NoAnswerError):
            reason += f" (--timeout {timeout:g})"
        if isinstance(error, NotRunningError) and where.parent == usual:
            reason += "".join(f"; {one}" for one in others(usual))
        code = _fail(options, reason, error.exit_code)
    return code


def _report(options: Options, command: str, answer: Mapping[str, Any], done: str) -> int:
    """Print the answer; return the exit code."""
    if not answer["ok"]:
        code = answer.get("code")
        reason = answer.get("error", "no reason given")
        if not isinstance(code, int) or code not in _CODES:
            code = FAILED
        return _fail(options, f"{command}: {reason}", code)
    try:
        if options.json:
            _print_json(msgspec.json.encode(answer))
        else:
            _write(f"{escape(done)}\n")
    except NoReaderError:
        raise
    except OutputError as error:
        raise OutputError(f"{command}: done, but not reported: {error}") from error
    return 0


def _fail(options: Options, reason: str, code: int) -> int:
    """Report a failure; return its exit code, even if nothing can be written."""
    if options.json:
        try:
            _print_json(render_answer(False, {"error": reason, "code": code}))
        except OutputError:
            complain(NAME, reason)
    else:
        complain(NAME, reason)
    return code


def _print_json(line: bytes) -> None:
    _write(to_ascii(line.rstrip(b"\n")) + "\n")


def _write(text: str) -> None:
    """Write at once, so that what standard output refuses is known here and not at the exit."""
    sys.stdout.write(text)
    sys.stdout.flush()


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the program; return its exit code."""
    given = sys.argv[1:] if arguments is None else list(arguments)
    return run_program(NAME, partial(_run, given), INTERRUPTED)


def _run(arguments: Sequence[str]) -> int:
    try:
        code: int | None = app.meta(arguments)
    except CycloptsError as error:
        raise refusal(error) from error
    return code or 0
