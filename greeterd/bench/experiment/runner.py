"""Runs the comparisons of a plan: both sides kept up, adjacent trials, until the interval decides.

Comparisons that are asked the same are run at a time: in each round every one that is not decided
has one more pair, in random order, and the trials of a pair are in random order.  Each trial is
kept as it comes.  A server that failed is started afresh.
"""

import contextlib
import ipaddress
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from time import monotonic
from typing import Final

from greeterd.bench.analysis.paired import LOOKS
from greeterd.bench.analysis.rows import primary
from greeterd.bench.experiment import holding, trial
from greeterd.bench.experiment.environment import now
from greeterd.bench.experiment.plan import Plan, expected, groups
from greeterd.bench.experiment.servers import Setup, TrialError, is_taken
from greeterd.bench.experiment.store import End, Store
from greeterd.bench.extras import require
from greeterd.bench.load.run import require_possible
from greeterd.bench.model import Case, Objection, Trial
from greeterd.bench.peers.compiled import COMPILED, build
from greeterd.errors import GreeterdError, ListenError, UsageError
from greeterd.sockets.address import Address, parse_address

FAILURES: Final = 3
"""Trials of a comparison that may fail in a row before it is given up."""


@dataclass(frozen=True, slots=True)
class Progress:
    """How far an experiment is."""

    done: float
    """Of 1, as far as one knows."""
    trial: Trial | None = None
    """The one that has just ended; None before the first."""
    next: Case | None = None
    """What is run now; None at the end."""
    is_last_of_pair: bool = False
    objection: Objection | None = None


Tell = Callable[[Progress], None]


def run(store: Store, setup: Setup, tell: Tell) -> None:
    """Run what is missing (blocking); `tell` hears of each trial that has ended.

    Raises:
        StoreError: a trial cannot be kept.
        KeyboardInterrupt: as it came; what has ended is kept, and nothing is left running.
    """
    plan = store.header.plan
    chance = random.Random(f"{plan.seed} {len(store.trials)}")  # noqa: S311 - an order
    left = plan.max_time - sum(
        trial.load.seconds for trial in store.trials if trial.load and not _is_fixed(plan, trial)
    )
    some = groups(plan.comparisons)
    weights = [sum(plan.pairs_of(plan.comparisons[one]) is None for one in group) for group in some]
    for at, group in enumerate(some):
        share = left * weights[at] / (sum(weights[at:]) or 1)
        left -= Group(store, setup, tell, chance, group, share).run()
    store.append(End())
    tell(Progress(1.0))


def _is_fixed(plan: Plan, one: Trial) -> bool:
    return plan.pairs_of(plan.comparisons[one.comparison]) is not None


