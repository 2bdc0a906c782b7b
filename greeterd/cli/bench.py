"""The command `greeter bench`: an experiment from its plan to its report.

Standard output carries the plan or the report; progress and messages go to standard error.
Whatever would spoil the end of a long run is looked for before its first trial.
"""

import contextlib
import re
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from signal import Signals
from typing import Annotated, Final

import msgspec
from cyclopts import App, Group, Parameter
from cyclopts.validators import Number
from rich.table import Table

from greeterd.bench import peers
from greeterd.bench.analysis import expectations
from greeterd.bench.analysis.paired import LOOKS
from greeterd.bench.experiment import presets, runner, servers, store
from greeterd.bench.experiment.environment import describe, now
from greeterd.bench.experiment.pin import NOWHERE, choose_pin, describe_pin
from greeterd.bench.experiment.plan import Choice, Command, Plan, compared, expected, least_seconds
from greeterd.bench.experiment.progress import telling
from greeterd.bench.experiment.servers import Setup
from greeterd.bench.experiment.store import Store, UnusableError
from greeterd.bench.extras import require
from greeterd.bench.labels import approach, names, scenario_of, words
from greeterd.bench.load.options import request_bytes, require_pattern
from greeterd.bench.model import Environment, Results
from greeterd.bench.report import tables
from greeterd.cli.outputs import Outputs, counted, tell
from greeterd.cli.program import EX_INTERRUPTED
from greeterd.cli.usage import epilogue
from greeterd.errors import UsageError
from greeterd.screen import duration
from greeterd.system.signals import terminate_as_interrupt

EX_FAILED: Final = 1

ABOUT: Final = """\
Servers that are compared are kept up side by side; short trials on them alternate, and two adjacent
ones, in random order, are a pair. A comparison ends when the interval of its CPU ratio decides: it
leaves out 1, or all of it is within `--precision`. Every greeting is counted three times: by the
client, by the server and in its logs. Where the counts contradict each other the trial is invalid.
Results are kept as they come, and an interrupted experiment goes on with `--resume`.

Presets, on two cores:

- quick: inherit against reuseport, then handoff and the waits (90 seconds)
- article: the hand-made experiment, 40,000 senders started one by one for each mode (3 minutes)
- full: modes, waits, steering, workers, latencies, faults and peers (25 minutes)

Any server that takes TCP connections is measured by `--command`, in which `{workers}`, `{address}`,
`{host}`, `{port}` and `{directory}` are filled in, and which stays in the foreground.

Exit codes:

- 0: every trial is valid, and no expectation has failed
- 1: a trial is invalid, or an expectation has failed
- 2: the command line is wrong, or does not fit the file of `--resume`
- 69: the address of `--bind` is taken, or a package is missing
- 70: the command of `--greeterd` runs no daemon
- 74: a file cannot be written; found before the run
- 75: another experiment is writing the file of `--results` or `--resume`
- 130: interrupted (also by SIGTERM or SIGQUIT); what has ended is kept
"""

EXAMPLES: Final = (
    "greeter bench",
    "greeter bench --preset full --html report.html",
    "greeter bench --greeterd old=/opt/old/bin/greeterd --greeterd new=greeterd --max-time 3m",
    (
        "greeter bench --command 'gunicorn -w {workers} -b {address} app:app'"
        r" --request 'GET / HTTP/1.0\r\n\r\n' --expect '^HTTP/1.. 200' --no-half-close"
    ),
)

app = App(
    name="bench",
    help="Measure greeterd, or any other server: an experiment.",
    help_epilogue=epilogue(EXAMPLES, ABOUT),
)
app.command("greeterd.cli.report:compare_app", name="compare", help="Tell where two runs differ.")
app.command("greeterd.cli.report:report_app", name="report", help="Show a run's report again.")

_AXES: Final = Group.create_ordered("Axes", help="Each is one value, or several with commas.")
_NAMED: Final = re.compile(r"([A-Za-z][\w.+-]*)=(.*)", re.DOTALL)
_TIME: Final = re.compile(r"(\d+(?:\.\d+)?)(s|m|h|)")
_SECONDS: Final = {"": 1.0, "s": 1.0, "m": 60.0, "h": 3600.0}
_PERCENT: Final = re.compile(r"(\d+(?:\.\d+)?) ?%?")
MOST_PRECISION: Final = 100.0


