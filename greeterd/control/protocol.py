"""The control protocol's lines: bytes -> Command or Refused; an answer -> bytes.

One JSON object a line, in both directions, each with the protocol's version:
  {"version":1,"command":"scale","arguments":{"workers":4}}
  {"version":1,"ok":true,...}    {"version":1,"ok":false,"error":"why","code":1}
`code` is the exit status of greeterctl. A request has at most MAX_REQUEST_BYTES, its newline not
counted. A request that is not understood is answered with a reason, never with an exception.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Final

import msgspec
from msgspec import Meta, Raw, Struct

VERSION: Final = 1
MAX_REQUEST_BYTES: Final = 64 * 1024
MAX_ANSWER_BYTES: Final = 2**23
"""A status of 512 workers, each with a listener at each of 64 addresses, has 5 MB."""
MAX_WORKERS: Final = 512

FAILED: Final = 1
NOT_UNDERSTOOD: Final = 2
NOT_NOW: Final = 75
NOT_PERMITTED: Final = 77


class _Nothing(Struct, frozen=True, forbid_unknown_fields=True):
    """A command without arguments."""


class _Scale(Struct, frozen=True, forbid_unknown_fields=True):
    workers: Annotated[int, Meta(ge=1, le=MAX_WORKERS)]


class _Restart(Struct, frozen=True, forbid_unknown_fields=True):
    slot: Annotated[int, Meta(ge=0, le=MAX_WORKERS)] | None = None


class _Stop(Struct, frozen=True, forbid_unknown_fields=True):
    now: bool = False


COMMANDS: Final[Mapping[str, type[Struct]]] = {
    "ping": _Nothing,
    "status": _Nothing,
    "reload": _Nothing,
    "scale": _Scale,
    "restart": _Restart,
    "reopen": _Nothing,
    "upgrade": _Nothing,
    "stop": _Stop,
}
"""Every command with the type of its arguments."""


class _Envelope(Struct, frozen=True, forbid_unknown_fields=True):
    version: int
    command: str
    arguments: Raw = Raw(b"{}")


class _Version(Struct, frozen=True):
    """Read first: a line of another version may hold anything else."""

    version: int


@dataclass(frozen=True, slots=True)
class Command:
    """A request that was understood; `arguments` has every argument, with its default."""

    name: str
    arguments: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Refused:
    """A request that is not carried out, and why."""

    reason: str
    code: int = NOT_UNDERSTOOD


class Inbox:
    """Cuts a stream into lines; holds at most one incomplete request, and what one read adds."""

    __slots__ = ("_data", "ended")

    def __init__(self) -> None:
        self._data = bytearray()
        self.ended = False

    def __bool__(self) -> bool:
        """Whether anything was received that `take` has not returned."""
        return bool(self._data)

    def feed(self, data: bytes) -> None:
        """Add received bytes; none mean the end of the stream."""
        self._data += data
        self.ended = not data

    def take(self) -> bytes | Refused | None:
        """Return the next line, Refused for one that is too long, None if none is whole.

        At the end of the stream the last line may lack its newline; half an object is no JSON.
        """
        newline = self._data.find(b"\n")
        length = newline if newline >= 0 else len(self._data)
        if length > MAX_REQUEST_BYTES:
            return Refused(f"a request has at most {MAX_REQUEST_BYTES} bytes")
        if newline < 0 and not (self.ended and self._data):
            return None
        line = bytes(self._data[:length])
        del self._data[: length + 1]
        return line


def parse_request(line: bytes) -> Command | Refused:
    """Read one line."""
    try:
        version = msgspec.json.decode(line, type=_Version).version
        if version != VERSION:
            return Refused(f"version {version} of the protocol is not supported, {VERSION} is")
        envelope = msgspec.json.decode(line, type=_Envelope)
        if (arguments := COMMANDS.get(envelope.command)) is None:
            known = ", ".join(COMMANDS)
            return Refused(f"unknown command {envelope.command[:40]!a}; known are {known}")
        given = msgspec.json.decode(envelope.arguments, type=arguments)
    except msgspec.ValidationError as error:
        return Refused(f"wrong request: {error}")
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        return Refused(f"broken JSON: {error}")
    except RecursionError:
        return Refused("broken JSON: nested too deeply")
    return Command(envelope.command, msgspec.structs.asdict(given))


def render_request(command: str, arguments: Mapping[str, object]) -> bytes:
    """Return the line that asks for a command."""
    request = {"version": VERSION, "command": command, "arguments": arguments}
    return msgspec.json.encode(request) + b"\n"


def render_answer(ok: bool, fields: Mapping[str, object]) -> bytes:
    """Return the line of an answer; a failure without an `error` or `code` gets one.

    Raises:
        ValueError, TypeError: a field cannot be JSON (undecodable bytes in a path, another type).

    """
    assert fields.keys().isdisjoint({"version", "ok"}), "both belong to the protocol"
    failure = {} if ok else {"error": "no reason given", "code": FAILED}
    return msgspec.json.encode({"version": VERSION, "ok": ok, **failure, **fields}) + b"\n"


def render_refusal(refused: Refused) -> bytes:
    """Return the line that refuses."""
    return render_answer(False, {"error": refused.reason, "code": refused.code})


def parse_answer(line: bytes) -> dict[str, Any]:
    """Read an answer.

    Raises:
        ValueError: it is not one, or one of another version.

    """
    try:
        answer = msgspec.json.decode(line, type=dict[str, Any])
    except RecursionError:
        raise ValueError("nested too deeply") from None
    if answer.get("version") != VERSION or not isinstance(answer.get("ok"), bool):
        raise ValueError(f"not version {VERSION} of the control protocol")
    return answer
