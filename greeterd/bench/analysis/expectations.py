"""Holds expectations that were written down before a run against what it found.

A file of expectations is TOML, one table `[[expect]]` each; README.md has its fields.  An
expectation speaks of every case that its `where` selects, and of the median over the valid trials
of each.  It has held when it holds in each case that it can be told of, and in one at least; it has
failed when it fails in one.  With `than`, the figure is a ratio: the case over its counterpart,
which is the same case but for the fields in `than`.  Pure but for reading the file.
"""

import math
import operator
import statistics
import tomllib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Literal, get_args

import msgspec
from msgspec import Struct

from greeterd.balance import SURE, Evenness, chi_square_tail, evenness
from greeterd.bench.analysis.spread import summed_chi_square
from greeterd.bench.labels import wait_of
from greeterd.bench.metrics import METRICS
from greeterd.bench.model import Case, Results, Trial
from greeterd.config.schema import HandoffPolicy, Mode, Steering, Wait
from greeterd.errors import GreeterdError, UsageError

KNOWN_EFFECTS: Final = Path(__file__).with_name("known-effects.toml")
"""What theory and experience lead to expect of any machine."""

Outcome = Literal["held", "failed", "not tested"]
Op = Literal["<", "<=", ">", ">=", "between", "within null"]
COMPARISONS: Final[Mapping[str, Callable[[float, float], bool]]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}
EVENNESS: Final = {
    "jain": "jain",
    "max_min": "max_over_min",
    "cv": "cv",
    "gini": "gini",
    "chi_square": "chi_square",
}
"""Metrics of balance, and their names in greeterd.balance: those that chance has a null of."""


def _lost(trial: Trial) -> float | None:
    return float(trial.lost) if trial.load else None


def _lost_share_times_workers(trial: Trial) -> float | None:
    if trial.load is None or not trial.load.sent:
        return None
    return trial.lost / trial.load.sent * trial.case.workers


def _evenness(name: str) -> Callable[[Trial], float | None]:
    def value(trial: Trial) -> float | None:
        return _of(evenness(trial.per_worker), name) if trial.per_worker else None

    return value


def _of(figures: Evenness, name: str) -> float:
    return float(getattr(figures, EVENNESS[name]))


OF: Final[Mapping[str, Callable[[Trial], float | None]]] = {
    **{name: metric.of for name, metric in METRICS.items()},
    **{name: _evenness(name) for name in EVENNESS},
    "lost": _lost,
    "lost_share_times_workers": _lost_share_times_workers,
}
"""What an expectation can be of: the metrics of the report, and some more."""
SHOWN: Final = 4
"""Cases of one expectation that are told of; those that failed come first."""

_FIELDS: Final[dict[str, Any]] = {
    **{field.name: field.type for field in msgspec.structs.fields(Case)},
    "mode": Mode,
    "wait": Wait,
    "steering": Steering,
    "handoff_policy": HandoffPolicy,
}


