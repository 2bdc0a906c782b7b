"""The command `greeter bench`: an experiment from its plan to its report.

Standard output carries the plan or the report; progress and messages go to standard error.
Whatever would spoil the end of a long run is looked for before its first trial.
"""

import contextlib
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Final

import msgspec
from cyclopts import App, Group, Parameter
from cyclopts.validators import Number
from rich.table import Table

from greeterd.bench.analysis import predicates
from greeterd.bench.experiment import presets, servers, store
from greeterd.bench.experiment import runner as experiment
from greeterd.bench.experiment.environment import describe, now
from greeterd.bench.experiment.plan import Choice, Plan, expected
from greeterd.bench.experiment.progress import telling
from greeterd.bench.experiment.servers import Setup
from greeterd.bench.experiment.store import Store, UnusableError
from greeterd.bench.extras import require
from greeterd.bench.labels import names
from greeterd.bench.model import Environment, Results
from greeterd.bench.report import expectations, tables
from greeterd.cli.outputs import Outputs, counted, tell
from greeterd.cli.program import EX_INTERRUPTED
from greeterd.cli.usage import epilogue
from greeterd.errors import UsageError
from greeterd.screen import duration
from greeterd.system.signals import terminate_as_interrupt

EX_FAILED: Final = 1


ABOUT: Final = """\
Each case is run several times, each time on a fresh server, in random order. Every greeting is
counted three times: by the client, by the server and in its logs. Where the counts contradict
each other the trial is invalid. Results are kept as they come, and an interrupted experiment goes
on with `--resume`.

Presets, on two cores:

- article: the hand-made experiment, 40,000 senders started one by one (6 minutes)
- quick: modes and waits (under a minute)
- full: modes, waits, steering, workers, latencies, faults and peers (20 minutes)

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
    "greeter bench --mode inherit,reuseport --workers 1,2,4 --dry-run",
)

app = App(
    name="bench",
    help="Measure greeterd: an experiment.",
    help_epilogue=epilogue(EXAMPLES, ABOUT),
)
app.command("greeterd.cli.report:compare_app", name="compare", help="Tell where two runs differ.")
app.command("greeterd.cli.report:report_app", name="report", help="Show a run's report again.")

_AXES: Final = Group.create_ordered("Axes", help="Each is one value, or several with commas.")


@Parameter(name="*", group=_AXES, negative=(), show_default=False)
@dataclass(frozen=True, slots=True, kw_only=True)
class Axes:
    """The values to try, in the place of the preset's."""

    server: str = ""
    "greeterd, socketserver, asyncio, uvloop, threaded, bare."
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
    "article, quick or full. [default: quick, or the axes that are given]"
    trials: Annotated[int | None, Parameter(validator=Number(gte=1))] = None
    "How often each case is run. [default: 3, of quick and full 6]"
    seed: Annotated[int | None, Parameter(validator=Number(gte=0))] = None
    "Decides the order of the trials. [default: 0]"
    warmup: Annotated[int | None, Parameter(validator=Number(gte=0))] = None
    "Greetings before each trial that are not measured. [default: 400, of quick 200]"
    results: Path | None = None
    "Where results are kept as they come. [default: greeter-bench-DATE.jsonl]"
    resume: Path | None = None
    "Go on with an interrupted experiment."
    predicates: Path | None = None
    "Check the expectations of a TOML file. [default: the known effects, of quick and full]"
    bind: str = "127.0.0.1:0"
    "Where greeterd listens. [default: a free port]"
    greeterd: str = ""
    "The command that runs the daemon. [default: this installation's]"
    dry_run: bool = False
    "Print the plan and run nothing."


@app.default
def bench(
    *,
    axes: Axes | None = None,
    options: BenchOptions | None = None,
    outputs: Outputs | None = None,
) -> int:
    """Run an experiment, print its report, and return the exit code."""
    axes, options, outputs = axes or Axes(), options or BenchOptions(), outputs or Outputs()
    terminate_as_interrupt()
    if options.dry_run:
        return _dry_run(options, axes, outputs)
    with _prepared(options, axes, outputs) as (kept, setup):
        try:
            _run(kept, setup)
        except KeyboardInterrupt:
            _tell_interrupted(kept)
            return EX_INTERRUPTED
        try:
            return _report(kept.results, options, outputs)
        except KeyboardInterrupt:
            tell("interrupted: all trials are kept; for the report:")
            tell(f"greeter bench report {shlex.quote(str(kept.path))}")
            return EX_INTERRUPTED


def _dry_run(options: BenchOptions, axes: Axes, outputs: Outputs) -> int:
    """Print the plan, if nothing that can be known before speaks against it."""
    if options.resume:
        raise UsageError("--dry-run and --resume exclude each other")
    _checked(options, outputs)
    if options.results:
        store.require_new(options.results)
    plan, choice = _plan(options, axes)
    _tell_left_out(choice.left_out)
    _print_plan(plan)
    return 0


def _checked(options: BenchOptions, outputs: Outputs) -> tuple[Sequence[str], str]:
    """Check the options by themselves; return the daemon's command and its version."""
    outputs.require(
        {
            "--results": options.results,
            "--resume": options.resume,
            "--predicates": options.predicates,
        }
    )
    try:
        daemon = shlex.split(options.greeterd) or servers.DAEMON
    except ValueError as error:
        raise UsageError(f"--greeterd {options.greeterd}: {error}") from None
    version = servers.version_of(daemon)
    require("hdrh", "psutil")
    experiment.require_address(options.bind)
    _predicates(options, "")  # a mistake in it is told now
    return daemon, version