@dataclass(slots=True)
class Group:
    """The comparisons that are run at a time."""

    store: Store
    setup: Setup
    tell: Tell
    chance: random.Random
    members: Sequence[int]
    seconds: float
    """For the pairs of those that end when they are decided."""
    _subjects: dict[Case, tuple[trial.Subject, contextlib.ExitStack]] = field(default_factory=dict)
    _failures: dict[int, int] = field(default_factory=dict)
    _spent: float = 0.0

    def run(self) -> float:
        """Run the pairs that are missing; return the seconds of those that were not fixed."""
        plan = self.store.header.plan
        try:
            self._start([one for one in self.members if self._is_open(one)])
            while open_ := [one for one in self.members if self._is_open(one)]:
                for one in self.chance.sample(open_, len(open_)):
                    began = monotonic()
                    self._run_pair(one)
                    if plan.pairs_of(plan.comparisons[one]) is None:
                        self._spent += monotonic() - began
            self._hold()
        finally:
            self._close()
        return self._spent

    def _start(self, members: Sequence[int]) -> None:
        """Start the servers before the time of pairs counts; a trial tells why one does not."""
        comparisons = self.store.header.plan.comparisons
        for case in dict.fromkeys(case for one in members for case in comparisons[one].cases):
            self.tell(Progress(self._progress(), next=case))
            with contextlib.suppress(GreeterdError):
                self._subject(case)

    def _is_open(self, index: int) -> bool:
        """Tell whether a comparison has another pair."""
        plan = self.store.header.plan
        comparison = plan.comparisons[index]
        done = self.store.pairs(index)
        if self._failures.get(index, 0) >= FAILURES:
            return False
        fixed = plan.pairs_of(comparison)
        if fixed is not None:
            return done < fixed
        if comparison.b is None:
            return done < LOOKS[0]
        if done >= LOOKS[-1] or (self._spent > self.seconds and done):
            return False
        if done not in LOOKS:
            return True
        ratio = primary(self.store.results, index)
        return ratio is None or not ratio.decides(plan.precision)

    def _run_pair(self, index: int) -> None:
        plan = self.store.header.plan
        cases = plan.comparisons[index].cases
        pair = self.store.pairs(index)
        failed = False
        for at, case in enumerate(self.chance.sample(cases, len(cases)), 1):
            self.tell(Progress(self._progress(), None, case))
            ended = self._run_trial(case, index, pair)
            self.store.append(ended)
            failed = failed or bool(ended.invalid)
            self.tell(Progress(self._progress(), ended, case, at == len(cases)))
        self._failures[index] = self._failures.get(index, 0) + 1 if failed else 0

    def _run_trial(self, case: Case, index: int, pair: int) -> Trial:
        order = len(self.store.trials)
        began = now()
        try:
            return self._subject(case).run(index, pair, order, self.setup.commit)
        except GreeterdError as error:
            self._drop(case)
            return Trial(
                case=case, comparison=index, pair=pair, order=order, began=began,
                commit=self.setup.commit, invalid=str(error),
            )  # fmt: skip

    def _subject(self, case: Case) -> trial.Subject:
        if case not in self._subjects:
            stack = contextlib.ExitStack()
            found = stack.enter_context(trial.subject(case, self.store.header.plan, self.setup))
            self._subjects[case] = found, stack
        return self._subjects[case][0]

    def _drop(self, case: Case) -> None:
        """End a server that failed, and do not ask how."""
        if case in self._subjects:
            _, stack = self._subjects.pop(case)
            # An end by an exception is an end without questions.
            with contextlib.suppress(TrialError):
                error = TrialError("it has failed")
                stack.__exit__(TrialError, error, None)

    def _hold(self) -> None:
        """Have a census taken of the servers that do not tell who serves."""
        for case, (found, _) in self._subjects.items():
            if found.server.command is not None and case.fault == "none":
                try:
                    for one in holding.hold(found.server):
                        self.store.append(one)
                except OSError as error:
                    self._object(case, f"no census: {error}")

    def _close(self) -> None:
        """End all servers; what they say at the end may be an objection."""
        while self._subjects:
            case, (_, stack) = self._subjects.popitem()
            try:
                stack.close()
            except TrialError as error:
                self._object(case, str(error))
            except BaseException:
                self._close()
                raise

    def _object(self, case: Case, reason: str) -> None:
        said = Objection(case=case, reason=reason)
        self.store.append(said)
        self.tell(Progress(self._progress(), objection=said))

    def _progress(self) -> float:
        plan = self.store.header.plan
        total = done = 0.0
        for index, one in enumerate(plan.comparisons):
            wanted = plan.pairs_of(one) or LOOKS[0]
            weight = sum(map(expected, one.cases))
            total += weight * wanted
            done += weight * min(wanted, self.store.pairs(index))
        return done / total if total else 1.0


def require_address(bind: str) -> None:
    """Make sure that servers can listen, and clients connect.

    Raises:
        UsageError: it is no address, or not this machine's loopback.
        ListenError: it is taken.
    """
    try:
        address = parse_address(bind)
    except ValueError as error:
        raise UsageError(f"--bind {bind}: {error}") from None
    if not address.is_unix and not _is_loopback(address):
        raise UsageError(f"--bind {bind}: must be this machine's loopback: 127.0.0.1 or [::1]")
    if reason := is_taken(address):
        raise ListenError(f"--bind {bind}: {reason}")


def _is_loopback(address: Address) -> bool:
    if address.host == "localhost":
        return True
    try:
        return ipaddress.ip_address(address.host.partition("%")[0]).is_loopback
    except ValueError:
        return False


def require_cases(plan: Plan, bind: str) -> None:
    """Make sure that each case can be run here, as far as it can be known before.

    Raises:
        UsageError: one cannot.
    """
    own, other = parse_address(bind), parse_address(Setup().bind)
    daemons = [case for case in plan.cases if case.server == "greeterd"]
    if (own.is_unix or own.port) and any(len(one.cases) > 1 for one in plan.comparisons):
        raise UsageError(f"--bind {bind}: two servers are up at a time: take port 0")
    for case in daemons:
        if own.is_unix and case.mode == "reuseport":
            raise UsageError(f"--bind {bind}: mode reuseport has no unix sockets")
    for case in plan.cases:
        require_possible(trial.load_options(case, own if case in daemons else other, plan))


def without_unbuildable(cases: Sequence[Case], setup: Setup) -> tuple[list[Case], dict[str, str]]:
    """Return the cases whose server can be had here, and why the other servers cannot.

    Compiles what is to be compiled.  Raises: MissingPackageError as `require`.
    """
    reasons: dict[str, str] = {}
    for server in dict.fromkeys(case.server for case in cases):
        if server == "uvloop":
            require("uvloop")
        if server in COMPILED:
            assert setup.build_dir is not None
            try:
                build(server, setup.build_dir)
            except GreeterdError as error:
                reasons[server] = str(error)
    return [case for case in cases if case.server not in reasons], reasons