@Parameter(name="*", group=_AXES, negative=(), show_default=False)
@dataclass(frozen=True, slots=True, kw_only=True)
class Axes:
    """The values to try, in the place of the preset's."""

    server: str = ""
    "greeterd, socketserver, asyncio, uvloop, threaded, bare, or the name of a --command."
    mode: str = ""
    "inherit, reuseport, handoff."
    wait: str = ""
    "auto, rotate, exclusive, epoll, blocking."
    steering: str = ""
    "hash, cpu, random (of reuseport)."
    handoff_policy: str = ""
    "round-robin, least-busy (of handoff)."
    rescue: str = ""
    "on, off."
    workers: str = ""
    "Number of workers."
    concurrency: str = ""
    "Connections in flight at once."
    arrival: str = ""
    "closed, constant, poisson, burst, seed."
    rate: str = ""
    "Arrivals per second, of constant and poisson."
    life: str = ""
    "Seconds that a connection is held open before its name is sent."
    work: str = ""
    "Microseconds, exponential on average, that a greeting keeps its worker (of threaded)."
    fault: str = ""
    "none, stopped, killed, reload."
    greetings: str = ""
    "Greetings in one trial."

    @property
    def given(self) -> dict[str, str]:
        """The axes that the command line has named."""
        return {one.name: text for one in fields(self) if (text := getattr(self, one.name))}


@Parameter(name="*", negative=(), show_default=False)
@dataclass(frozen=True, slots=True, kw_only=True)
class BenchOptions:
    """The options of `greeter bench`."""

    preset: str = ""
    "quick, article or full. [default: quick, or the axes that are given]"
    precision: str = "5%"
    "A difference below which two servers are the same for you. [default: 5%]"
    max_time: str = ""
    "How long trials may go on without a decision: 90s, 3m. [default: 60s, of full 15m]"
    pairs: Annotated[int | None, Parameter(validator=Number(gte=1))] = None
    "Pairs of each comparison, a fixed number. [default: 20 to 230, until the interval decides]"
    pin: str = ""
    """CPUs of servers and clients: off, auto (each half of what there is), or the servers' list,
    the clients then have the others. [default: auto where there are two, of article off]"""
    seed: Annotated[int | None, Parameter(validator=Number(gte=0))] = None
    "Decides the order of the trials. [default: 0]"
    warmup: Annotated[int | None, Parameter(validator=Number(gte=0))] = None
    "Greetings to each server, as it starts, that are not measured. [default: 400]"
    results: Path | None = None
    "Where results are kept as they come. [default: greeter-bench-DATE.jsonl]"
    resume: Path | None = None
    "Go on with an interrupted experiment."
    predicates: Path | None = None
    "Check the expectations of a TOML file. [default: the known effects, of quick and full]"
    bind: str = "127.0.0.1:0"
    "Where greeterd listens: a loopback address and port 0. [default: 127.0.0.1:0]"
    greeterd: Annotated[tuple[str, ...], Parameter(consume_multiple=False)] = ()
    "The command that runs the daemon; two or more, as NAME=COMMAND, are compared."
    dry_run: bool = False
    "Print the plan and run nothing."


@Parameter(name="*", negative=(), show_default=False, group="Other servers")
@dataclass(frozen=True, slots=True, kw_only=True)
class Others:
    """What is measured in the place of greeterd."""

    command: Annotated[tuple[str, ...], Parameter(consume_multiple=False)] = ()
    "A server, as COMMAND or NAME=COMMAND; several are compared with the first."
    reload_signal: Annotated[tuple[str, ...], Parameter(consume_multiple=False)] = ()
    "What reloads it: SIGNAL, or NAME=SIGNAL of one server. [default: HUP]"
    reload_command: Annotated[tuple[str, ...], Parameter(consume_multiple=False)] = ()
    "The same by a command, with {pid} of the server: COMMAND or NAME=COMMAND."
    request: str | None = None
    r"What to send in place of a name: a file's content, or a text with \r, \n and \xNN."
    expect: str | None = None
    "A regular expression that each answer must hold; an answer without it is an error."
    no_half_close: bool = False
    "Send no end-of-stream after the request: the server closes first."


@dataclass(frozen=True, slots=True)
class Asked:
    """The command line."""

    options: BenchOptions
    axes: Axes
    others: Others
    outputs: Outputs


@app.default
def bench(
    *,
    axes: Axes | None = None,
    options: BenchOptions | None = None,
    others: Others | None = None,
    outputs: Outputs | None = None,
) -> int:
    """Run an experiment, print its report, and return the exit code."""
    asked = Asked(
        options or BenchOptions(), axes or Axes(), others or Others(), outputs or Outputs()
    )
    terminate_as_interrupt()
    if asked.options.dry_run:
        return _dry_run(asked)
    with _prepared(asked) as (kept, setup):
        try:
            _run(kept, setup)
        except KeyboardInterrupt:
            _tell_interrupted(kept)
            return EX_INTERRUPTED
        try:
            return _report(kept.results, asked)
        except KeyboardInterrupt:
            tell("interrupted: all trials are kept; for the report:")
            tell(f"greeter bench report {shlex.quote(str(kept.path))}")
            return EX_INTERRUPTED


