"""Types of settings: how a value is parsed, rendered, and refused.

A SettingType is a cyclopts converter, so that a flag, a variable and a key of the file are parsed
by the same code and refused in the same words. `parse(text(x)) == x`.
Units: seconds are `float`, modes and masks are octal strings outside and `int` inside.
"""

import grp
import json
import os
import pwd
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, get_args

from cyclopts import Parameter, Token

from greeterd.sockets.address import parse_address
from greeterd.system.cpus import parse_cpus, render_cpus

MAX_SECONDS: Final = 1_000_000.0
"""Eleven days; epoll_wait(2) takes at most 2**31 - 1 milliseconds."""
MIN_SECONDS: Final = 0.001
MAX_COUNT: Final = 2**31 - 1
MAX_ID: Final = 2**32 - 2
"""The highest user or group id: (uid_t) -1 means "unchanged" to the kernel."""

TRUE: Final = frozenset({"true", "t", "yes", "y", "1"})
FALSE: Final = frozenset({"false", "f", "no", "n", "0"})
"""The words of cyclopts, which parses `--reply=no` before a converter is called."""


@dataclass(frozen=True, slots=True)
class SettingType:
    """One type of value; cyclopts calls it with the tokens of one setting, as a converter.

    `words` completes "must be ..."; `types` are the types that TOML may give. `parse` raises
    ValueError, or Unacceptable with a reason of its own.
    """

    words: str
    types: tuple[type, ...]
    parse: Callable[[str], object]
    text: Callable[[Any], str] = str

    def __call__(self, _hint: object, tokens: Sequence[Token]) -> object:
        """Return the value of the tokens; several tokens are one list."""
        text = " ".join(token.value for token in tokens)
        try:
            _require_encodable(text)
            return self.parse(text)
        except Unacceptable:
            raise
        except ValueError:
            raise ValueError(self.refusal(text)) from None

    def accepts(self, value: object) -> bool:
        """Return whether TOML gave a value of a type that this one is written in."""
        if isinstance(value, list):
            return list in self.types and all(isinstance(item, str) for item in value)
        return type(value) in self.types  # not isinstance: a bool is no whole number

    def refusal(self, value: object) -> str:
        """Return the reason for refusing `value`."""
        return f"must be {self.words}, not {value!r}"

    def to_toml(self, value: object) -> str:
        """Return `value` as TOML writes it."""
        if isinstance(value, tuple):
            return f"[{', '.join(map(_quoted, value))}]"
        if isinstance(value, str) or type(value) not in self.types:
            return _quoted(self.text(value))
        return self.text(value)


class Unacceptable(ValueError):  # noqa: N818  # it becomes an error of cyclopts, and then ours
    """A value that has the right form and is refused; the message is the whole reason."""


def _require_encodable(text: str) -> None:
    """Refuse text that this locale cannot decode, or cannot encode as a name of a file or user."""
    try:
        text.encode()  # bytes that the locale cannot read are surrogates here
        os.fsencode(text)
    except UnicodeEncodeError:
        encoding = sys.getfilesystemencoding()
        if encoding == "utf-8":
            raise Unacceptable(f"must be UTF-8, not {text!r}") from None
        raise Unacceptable(
            f"must be {encoding}, the encoding of this locale, not {text!r};"
            " LC_ALL=C.UTF-8 allows UTF-8"
        ) from None


def parameter(kind: SettingType, unit: str, *, show_default: bool = True) -> Parameter:
    """Return the cyclopts parameter of a setting of this type; the unit is its metavar."""
    return Parameter(
        converter=kind,
        metavar=unit,
        negative=None if kind is SWITCH else (),
        show_default=kind.text if show_default else False,
        show_choices=int not in kind.types,  # "auto" alone would look like all there is
    )


def kind_of(setting: Parameter) -> SettingType:
    """Return the type that `parameter` put there."""
    assert isinstance(setting.converter, SettingType)
    return setting.converter


def choice(literal: Any) -> Parameter:
    """Return the parameter of a `Literal` type."""
    names = get_args(literal)

    def parse(text: str) -> str:
        if text not in names:
            raise ValueError
        return text

    return parameter(SettingType(f"one of {', '.join(names)}", (str,), parse), "")


