"""Writes the files of a report: what cannot be written is found before there is anything to write.

Messages go to standard error.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

from cyclopts import Parameter

from greeterd.bench import export
from greeterd.bench.extras import require
from greeterd.bench.model import Results
from greeterd.bench.store import StoreError
from greeterd.core.printable import escape


@Parameter(name="*", negative=(), show_default=False)
@dataclass(frozen=True, slots=True, kw_only=True)
class Outputs:
    """Where a report goes, beside the terminal."""

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

    def require(self) -> None:
        """Find out whether all can be written, and made.

        Raises:
            StoreError: a file cannot be written.
            MissingPackageError: a package for it is missing.

        """
        for path in (self.html, self.json, self.csv):
            if path is not None:
                _require_writable(path)
        if self.html:
            require("jinja2")

    def write(self, results: Results) -> None:
        """Write what is asked for.

        Raises:
            StoreError: a file cannot be written.

        """
        if self.json:
            _write(self.json, export.to_json(results))
        if self.csv:
            _write(self.csv, export.to_csv(results))
        if self.html:
            from greeterd.bench import html  # noqa: PLC0415  only then jinja2 is needed

            _write(self.html, html.render(results))


def _require_writable(path: Path) -> None:
    """Find out by opening it; a file that was not there is not left behind."""
    try:
        is_new = not path.exists()
        path.open("ab").close()
        if is_new:
            path.unlink()
    except OSError as error:
        raise StoreError(f"{path}: {error.strerror}") from error


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text, "utf-8")
    except OSError as error:
        raise StoreError(f"{path}: {error.strerror}") from error
    tell(f"written: {path}")


def tell(message: str) -> None:
    """Say something on standard error."""
    print(f"greeter: {escape(message)}", file=sys.stderr)