def _dry_run(asked: Asked) -> int:
    """Print the plan, if nothing that can be known before speaks against it."""
    if asked.options.resume:
        raise UsageError("--dry-run and --resume exclude each other")
    _checked(asked)
    if asked.options.results:
        store.require_new(asked.options.results)
    plan, choice = _plan(asked)
    _tell_left_out(choice.left_out)
    _print_plan(plan)
    return 0


def _checked(asked: Asked) -> tuple[dict[str, Sequence[str]], str]:
    """Check the options by themselves; return the daemons' commands and the first's version."""
    options = asked.options
    asked.outputs.require(
        {
            "--results": options.results,
            "--resume": options.resume,
            "--predicates": options.predicates,
        }
    )
    daemons = _daemons(options)
    versions = [servers.version_of(command) for command in daemons.values()]
    require("hdrh", "psutil", "scipy")
    runner.require_address(options.bind)
    _expectations(options, "")  # a mistake in it is told now
    if asked.others.request is not None:
        request_bytes(asked.others.request)
    if asked.others.expect is not None:
        require_pattern(asked.others.expect)
    return daemons, versions[0]


def _daemons(options: BenchOptions) -> dict[str, Sequence[str]]:
    """Return the commands of `--greeterd` by name; one has none."""
    if not options.greeterd:
        return {"": servers.DAEMON}
    if len(options.greeterd) == 1:
        text = options.greeterd[0]
        return {"": _words("--greeterd", text)}
    return {
        name: _words("--greeterd", text)
        for name, text in _named("--greeterd", options.greeterd).items()
    }


def _words(flag: str, text: str) -> Sequence[str]:
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise UsageError(f"{flag} {text}: {error}") from None
    if not words:
        raise UsageError(f"{flag}: the command is empty")
    return words


def _named(flag: str, texts: Sequence[str]) -> dict[str, str]:
    """Return NAME=COMMAND by name; a command without one is called after its program."""
    found: dict[str, str] = {}
    for number, text in enumerate(texts, 1):
        match = _NAMED.fullmatch(text)
        if match:
            name, command = match[1], match[2]
        else:
            command = text
            name = Path(_words(flag, text)[0]).name
            name = f"{name}-{number}" if name in found else name
        if name in found:
            raise UsageError(f"{flag}: two are called {name}")
        _words(flag, command)
        found[name] = command
    return found


def _commands(others: Others) -> list[Command]:
    """Return the servers of `--command`.  Raises: UsageError: one makes no sense."""
    commands = _named("--command", others.command)
    for name in commands:
        if name in {"greeterd", *peers.PEERS}:
            raise UsageError(f"--command {name}=: there is a server of this name already")
    signals = _of_each("--reload-signal", others.reload_signal, commands)
    reloads = _of_each("--reload-command", others.reload_command, commands)
    for text in signals.values():
        if f"SIG{text.upper().removeprefix('SIG')}" not in Signals.__members__:
            raise UsageError(f"--reload-signal {text}: there is no such signal")
    return [
        Command(
            name=name,
            command=text,
            reload_signal=signals.get(name, "HUP").upper().removeprefix("SIG"),
            reload_command=reloads.get(name, ""),
        )
        for name, text in commands.items()
    ]


def _of_each(flag: str, texts: Sequence[str], commands: Mapping[str, str]) -> dict[str, str]:
    """Return what each server has of an option that is for all, or NAME=... for one."""
    found: dict[str, str] = {}
    own: dict[str, str] = {}
    for text in texts:
        name, _, value = text.partition("=")
        if value and name in commands:
            own[name] = value
        else:
            found = dict.fromkeys(commands, text)
    if texts and not commands:
        raise UsageError(f"{flag} is of --command")
    return found | own