@contextlib.contextmanager
def _prepared(options: BenchOptions, axes: Axes, outputs: Outputs) -> Iterator[tuple[Store, Setup]]:
    """Check all that can be checked before the run, and open the results."""
    daemon, version = _checked(options, outputs)
    with servers.temporary_directory("greeter-bench-peers-") as programs:
        here = describe(version, shlex.join(daemon) if options.greeterd else "")
        setup = Setup(options.bind, daemon, programs, here.commit)
        begin = _resume if options.resume else _create
        with contextlib.closing(begin(options, axes, here, setup)) as kept:
            yield kept, setup


def _plan(options: BenchOptions, axes: Axes) -> tuple[Plan, Choice]:
    changes = presets.parse_axes(axes.given)
    name = options.preset or ("" if changes else "quick")
    if name and name not in presets.PRESETS:
        raise UsageError(f"--preset {name}: must be one of {', '.join(presets.PRESETS)}")
    preset = presets.PRESETS[name] if name else presets.CUSTOM
    choice = presets.choose(preset, changes)
    if not choice.cases:
        raise UsageError(f"there is no possible case: {'; '.join(choice.left_out)}")
    if axes.rate and not any(case.rate for case in choice.cases):
        raise UsageError("--rate is of open loop: --arrival constant or poisson")
    experiment.require_cases(choice.cases, options.bind)
    plan = Plan(
        preset=name,
        cases=choice.cases,
        repeats=options.trials or preset.repeats,
        seed=options.seed or 0,
        warmup=preset.warmup if options.warmup is None else options.warmup,
    )
    return plan, choice


def _create(options: BenchOptions, axes: Axes, here: Environment, setup: Setup) -> Store:
    plan, choice = _plan(options, axes)
    cases, reasons = experiment.without_unbuildable(plan.cases, setup)
    _tell_left_out(choice.left_out)
    for server, reason in reasons.items():
        tell(f"without {server}: {reason}")
    if not cases:
        raise UsageError("there is no case left")
    plan = msgspec.structs.replace(plan, cases=cases)
    path = options.results or Path(f"greeter-bench-{now()[:19].replace(':', '')}.jsonl")
    return store.create(path, store.Header(environment=here, plan=plan))


def _resume(options: BenchOptions, axes: Axes, here: Environment, setup: Setup) -> Store:
    """Open the results of an interrupted experiment; what is asked for must be the same."""
    assert options.resume is not None
    kept = store.resume(options.resume)
    try:
        _require_same(kept, options, axes, here)
        experiment.require_cases(kept.header.plan.cases, options.bind)
        experiment.without_unbuildable(kept.header.plan.cases, setup)
    except BaseException:
        kept.close()
        raise
    return kept


def _require_same(kept: Store, options: BenchOptions, axes: Axes, here: Environment) -> None:
    """Refuse to mix what differs in more than its time.  Raises: UnusableError."""
    there = kept.header
    asked = (options.preset, options.trials, options.seed, options.warmup)
    if axes.given or any(one not in {"", None} for one in asked):
        plan, _ = _plan(options, axes)
        # Servers that could not be had are not in the plan that is kept.
        had = {case.server for case in there.plan.cases}
        cases = [case for case in plan.cases if case.server in had]
        if msgspec.structs.replace(plan, cases=cases) != there.plan:
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
    trials, cases = counted(plan.trials, "trial"), counted(len(plan.cases), "case")
    tell(f"{trials} of {cases}, results in {kept.path}")
    with telling(names(plan.cases)) as show:
        experiment.run(kept, setup, show)


def _report(results: Results, options: BenchOptions, outputs: Outputs) -> int:
    """Print and write what was found; 1 when a trial is invalid or an expectation has failed."""
    invalid = sum(bool(trial.invalid) for trial in results.trials)
    outputs.write(results)  # first: the reader of standard output may go
    sys.stdout.write(tables.show(tables.render(results), sys.stdout))
    verdicts = predicates.check(_predicates(options, results.preset), results)
    if verdicts:
        sys.stdout.write("\n" + tables.show(expectations.render(verdicts), sys.stdout))
    if invalid:
        trials = counted(len(results.trials), "trial")
        tell(f"{invalid} of {trials} {'is' if invalid == 1 else 'are'} invalid")
    return EX_FAILED if invalid else predicates.exit_code(verdicts)


def _predicates(options: BenchOptions, preset: str) -> list[predicates.Predicate]:
    if options.predicates:
        return predicates.load(options.predicates)
    return predicates.load(predicates.KNOWN_EFFECTS) if preset in {"quick", "full"} else []


def _print_plan(plan: Plan) -> None:
    seconds = plan.repeats * sum(map(expected, plan.cases))
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("case", "greetings", "seconds"):
        table.add_column(column, justify="left" if column == "case" else "right")
    called = names(plan.cases)
    for case in plan.cases:
        table.add_row(called[case], str(case.greetings), f"{expected(case):.0f}")
    sys.stdout.write(tables.show(table, sys.stdout))
    print(
        f"\n{counted(len(plan.cases), 'case')}, {counted(plan.repeats, 'time')} each:"
        f" {counted(plan.trials, 'trial')},"
        f" about {duration(seconds)}; order by seed {plan.seed}"
    )


def _tell_left_out(left_out: Mapping[str, int]) -> None:
    for reason, count in left_out.items():
        tell(f"left out {counted(count, 'case')}: {reason}")


def _tell_interrupted(kept: Store) -> None:
    plan, path = kept.header.plan, kept.path
    command = kept.header.environment.command
    daemon = f" --greeterd {shlex.quote(command)}" if command else ""
    done = f"{len(kept.trials)} of {counted(plan.trials, 'trial')}"
    tell(f"interrupted: {done} {'is' if plan.trials == 1 else 'are'} kept in {path}")
    tell(f"go on with: greeter bench --resume {shlex.quote(str(path))}{daemon}")