def count(unit: str, low: int, high: int = MAX_COUNT) -> Parameter:
    """Return the parameter of whole numbers from `low` to `high`."""
    return parameter(_whole(low, high), unit)


def count_or_auto(unit: str, low: int, high: int) -> Parameter:
    """Return the parameter of whole numbers from `low` to `high`, and `auto`."""
    whole = _whole(low, high)

    def parse(text: str) -> object:
        return text if text == "auto" else whole.parse(text)

    return parameter(SettingType(f"{whole.words}, or auto", (int, str), parse), unit)


def seconds(low: float = MIN_SECONDS) -> Parameter:
    """Return the parameter of durations from `low` on."""

    def parse(text: str) -> float:
        number = float(text)
        if not low <= number <= MAX_SECONDS:  # false for nan too
            raise ValueError
        return number

    words = f"a number of seconds from {low:g} to {MAX_SECONDS:.0f}"
    return parameter(SettingType(words, (float, int), parse), "SECONDS")


def directory() -> Parameter:
    """Return the parameter of directories; the empty text means the environment's default."""
    return parameter(_DIRECTORY, "DIRECTORY", show_default=False)


def _whole(low: int, high: int) -> SettingType:
    def parse(text: str) -> int:
        number = int(text)
        if not low <= number <= high:
            raise ValueError
        return number

    return SettingType(f"a whole number from {low} to {high}", (int,), parse)


def _switch(text: str) -> bool:
    if text.lower() not in TRUE | FALSE:
        raise ValueError
    return text.lower() in TRUE


def _octal(text: str) -> int:
    number = int(text.removeprefix("0o"), 8)
    if not 0 <= number <= 0o777:  # noqa: PLR2004  # the nine bits of rwxrwxrwx
        raise ValueError
    return number


def _path(text: str) -> Path:
    if "\0" in text:
        raise ValueError
    return Path(text)


def _addresses(text: str) -> tuple[str, ...]:
    texts = text.split()
    if not texts:
        raise Unacceptable("must be at least one address")
    for one in texts:
        try:
            parse_address(one)
        except ValueError as error:
            raise Unacceptable(f"{one!r} is not an address: {error}") from None
    return tuple(texts)


def _affinity(text: str) -> str:
    if text in {"off", "auto"}:
        return text
    try:
        return render_cpus(parse_cpus(text))
    except ValueError as error:
        raise Unacceptable(f"must be off, auto or a list of CPUs, not {text!r}: {error}") from None


def _user(text: str) -> str | None:
    return _account(text, "user", pwd.getpwnam)


def _group(text: str) -> str | None:
    return _account(text, "group", grp.getgrnam)


def _account(text: str, what: str, look_up: Callable[[str], object]) -> str | None:
    if not text:
        return None
    if text.isascii() and text.isdecimal():
        if int(text) > MAX_ID:
            raise ValueError
        return text
    try:
        look_up(text)
    except (KeyError, ValueError):  # ValueError: a NUL byte
        raise Unacceptable(f"the {what} {text!r} is unknown") from None
    return text


def _optional(value: str | None) -> str:
    return value or ""


def _quoted(text: str) -> str:
    # Every JSON string is a basic string of TOML, save that TOML wants DEL escaped.
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


SWITCH: Final = SettingType("true or false", (bool,), _switch, lambda value: str(value).lower())
_OCTAL: Final = SettingType(
    'an octal string from "0000" to "0777"', (str,), _octal, "{:04o}".format
)
_DIRECTORY: Final = SettingType("a directory", (str,), _path)
_AFFINITY: Final = SettingType("off, auto or a list of CPUs", (str,), _affinity)
_ADDRESSES: Final = SettingType("a list of addresses", (list, str), _addresses, " ".join)

ON_OFF: Final = parameter(SWITCH, "")
OCTAL: Final = parameter(_OCTAL, "OCTAL")
ADDRESSES: Final = parameter(_ADDRESSES, "ADDRESS")
AFFINITY: Final = parameter(_AFFINITY, "CPUS")
USER: Final = parameter(SettingType("a user", (str,), _user, _optional), "NAME", show_default=False)
GROUP: Final = parameter(
    SettingType("a group", (str,), _group, _optional), "NAME", show_default=False
)