@contextlib.contextmanager
def _prepared(asked: Asked) -> Iterator[tuple[Store, Setup]]:
    """Check all that can be checked before the run, and open the results."""
    options = asked.options
    daemons, version = _checked(asked)
    with servers.temporary_directory("greeter-bench-peers-") as programs:
        command = "; ".join(shlex.join(words) for words in daemons.values())
        here = describe(version, command if options.greeterd else "")
        setup = Setup(options.bind, daemons.get("", servers.DAEMON), build_dir=programs)
        begin = _resume if options.resume else _create
        with contextlib.closing(begin(asked, here, setup)) as kept:
            plan = kept.header.plan
            yield (
                kept,
                Setup(
                    bind=options.bind,
                    daemon=daemons.get("", servers.DAEMON),
                    builds={name: shlex.split(text) for name, text in plan.builds.items()},
                    commands={one.name: one for one in plan.commands},
                    cpus=plan.pin.server,
                    build_dir=programs,
                    commit=here.commit,
                ),
            )


def _plan(asked: Asked) -> tuple[Plan, Choice]:
    options, axes, others = asked.options, asked.axes, asked.others
    commands, daemons = _commands(others), _daemons(options)
    builds = {name: shlex.join(words) for name, words in daemons.items() if name}
    changes = presets.parse_axes(axes.given)
    name = options.preset or ("" if changes or commands or builds else "quick")
    if name and name not in presets.PRESETS:
        raise UsageError(f"--preset {name}: must be one of {', '.join(presets.PRESETS)}")
    preset = presets.PRESETS[name] if name else presets.CUSTOM
    if builds:
        preset = preset if name else presets.BUILDS
        changes["build"] = tuple(builds)
    if commands:
        preset = preset if name else presets.COMMANDS
        changes.setdefault("server", tuple(one.name for one in commands))
    _require_servers(changes.get("server", ()), commands)
    choice = presets.choose(preset, changes)
    if not choice.cases:
        raise UsageError(f"there is no possible case: {'; '.join(choice.left_out)}")
    if axes.rate and not any(case.rate for case in choice.cases):
        raise UsageError("--rate is of open loop: --arrival constant or poisson")
    by_cpu = any(case.steering == "cpu" for case in choice.cases)
    pinned = options.pin or ("auto" if preset.pin and not by_cpu else "off")
    plan = Plan(
        preset=name,
        comparisons=compared(choice.cases),
        pairs=options.pairs or preset.pairs,
        precision=_precision(options.precision),
        max_time=_seconds(options.max_time) if options.max_time else preset.max_time,
        seed=options.seed or 0,
        warmup=preset.warmup if options.warmup is None else options.warmup,
        pin=choose_pin(pinned),
        builds=builds,
        commands=commands,
        request=others.request,
        expect=others.expect,
        no_half_close=others.no_half_close,
    )
    runner.require_cases(plan, options.bind)
    return plan, choice


def _require_servers(wanted: Sequence[str], commands: Sequence[Command]) -> None:
    known = ["greeterd", *peers.PEERS, *(one.name for one in commands)]
    for name in wanted:
        if name not in known:
            raise UsageError(f"--server {name}: must be a list of {', '.join(known)}")


def _seconds(text: str) -> float:
    match = _TIME.fullmatch(text.strip())
    if match is None or not float(match[1]):
        raise UsageError(f"--max-time {text}: a time looks like 90s, 3m or 1h")
    return float(match[1]) * _SECONDS[match[2]]


def _precision(text: str) -> float:
    match = _PERCENT.fullmatch(text.strip())
    if match is None or not 0 < float(match[1]) <= MOST_PRECISION:
        raise UsageError(f"--precision {text}: a precision looks like 5% or 2.5%")
    return float(match[1]) / 100


def _create(asked: Asked, here: Environment, setup: Setup) -> Store:
    plan, choice = _plan(asked)
    cases, reasons = runner.without_unbuildable(plan.cases, setup)
    _tell_left_out(choice.left_out)
    for server, reason in reasons.items():
        tell(f"without {server}: {reason}")
    if not cases:
        raise UsageError("there is no case left")
    if reasons:
        plan = msgspec.structs.replace(plan, comparisons=compared(cases))
    here = msgspec.structs.replace(here, pin=describe_pin(plan.pin), request=_request(plan))
    path = asked.options.results or Path(f"greeter-bench-{now()[:19].replace(':', '')}.jsonl")
    return store.create(path, store.Header(environment=here, plan=plan))


def _request(plan: Plan) -> str:
    said = [f"{plan.request!r}"] * (plan.request is not None)
    said += [f"expected {plan.expect!r}"] * (plan.expect is not None)
    said += ["no half-close"] * plan.no_half_close
    return ", ".join(said)


def _resume(asked: Asked, here: Environment, setup: Setup) -> Store:
    """Open the results of an interrupted experiment; what is asked for must be the same."""
    assert asked.options.resume is not None
    kept = store.resume(asked.options.resume)
    try:
        _require_same(kept, asked, here)
        runner.require_cases(kept.header.plan, asked.options.bind)
        runner.without_unbuildable(kept.header.plan.cases, setup)
    except BaseException:
        kept.close()
        raise
    return kept


