"""Keeps results as they come: JSON lines, a header, then a line a record, each forced to the disk.

What is interrupted goes on: `resume` reads what is there, cuts a torn last line off, and appends.
Who writes holds a lock on the file, which ends with its process: two never write the same.
"""

import fcntl
import os
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, ClassVar, Final, Literal

import msgspec
from msgspec import Struct

from greeterd.bench.experiment.plan import Plan
from greeterd.bench.model import FORMAT, Environment, Held, Objection, Results, Trial
from greeterd.errors import GreeterdError

KIND: Final = "greeter bench"
MAX_BYTES: Final = 2**28
"""Of a file of results; a trial takes some 20 KB."""


class StoreError(GreeterdError):
    """The results cannot be kept (EX_IOERR)."""

    exit_code: ClassVar[int] = 74


class UnusableError(GreeterdError):
    """A file is not what was to go on, or another experiment's (EX_DATAERR is not told apart)."""

    exit_code: ClassVar[int] = 2


class InUseError(GreeterdError):
    """Another experiment is writing the file (EX_TEMPFAIL)."""

    exit_code: ClassVar[int] = 75


class Header(Struct, frozen=True, kw_only=True):
    """The first line."""

    kind: Literal["greeter bench"] = KIND
    format: int = FORMAT
    environment: Environment
    plan: Plan


class End(Struct, frozen=True, kw_only=True, tag="end"):
    """The last line of an experiment that came to its end."""


Record = Trial | Held | Objection | End


@dataclass(slots=True)
class Store:
    """An open file of results; closed by `close`."""

    path: Path
    header: Header
    records: list[Record]
    _file: BinaryIO

    def append(self, record: Record) -> None:
        """Keep a record; it is on the disk when this returns.

        Raises:
            StoreError: it cannot be written.
        """
        self.records.append(record)
        _write(self.path, self._file, record)

    @property
    def trials(self) -> list[Trial]:
        """Those that are kept, in the order in which they were run."""
        return [one for one in self.records if isinstance(one, Trial)]

    def pairs(self, comparison: int) -> int:
        """Return how many pairs of a comparison have begun."""
        return max((one.pair + 1 for one in self.trials if one.comparison == comparison), default=0)

    @property
    def results(self) -> Results:
        """What there is so far."""
        return to_results(self.header, self.records)

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def create(path: Path, header: Header) -> Store:
    """Begin a file.

    Raises:
        StoreError: it cannot be written.
        UnusableError: it holds something.
        InUseError: another experiment has just begun it.
    """
    file = _open(path, os.O_CREAT)
    kept = Store(path, header, [], file)
    try:
        if os.fstat(file.fileno()).st_size:
            raise _there(path)
        _write(path, file, header)
    except GreeterdError:
        kept.close()
        raise
    return kept


def require_new(path: Path) -> None:
    """Find out whether a file could be begun, and leave none.  Raises: as `create`."""
    is_new = not path.exists()
    with _open(path, os.O_CREAT) as file:
        if os.fstat(file.fileno()).st_size:
            raise _there(path)
        if is_new:
            path.unlink()


def resume(path: Path) -> Store:
    """Open a file to go on with it; a torn last line is cut off.

    Raises:
        StoreError: it cannot be read or written.
        UnusableError: it is no file of results.
        InUseError: another experiment is writing it.
    """
    file = _open(path)
    try:
        header, records, size = _read(path)
        file.truncate(size)
    except OSError as error:
        file.close()
        raise StoreError(f"{path}: {error.strerror}") from error
    except GreeterdError:
        file.close()
        raise
    return Store(path, header, records, file)


def load_results(path: Path) -> Results:
    """Return what a file holds.  Raises: as `resume`."""
    header, records, _ = _read(path)
    return to_results(header, records)


def to_results(header: Header, records: list[Record]) -> Results:
    """Return the results of an experiment, in the order in which the trials were run."""
    plan = header.plan
    return Results(
        environment=header.environment,
        preset=plan.preset,
        seed=plan.seed,
        precision=plan.precision,
        pairs=plan.pairs,
        comparisons=plan.comparisons,
        trials=[one for one in records if isinstance(one, Trial)],
        held=[one for one in records if isinstance(one, Held)],
        objections=[one for one in records if isinstance(one, Objection)],
        finished=any(isinstance(one, End) for one in records),
    )


def _there(path: Path) -> UnusableError:
    return UnusableError(f"{path} is there already (to go on with it: --resume {path})")


def _open(path: Path, flags: int = 0) -> BinaryIO:
    """Open a file to append to it, and lock it."""
    try:
        file = os.fdopen(os.open(path, os.O_WRONLY | os.O_APPEND | flags, 0o666), "ab", buffering=0)
    except OSError as error:
        raise StoreError(f"{path}: {error.strerror}") from error
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        raise InUseError(f"{path} is being written by another experiment") from None
    except OSError as error:
        file.close()
        raise StoreError(f"{path}: {error.strerror}") from error
    return file


def read_bounded(path: Path) -> bytes:
    """Return what a file holds.  Raises: StoreError: it cannot be read, or is too large."""
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise StoreError(f"{path}: {error.strerror}") from error
    if len(content) > MAX_BYTES:
        raise StoreError(f"{path} has more than {MAX_BYTES >> 20} MiB, and results do not")
    return content


def _read(path: Path) -> tuple[Header, list[Record], int]:
    """Return the header, the records, and the bytes up to the last whole line."""
    content = read_bounded(path)
    size = content.rfind(b"\n") + 1
    lines = content[:size].splitlines()
    if not lines:
        raise UnusableError(f"{path} holds no results of greeter bench")
    try:
        header = msgspec.json.decode(lines[0], type=Header)
        if header.format != FORMAT:
            raise UnusableError(f"{path} has format {header.format}; this program knows {FORMAT}")
        records = [msgspec.json.decode(line, type=Record) for line in lines[1:]]
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise UnusableError(f"{path} holds no results of greeter bench: {error}") from error
    return header, records, size


def _write(path: Path, file: BinaryIO, record: Struct) -> None:
    line = memoryview(msgspec.json.encode(record) + b"\n")
    try:
        while line:
            line = line[file.write(line) :]
        os.fsync(file.fileno())
    except OSError as error:
        raise StoreError(f"{path}: {error.strerror}") from error
