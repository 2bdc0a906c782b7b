"""The program `greeter`: names from the command line or standard input to a running daemon.

A name is bytes from end to end: the command line by os.fsencode, standard input as it is read;
nothing is decoded or stripped but a line's own newline. Replies on a terminal and names in messages
are escaped; replies in a pipe are not.

Standard output carries replies and nothing else; messages go to standard error, a line each,
beginning `greeter: `.
"""

import os
import resource
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import cycle, islice
from time import monotonic
from typing import Annotated, ClassVar, Final

from cyclopts import App, CycloptsError, Parameter
from cyclopts.validators import Number

from greeterd import __version__
from greeterd.cli.program import EX_INTERRUPTED, complain, run_program
from greeterd.cli.usage import epilogue, expand_help, print_usage, refusal
from greeterd.client import Delivery, Failure, Result, Until, send_all
from greeterd.errors import GreeterdError, UsageError
from greeterd.sockets.address import Address, parse_address
from greeterd.system.escape import escape

EXIT_CODES: Final = """\
Exit codes:

- 0: every greeting was sent (with --wait-reply: answered); bench: every trial is valid; bench
  compare: no difference
- 1: some were not; each kind of failure is counted; bench: a trial is invalid, or an expectation
  has failed; bench compare: there is a difference; census: nothing listens at the port
- 2: the command line is wrong, or there are no names
- 66: bench report, bench compare: a file cannot be read, or holds no results
- 69: nobody listens at the address, or it cannot be connected to at all; a package is missing;
  bench: the address is taken
- 70: a sending process of a load has died; census: the kernel does not tell
- 71: the system refuses what this program needs, such as a descriptor
- 74: standard input cannot be read, or standard output or a file of results not written
- 75: bench: another experiment is writing the file of results
- 130: interrupted
- 141: the reader of standard output has gone
"""
NAME: Final = "greeter"
EX_FAILED: Final = 1

STDIN: Final = "\0"
"""Replaces `-` for the parser, which takes a lone `-` for an option; no argument holds NUL."""
MAX_SHOWN: Final = 10
"""Failures that get a line of their own; thousands of lines would bury the summary."""
SHOWN_NAME: Final = 60
SPARE_DESCRIPTORS: Final = 32
MAX_TIMEOUT: Final = 86_400.0

app = App(
    name="greeter",
    help="Send greetings to a running greeterd.",
    help_format="markdown",
    help_epilogue=epilogue(["greeter send Alice", "greeter load", "greeter bench"], EXIT_CODES),
    version=f"greeter {__version__}",
    print_error=False,
    exit_on_error=False,
    suppress_keyboard_interrupt=False,
    result_action="return_value",
)


class InputError(GreeterdError):
    """Standard input cannot be read (EX_IOERR)."""

    exit_code: ClassVar[int] = 74


tell = partial(complain, NAME)


def _check_timeout(_type: object, seconds: float) -> None:
    if not 0 < seconds <= MAX_TIMEOUT:  # also refuses NaN
        raise ValueError(f"Must be more than 0 and at most {MAX_TIMEOUT:g}.")


app.register_install_completion_command(
    add_to_startup=False, help="Write a completion script where bash, zsh or fish looks for it."
)

# Imported when they are called: they need packages that `send` does not.
app.command(
    "greeterd.cli.load:app",
    name="load",
    help="Send a bounded load to a server of this machine, and report rate and latencies.",
)
app.command(
    "greeterd.cli.bench:app",
    name="bench",
    help="Measure greeterd, or any other server: an experiment.",
)
app.command(
    "greeterd.cli.census:app",
    name="census",
    help="Say who has the connections of a port, by process.",
)


BIND: Final = "GREETERD_BIND"
BOUND: Final = Parameter(name=("--address", "--bind"), env_var=BIND)
"""Where the daemon listens, by the daemon's own names too."""


@Parameter(name="*")
@dataclass(frozen=True, slots=True)
class SendOptions:
    """The options of `greeter send`."""

    address: Annotated[str, BOUND] = "127.0.0.1:12345"
    "Where the daemon listens: host:port, [v6]:port or unix:/path; of several the first."

    wait_reply: Annotated[bool, Parameter(negative=(), show_default=False)] = False
    "Print each reply; a greeting without one has failed. The daemon needs `reply = true`."

    no_wait: Annotated[bool, Parameter(negative=(), show_default=False)] = False
    "Fire and forget: close as soon as the kernel has the name, and learn of no later failure."

    timeout: Annotated[float, Parameter(validator=_check_timeout)] = 10.0
    "Seconds for each greeting, from its connection to its end."

    count: Annotated[int | None, Parameter(validator=Number(gte=1))] = None
    "Send this many greetings in all, going round the names. [default: each name once]"

    concurrency: Annotated[int, Parameter(validator=Number(gte=1))] = 1
    "Connections in flight at once, from this one process."

    @property
    def until(self) -> Until:
        """What counts as sent."""
        if self.wait_reply:
            return Until.REPLY
        return Until.HANDED_OVER if self.no_wait else Until.END