def _require_same(kept: Store, asked: Asked, here: Environment) -> None:
    """Refuse to mix what differs in more than its time.  Raises: UnusableError."""
    there, options = kept.header, asked.options
    plain = BenchOptions(
        results=options.results, resume=options.resume, predicates=options.predicates,
        bind=options.bind, greeterd=options.greeterd,
    )  # fmt: skip
    if asked.axes.given or asked.others != Others() or options != plain:
        plan, _ = _plan(asked)
        # Servers that could not be had are not in the plan that is kept.
        had = {case.server for case in there.plan.cases}
        cases = [case for case in plan.cases if case.server in had]
        if msgspec.structs.replace(plan, comparisons=compared(cases)) != there.plan:
            raise UnusableError(f"{kept.path} holds another plan; leave the others' flags out")
    if there.environment.command != here.command:
        before, now_ = (one.command or "none" for one in (there.environment, here))
        raise UnusableError(f"{kept.path} was begun with --greeterd: {before}, here it is: {now_}")
    for name in ("kernel", "cpu", "cpus", "greeterd"):
        before, now_ = getattr(there.environment, name), getattr(here, name)
        if before != now_:
            raise UnusableError(f"{kept.path} was begun with {name} {before}, here is {now_}")
    if there.environment.commit != here.commit:
        tell(f"the source was {there.environment.commit}, and is {here.commit}")


def _run(kept: Store, setup: Setup) -> None:
    plan = kept.header.plan
    some = counted(len(plan.comparisons), "comparison")
    pinned = describe_pin(plan.pin) or NOWHERE
    tell(f"{some} of {counted(len(plan.cases), 'case')}, {pinned}, results in {kept.path}")
    with telling(names(plan.cases)) as show:
        runner.run(kept, setup, show)


def _report(results: Results, asked: Asked) -> int:
    """Print and write what was found; 1 when a trial is invalid or an expectation has failed."""
    verdicts = expectations.check(_expectations(asked.options, results.preset), results)
    asked.outputs.write(results, verdicts)  # first: the reader of standard output may go
    sys.stdout.write(tables.show(tables.render(results, verdicts), sys.stdout))
    invalid = sum(bool(trial.invalid) for trial in results.trials)
    if invalid:
        trials = counted(len(results.trials), "trial")
        tell(f"{invalid} of {trials} {'is' if invalid == 1 else 'are'} invalid")
    if invalid or results.objections:
        return EX_FAILED
    return expectations.exit_code(verdicts)


def _expectations(options: BenchOptions, preset: str) -> list[expectations.Predicate]:
    if options.predicates:
        return expectations.load(options.predicates)
    known = preset in {"quick", "full"}
    return expectations.load(expectations.KNOWN_EFFECTS) if known else []


def _print_plan(plan: Plan) -> None:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("comparison", "pairs", "seconds a pair"):
        table.add_column(column, justify="left" if column == "comparison" else "right")
    for one in plan.comparisons:
        other = f"{approach(one.b)} / " if one.b else ""
        pairs = plan.pairs_of(one)
        told = str(pairs) if pairs else f"{LOOKS[0]} to {LOOKS[-1] if one.b else LOOKS[0]}"
        asked = words(scenario_of(one.a))
        seconds = sum(map(expected, one.cases))
        table.add_row(f"{other}{approach(one.a)}, {asked}", told, f"{seconds:.1f}")
    sys.stdout.write(tables.show(table, sys.stdout))
    print(
        f"\n{counted(len(plan.comparisons), 'comparison')} of {counted(len(plan.cases), 'case')},"
        f" {describe_pin(plan.pin) or NOWHERE}: about {duration(least_seconds(plan))} at least,"
        f" and {duration(plan.max_time)} without a decision; order by seed {plan.seed}"
    )


def _tell_left_out(left_out: Mapping[str, int]) -> None:
    for reason, count in left_out.items():
        tell(f"left out {counted(count, 'case')}: {reason}")


def _tell_interrupted(kept: Store) -> None:
    path, plan = kept.path, kept.header.plan
    texts = [f"{name}={text}" for name, text in plan.builds.items()]
    texts = texts or [one for one in [kept.header.environment.command] if one]
    daemon = "".join(f" --greeterd {shlex.quote(text)}" for text in texts)
    tell(f"interrupted: {counted(len(kept.trials), 'trial')} kept in {path}")
    tell(f"go on with: greeter bench --resume {shlex.quote(str(path))}{daemon}")
