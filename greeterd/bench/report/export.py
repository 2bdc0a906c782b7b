"""Writes results as JSON and CSV, and reads them again.

JSON is the whole of `model.Results`.  CSV is for spreadsheets: a line for each trial, invalid ones
too, in the order in which they were run, with the columns of COLUMNS and the unit in each name; a
cell is empty where nothing is known.
"""

import csv
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, Final

import msgspec
from msgspec import Struct

from greeterd.bench.experiment import store
from greeterd.bench.metrics import jain, rate
from greeterd.bench.model import FORMAT, Case, Latency, Results, Trial
from greeterd.errors import GreeterdError
from greeterd.system.escape import to_ascii

Cell = str | int | float | None


class UnreadableError(GreeterdError):
    """A file cannot be read, or holds no results (EX_NOINPUT)."""

    exit_code: ClassVar[int] = 66


class _Head(Struct, frozen=True):
    """What is read first, so that another format is told from a file that is none."""

    format: int


def to_json(results: Results) -> str:
    """Return the results as one JSON document."""
    return msgspec.json.format(to_ascii(msgspec.json.encode(results)), indent=1) + "\n"


def read(path: Path) -> Results:
    """Return the results in a file: of `to_json`, or the lines that a run has kept so far.

    Raises:
        UnreadableError: it cannot be read, holds something else, or is of another format.

    """
    try:
        content = store.read_bounded(path)
    except store.StoreError as error:
        raise UnreadableError(str(error)) from error
    # The header of kept results tells its kind first, on a line of its own.
    if content.startswith(b'{"kind":'):
        try:
            return store.load_results(path)
        except (store.StoreError, store.UnusableError) as error:
            raise UnreadableError(str(error)) from error
    try:
        found = msgspec.json.decode(content, type=_Head).format
        if found != FORMAT:
            raise UnreadableError(f"{path} has format {found}; this program knows {FORMAT}")
        return msgspec.json.decode(content, type=Results)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise UnreadableError(f"{path} holds no results of greeter bench: {error}") from error


def _case(name: str) -> Callable[[Trial], Cell]:
    def cell(trial: Trial) -> Cell:
        value: Any = getattr(trial.case, name)
        return ("on" if value else "off") if isinstance(value, bool) else value

    return cell


def _load(name: str) -> Callable[[Trial], Cell]:
    return lambda trial: getattr(trial.load, name) if trial.load else None


def _latency(name: str) -> Callable[[Trial], Cell]:
    def cell(trial: Trial) -> Cell:
        known: Latency | None = trial.load.latency if trial.load else None
        return getattr(known, name) if known and known.count else None

    return cell


def _known(value: Callable[[Trial], Cell]) -> Callable[[Trial], Cell]:
    """Return what reads a figure that a trial has which came to its end."""
    return lambda trial: value(trial) if trial.load else None


def _scoreboard(name: str) -> Callable[[Trial], Cell]:
    """Return what reads a figure that greeterd has of itself, and no other server."""
    return _known(lambda t: getattr(t, name) if t.case.server == "greeterd" else None)


def _errors(trial: Trial) -> Cell:
    kinds = trial.load.errors if trial.load else {}
    return " ".join(f"{kind}={count}" for kind, count in sorted(kinds.items()))


CASE: Final = {
    ("intended_per_second" if name == "rate" else name): _case(name)
    for name in Case.__struct_fields__
}
COLUMNS: Final[dict[str, Callable[[Trial], Cell]]] = {
    **CASE,
    "comparison": lambda t: t.comparison + 1,
    "pair": lambda t: t.pair + 1,
    "order": lambda t: t.order + 1,
    "began_utc": lambda t: t.began,
    "invalid": lambda t: t.invalid,
    "rate_per_second": rate,
    "duration_seconds": _load("seconds"),
    "cpu_us_per_greeting": _known(lambda t: t.cpu_us or None),
    "cpu_user_us_per_greeting": _known(lambda t: t.cpu_user_us),
    "cpu_system_us_per_greeting": _known(lambda t: t.cpu_system_us),
    "switches_voluntary_per_greeting": _known(lambda t: t.switches_voluntary),
    "switches_involuntary_per_greeting": _known(lambda t: t.switches_involuntary),
    "wakeups_per_greeting": _scoreboard("wakeups"),
    "wasted_wakeups_per_greeting": _scoreboard("wasted_wakeups"),
    "latency_mean_ms": _latency("mean"),
    "latency_min_ms": _latency("min"),
    "latency_p50_ms": _latency("p50"),
    "latency_p90_ms": _latency("p90"),
    "latency_p99_ms": _latency("p99"),
    "latency_p999_ms": _latency("p999"),
    "latency_max_ms": _latency("max"),
    "latency_missing_clients": _known(lambda t: t.load.latency.missing if t.load else None),
    "greetings_per_worker": lambda t: " ".join(map(str, t.per_worker)),
    "jain_index": lambda t: jain(t.per_worker),
    "queued_max_clients": _known(lambda t: t.listener.queued_max),
    "queue_limit_clients": _known(lambda t: t.listener.limit),
    "drops_clients": _known(lambda t: t.listener.drops),
    "listening_sockets": lambda t: t.listener.sockets or None,
    "sent_clients": _load("sent"),
    "ok_clients": _load("ok"),
    "lost_clients": _known(lambda t: t.lost),
    "errors_clients": _errors,
    "faults": _known(lambda t: t.faults),
    "counted_by_client": _known(lambda t: t.counts.client),
    "uncertain_to_client": _known(lambda t: t.counts.uncertain),
    "counted_by_scoreboard": lambda t: t.counts.scoreboard,
    "counted_in_logs": lambda t: t.counts.log,
    "client_processes": _load("processes"),
    "client_cpu_seconds": _load("client_cpu_seconds"),
    "client_bottleneck": _load("bottleneck"),
}  # fmt: skip
"""What a trial's line of CSV holds, by name, in the order of the columns."""


def to_csv(results: Results) -> str:
    """Return the trials as CSV, with a header."""
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(COLUMNS)
    for trial in results.trials:
        rows.writerow(cell(trial) for cell in COLUMNS.values())
    return text.getvalue()