class Predicate(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One expectation."""

    name: str
    metric: str
    op: Op
    value: float | tuple[float, float] | None = None
    """Two of `between`, none of `within null`; a ratio with `than`, and 1 unless it is given."""
    where: dict[str, Any] = {}
    """Fields of a case: a value, or a list of which it has one.  A field not named may be any."""
    than: dict[str, Any] = {}
    """Fields of the counterpart that differ; one value each."""
    why: str = ""


class Finding(Struct, frozen=True, kw_only=True):
    """What one case says to an expectation."""

    case: Case
    holds: bool
    figures: str
    trials: int


class Verdict(Struct, frozen=True, kw_only=True):
    """What has become of an expectation."""

    predicate: Predicate
    outcome: Outcome
    findings: tuple[Finding, ...] = ()
    reason: str = ""
    """Why it was not tested."""

    @property
    def trials(self) -> int:
        """How many valid trials it was held against, counterparts left out."""
        return sum(finding.trials for finding in self.findings)


# The file


def load(path: Path) -> list[Predicate]:
    """Return the expectations of a file, in its order.

    Raises:
        UsageError: the file cannot be read, or an expectation in it makes no sense.

    """
    try:
        return parse(path.read_text())
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}") from None
    except (ValueError, GreeterdError) as error:  # of TOML, of UTF-8, or ours
        raise UsageError(f"{path}: {error}") from None


def parse(text: str) -> list[Predicate]:
    """Return the expectations of a file's text.

    Raises:
        UsageError: an expectation makes no sense; it is named, and the reason told.
        ValueError: the text is not TOML.

    """
    document = tomllib.loads(text)
    if strange := document.keys() - {"expect"}:
        raise UsageError(f"unknown key {min(strange)!r}: there is [[expect]] only")
    tables = document.get("expect", [])
    if not isinstance(tables, list) or not tables:
        raise UsageError("it has no [[expect]]")
    found: list[Predicate] = []
    for number, table in enumerate(tables, 1):
        name = table.get("name") if isinstance(table, dict) else None
        try:
            one = msgspec.convert(table, Predicate)
            _check_fields(one)
            _check_bound(one)
        except ValueError as error:  # msgspec's is one
            raise _refusal(number, name, str(error)) from None
        if name in [other.name for other in found]:
            raise _refusal(number, name, "another one has this name")
        found.append(one)
    return found


def _refusal(number: int, name: object, reason: str) -> UsageError:
    return UsageError(f"expectation {number} ({name or 'without a name'}): {reason}")


def _check_fields(one: Predicate) -> None:
    if one.metric not in OF:
        raise ValueError(f"unknown metric {one.metric!r}: one of {', '.join(OF)}")
    for key, wanted in one.where.items():
        if wanted == []:
            raise ValueError(f"where: {key} is one of nothing, which no case has")
        for value in wanted if isinstance(wanted, list) else [wanted]:
            _check_field("where", key, value)
    for key, value in one.than.items():
        _check_field("than", key, value)


def _check_bound(one: Predicate) -> None:
    if any(map(math.isnan, one.value if isinstance(one.value, tuple) else [one.value or 0.0])):
        raise ValueError("nothing is less or more than nan")
    if one.op == "within null":
        if one.metric not in EVENNESS:
            raise ValueError(f"only balance has a null: one of {', '.join(EVENNESS)}")
        if one.value is not None or one.than:
            raise ValueError("'within null' takes neither value nor than")
    elif one.op == "between":
        if not isinstance(one.value, tuple) or not one.value[0] <= one.value[1]:
            raise ValueError("'between' takes a value of two rising numbers")
    elif isinstance(one.value, tuple) or (one.value is None and not one.than):
        raise ValueError(f"{one.op!r} takes a value of one number")


def _check_field(where: str, key: str, value: object) -> None:
    if key not in _FIELDS:
        raise ValueError(f"{where}: a case has no {key!r}: it has {', '.join(_FIELDS)}")
    try:
        msgspec.convert(value, _FIELDS[key])
    except msgspec.ValidationError as error:
        choices = get_args(_FIELDS[key])
        reason = f"one of {', '.join(choices)}" if choices else str(error)
        raise ValueError(f"{where}: {key} cannot be {value!r}: {reason}") from None


# The verdicts


def check(predicates: Sequence[Predicate], results: Results) -> list[Verdict]:
    """Return a verdict for each expectation, in their order."""
    trials: dict[Case, list[Trial]] = {}
    for trial in results.trials:
        of_case = trials.setdefault(_settled(trial.case), [])
        if not trial.invalid:
            of_case.append(trial)
    return [_verdict(one, trials) for one in predicates]


def exit_code(verdicts: Sequence[Verdict]) -> int:
    """Return 1 when an expectation has failed, else 0: what was not tested fails nobody."""
    return int(any(verdict.outcome == "failed" for verdict in verdicts))


def _settled(case: Case) -> Case:
    """Return a case with what is in force in it, so that two names of one thing are equal."""
    changes: dict[str, str] = {}
    if case.server == "greeterd":
        changes["wait"] = wait_of(case)
    if case.mode != "handoff":
        changes["handoff_policy"] = "round-robin"
    if case.mode != "reuseport":
        changes["steering"] = "hash"
    return msgspec.structs.replace(case, **changes)


def _selects(where: Mapping[str, Any], case: Case) -> bool:
    return all(
        getattr(case, key) in (wanted if isinstance(wanted, list) else [wanted])
        for key, wanted in where.items()
    )


def _verdict(one: Predicate, trials: Mapping[Case, Sequence[Trial]]) -> Verdict:
    chosen = [case for case in trials if _selects(one.where, case)]
    if not chosen:
        return Verdict(predicate=one, outcome="not tested", reason="no such case was run")
    findings, reasons = [], []
    for case in chosen:
        finding = _finding(one, case, trials, of=len(chosen))
        if isinstance(finding, str):
            reasons.append(finding)
        else:
            findings.append(finding)
    if not findings:
        reason = next(filter(None, reasons), "the counterpart is the case itself")
        return Verdict(predicate=one, outcome="not tested", reason=reason)
    outcome: Outcome = "held" if all(finding.holds for finding in findings) else "failed"
    return Verdict(predicate=one, outcome=outcome, findings=tuple(findings))


def _finding(
    one: Predicate, case: Case, trials: Mapping[Case, Sequence[Trial]], *, of: int
) -> Finding | str:
    """Return what one `of` several cases says, or why it says nothing.

    The reason is empty where a case is its own counterpart.
    """
    valid = trials[case]
    values = _values(one.metric, valid)
    if not valid:
        return "no valid trial"
    if not values:
        return f"not every trial tells {one.metric}"
    if one.op == "within null":
        holds, figures = _within_null(statistics.median(values), valid, SURE / of)
    else:
        figure, figures = statistics.median(values), ""
        if one.than:
            counterpart = _settled(msgspec.structs.replace(case, **one.than))
            if counterpart == case:
                return ""
            others = _values(one.metric, trials.get(counterpart, ()))
            if not others:
                return "no valid trial of the counterpart"
            base = statistics.median(others)
            figures = f" ({_number(figure)} over {_number(base)})"
            figure = _ratio(figure, base)
        holds, bound = _compare(one, figure)
        figures = f"{_number(figure)} {bound}{figures}"
    return Finding(case=case, holds=holds, figures=figures, trials=len(values))


def _values(metric: str, trials: Sequence[Trial]) -> list[float]:
    """Return the values of trials; none unless each has one, as in a report."""
    values = [OF[metric](trial) for trial in trials]
    told = [value for value in values if value is not None]
    return told if len(told) == len(values) else []


def _ratio(figure: float, base: float) -> float:
    if base:
        return figure / base
    return float("inf") if figure else 1.0


def _within_null(figure: float, trials: Sequence[Trial], sure: float) -> tuple[bool, str]:
    """Tell whether chance is as uneven as these trials, each by itself, with a probability."""
    value, degrees = summed_chi_square([trial.per_worker for trial in trials])
    p_value = chi_square_tail(value, degrees)
    holds = p_value >= sure
    where = f"{'within' if holds else 'outside'} the null: p {_number(p_value)}"
    return holds, f"{_number(figure)}, {where} {'>=' if holds else '<'} {_number(sure)}"


def _compare(one: Predicate, figure: float) -> tuple[bool, str]:
    if isinstance(one.value, tuple):
        low, high = one.value
        holds, bound = low <= figure <= high, f"between {_number(low)} and {_number(high)}"
    else:
        value = 1.0 if one.value is None else one.value
        holds, bound = COMPARISONS[one.op](figure, value), f"{one.op} {_number(value)}"
    return holds, bound if holds else f"not {bound}"


def _number(value: float) -> str:
    return f"{value:.4g}" if abs(value) < 1000 else f"{value:,.0f}"  # noqa: PLR2004


# In words


def sentence(verdicts: Sequence[Verdict]) -> str:
    """Return how many have held and failed, and which have failed."""
    tested = [verdict for verdict in verdicts if verdict.outcome != "not tested"]
    failed = [verdict.predicate.name for verdict in tested if verdict.outcome == "failed"]
    said = f"{len(tested) - len(failed)} of {len(tested)} tested expectations held."
    return f"{said} Failed: {'; '.join(failed)}." if failed else said


def figures_of(verdict: Verdict) -> list[str]:
    """Return what the cases say, a line each: how they differ, and the figure."""
    if not verdict.findings:
        return [verdict.reason]
    cases = [finding.case for finding in verdict.findings]
    ordered = sorted(verdict.findings, key=lambda finding: finding.holds)
    lines = [_line(verdict, finding, cases) for finding in ordered[:SHOWN]]
    if len(ordered) > SHOWN:
        lines.append(f"and {len(ordered) - SHOWN} cases more")
    return lines


def _line(verdict: Verdict, finding: Finding, cases: Sequence[Case]) -> str:
    differing = [
        f"{name} {getattr(finding.case, name)}"
        for name in Case.__struct_fields__
        if len({getattr(case, name) for case in cases}) > 1
    ]
    figures = f"{verdict.predicate.metric} {finding.figures}"
    return f"{', '.join(differing)}: {figures}" if differing else figures
