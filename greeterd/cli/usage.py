"""Texts about command lines: examples for help pages, and the errors of wrong ones."""

from collections.abc import Iterable
from pathlib import Path
from typing import get_args

from cyclopts import App, CycloptsError
from cyclopts.exceptions import MissingArgumentError, UnknownCommandError, UnusedCliTokensError
from rich.console import Console

from greeterd.errors import UsageError

_WORDS = {int: "a whole number", float: "a number", Path: "a path", str: "a text"}


def epilogue(examples: Iterable[str], rest: str) -> str:
    """Return the end of a help page: examples, then the rest."""
    return "Examples:\n\n" + "".join(f"- `{one}`\n" for one in examples) + f"\n{rest}"


def print_usage(app: App) -> int:
    """Write the help page to standard error, for a call without a command; return the exit code."""
    app.help_print([], console=Console(stderr=True))
    return UsageError.exit_code


def expand_help(arguments: list[str]) -> list[str]:
    """Return `help COMMAND` as `COMMAND --help`."""
    return [*arguments[1:], "--help"] if arguments[:1] == ["help"] else arguments


def refusal(error: CycloptsError) -> UsageError:
    """Return our error for one of cyclopts: with all commands, or the type of a missing value."""
    said = str(error)
    if isinstance(error, UnknownCommandError) and error.app is not None:
        commands = ", ".join(name for name in error.app if not name.startswith("-"))
        return UsageError(f"{said.partition(' Available commands: ')[0]} Commands: {commands}.")
    if isinstance(error, MissingArgumentError) and error.argument is not None:
        hint = error.argument.hint
        words = [_WORDS[one] for one in (get_args(hint) or (hint,)) if one in _WORDS]
        return UsageError(": ".join([said.removesuffix("."), *words]))
    if isinstance(error, UnusedCliTokensError) and error.unused_tokens:
        return UsageError(f"unexpected argument: {error.unused_tokens[0]}")
    return UsageError(said)