@app.command(
    usage="Usage: greeter send [OPTIONS] [--] [NAME...]",
    help_epilogue=epilogue(
        [
            "greeter send Alice Bob",
            "greeter send --wait-reply Alice",
            "greeter send --count 1000 --concurrency 16 Alice",
            "greeter send --address unix:/run/greeterd/socket < names",
        ],
        EXIT_CODES,
    ),
)
def send(
    *names: Annotated[str, Parameter(metavar="NAME", negative=())],
    options: SendOptions | None = None,
) -> int:
    """Send one greeting for each NAME, a connection each.

    A greeting counts as sent when the server has closed the connection in order after taking the
    name, so that a reset is a failure. Only a reply (--wait-reply) proves that it was recorded.

    With a lone `-`, or without any NAME when standard input is not a terminal, names are read from
    standard input, one a line: as they come at concurrency 1 without --count, else all of them
    first. An empty name is sent as it is, and greets nobody. After `--`, a `-` is a name.

    Parameters
    ----------
    names
        Whom to greet; any bytes.
    """
    options = options or SendOptions()
    if options.wait_reply and options.no_wait:
        raise UsageError("--wait-reply and --no-wait exclude each other")
    address = _address(first_bound(options.address))
    delivery = Delivery(address, options.until, options.timeout, options.concurrency)
    _allow_descriptors(options.concurrency)
    source = _names(names)
    if options.count is not None or options.concurrency > 1:
        every = list(source)
        source = iter(every if options.count is None else islice(cycle(every), options.count))
    return _run(source, delivery, options)


def _run(names: Iterable[bytes], delivery: Delivery, options: SendOptions) -> int:
    """Send, report failures and the summary, and return the exit code."""
    counts = SendCounts()
    try:
        for result in send_all(names, delivery):
            counts.add(result)
            if result.failure is None:
                if options.wait_reply:
                    _print_reply(result.reply)
            elif counts.failed <= MAX_SHOWN:
                tell(f"{show_name(result.name)}: {result.reason}")
    except KeyboardInterrupt:
        tell(f"interrupted: {counts.summary()}" if counts.total else "interrupted")
        return EX_INTERRUPTED
    if not counts.total:
        raise UsageError("there are no names on standard input")
    if (options.count or 0) > 1 or (counts.failed and counts.total > 1):
        tell(counts.summary())
    return EX_FAILED if counts.failed else 0


@dataclass(slots=True)
class SendCounts:
    """The greetings that have ended so far, by kind of end."""

    sent: int = 0
    failures: Counter[Failure] = field(default_factory=Counter)
    started: float = field(default_factory=monotonic)

    @property
    def failed(self) -> int:
        """Greetings that were not sent."""
        return self.failures.total()

    @property
    def total(self) -> int:
        """Greetings that have ended."""
        return self.sent + self.failed

    def add(self, result: Result) -> None:
        """Count one."""
        if result.failure is None:
            self.sent += 1
        else:
            self.failures[result.failure] += 1

    def summary(self) -> str:
        """Return one line: sent, failed by kind, seconds, and the rate of those sent."""
        seconds = monotonic() - self.started
        kinds = ", ".join(f"{kind.value} {count}" for kind, count in self.failures.most_common())
        failed = f"failed {self.failed} ({kinds})" if kinds else "failed 0"
        return f"sent {self.sent}, {failed}, {seconds:.2f} s, {self.sent / seconds:.0f}/s"


def _names(arguments: Sequence[str]) -> Iterator[bytes]:
    """Yield the names as bytes; standard input is read where `-` stands, lazily."""
    if not arguments:
        if sys.stdin is None or sys.stdin.isatty():
            raise UsageError("there is no NAME (see greeter send --help)")
        arguments = (STDIN,)
    return _read_names(arguments)


def _read_names(arguments: Sequence[str]) -> Iterator[bytes]:
    for argument in arguments:
        if argument != STDIN:
            yield os.fsencode(argument)
            continue
        try:
            for line in sys.stdin.buffer:
                # A line ends as a name on the wire does: LF or CRLF.
                yield line[:-2] if line.endswith(b"\r\n") else line.removesuffix(b"\n")
        except OSError as error:
            raise InputError(f"standard input: {error.strerror}") from error


def _address(text: str) -> Address:
    try:
        return parse_address(text)
    except ValueError as error:
        raise UsageError(f"--address {text}: {error}") from None


def first_bound(text: str) -> str:
    """Return an address as it was given, or the first of the daemon's own variable."""
    given = text.split()
    return given[0] if given and text == os.environ.get(BIND) else text


def _allow_descriptors(concurrency: int) -> None:
    """Raise the soft limit of descriptors if it is too low for `concurrency`."""
    needed = concurrency + SPARE_DESCRIPTORS
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft >= needed or soft == resource.RLIM_INFINITY:
        return
    if hard < needed and hard != resource.RLIM_INFINITY:
        raise UsageError(f"--concurrency {concurrency}: {hard} descriptors allowed (ulimit -n)")
    resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))


def show_name(name: bytes) -> str:
    """Return a name for a message: quoted, escaped and not too long."""
    shown = name[:SHOWN_NAME].decode(errors="backslashreplace")
    return f"'{escape(shown)}'" + ("..." if len(name) > SHOWN_NAME else "")


def _print_reply(reply: bytes) -> None:
    """Write a reply at once; escaped on a terminal, else as it is."""
    if sys.stdout.isatty():
        reply = escape(reply.removesuffix(b"\n").decode(errors="backslashreplace")).encode() + b"\n"
    sys.stdout.buffer.write(reply)
    sys.stdout.buffer.flush()


def _mark_stdin(arguments: Sequence[str]) -> list[str]:
    """Return the arguments with `-` before any `--` replaced by `STDIN`."""
    end = arguments.index("--") if "--" in arguments else len(arguments)
    marked = [STDIN if argument == "-" else argument for argument in arguments[:end]]
    return [*marked, *arguments[end:]]


def _dispatch(arguments: Sequence[str]) -> int:
    if not arguments:
        return print_usage(app)
    try:
        status: int | None = app(_mark_stdin(expand_help([*arguments])))
    except CycloptsError as error:
        raise refusal(error) from error
    return status or 0  # --help and --version return None


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the program; return its exit code."""
    given = sys.argv[1:] if arguments is None else list(arguments)
    return run_program(NAME, partial(_dispatch, given))
