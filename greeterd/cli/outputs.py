"""Writes the files of a report; finds out before a measurement whether they can be written.

A file is written whole under another name and then renamed, so that a failure leaves the old file
as it was; a device or a pipe is written directly. No file of a report replaces another one of it,
or a file that the command reads or keeps. Messages go to standard error.
"""

import contextlib
import itertools
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from cyclopts import Parameter

from greeterd.bench.analysis.expectations import Verdict
from greeterd.bench.experiment.store import StoreError
from greeterd.bench.extras import require
from greeterd.bench.model import Results
from greeterd.bench.report import export
from greeterd.cli.program import complain
from greeterd.errors import UsageError


@Parameter(name="*", negative=(), show_default=False)
@dataclass(frozen=True, slots=True, kw_only=True)
class Outputs:
    """The files that a report is written to, beside the terminal."""

    html: Path | None = None
    "Write the report as one HTML file."
    json: Path | None = None
    "Write the results as JSON."
    csv: Path | None = None
    "Write the trials as CSV."

    @property
    def given(self) -> bool:
        """Whether there is any."""
        return any((self.html, self.json, self.csv))

    def require(self, others: Mapping[str, Path | None] | None = None) -> None:
        """Make sure that every file can be written, and its content made.

        `others` are the files that the command reads or keeps, by their options.

        Raises:
            UsageError: two are the same file.
            StoreError: a file cannot be written.
            MissingPackageError: a package for it is missing.

        """
        own = {"--html": self.html, "--json": self.json, "--csv": self.csv}
        given = [(name, path) for name, path in {**(others or {}), **own}.items() if path]
        for (name, path), (other, its) in itertools.combinations(given, 2):
            if other in own and _same(path, its):
                raise UsageError(f"{name} and {other} are the same file: {its}")
        for path in filter(None, own.values()):
            _require_writable(path)
        if self.html:
            require("jinja2", "matplotlib")

    def write(self, results: Results, verdicts: Sequence[Verdict] = ()) -> None:
        """Write the files that were asked for.

        Raises:
            StoreError: a file cannot be written.

        """
        if self.json:
            _write(self.json, export.to_json(results))
        if self.csv:
            _write(self.csv, export.to_csv(results))
        if self.html:
            from greeterd.bench.report import html  # noqa: PLC0415  only then jinja2 is needed

            _write(self.html, html.render(results, verdicts))


def _same(one: Path, other: Path) -> bool:
    with contextlib.suppress(OSError):
        if one.exists() and other.exists():
            return one.samefile(other) and one.is_file()
    return one.resolve() == other.resolve()


def _require_writable(path: Path) -> None:
    """Open what will be opened, and leave nothing behind."""
    try:
        if path.exists():
            path.open("ab").close()
        if _is_replaced(path):
            new = _beside(path)
            new.open("xb").close()
            new.unlink()
    except OSError as error:
        raise StoreError(f"{path}: {error.strerror}") from error


def _write(path: Path, text: str) -> None:
    try:
        if _is_replaced(path):
            _replace(path, text)
        else:
            path.write_text(text, "utf-8")
    except OSError as error:
        raise StoreError(f"{path}: {error.strerror}") from error
    tell(f"written: {path}")


def _is_replaced(path: Path) -> bool:
    """Whether this is, or will be, a regular file; not a device, a pipe or a directory."""
    return path.is_file() or not path.exists()


def _beside(path: Path) -> Path:
    """Return the name under which a file is written; where `path` is a link, beside the file."""
    whole = path.resolve()
    return whole.with_name(f".{whole.name[:200]}.{os.getpid()}")


def _replace(path: Path, text: str) -> None:
    new = _beside(path)
    try:
        with new.open("x", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        new.replace(path.resolve())
    except BaseException:
        new.unlink(missing_ok=True)
        raise


def tell(message: str) -> None:
    """Write a message to standard error."""
    complain("greeter", message)


def counted(number: int, noun: str) -> str:
    """Return `1 trial` or `2 trials`."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
