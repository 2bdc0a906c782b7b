"""Renders one loop turn's greetings as JSON lines: the shape of a greeting record.

The fields' order is the file format. `timestamp` is UTC with six decimals, the turn's one instant.
A record's text holds printable characters only, and parses back to the name that was sent.
"""

from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any

import msgspec

from greeterd.system.escape import to_ascii_json

Text = str | msgspec.Raw


class Record(msgspec.Struct, gc=False):
    """One greeting; built by position, which is the fast way."""

    timestamp: datetime | str
    level: str
    event: str
    greeting: Text
    name: Text
    worker: int
    generation: int
    pid: int
    seq: int
    client: Text


_encode_lines = msgspec.json.Encoder().encode_lines


def render_turn(event: Mapping[str, Any]) -> bytes:
    """Return a line for each `(name, client)` of `event["batch"]`, numbered from `event["seq"]`.

    `event` also holds timestamp (a datetime in UTC), level, event, worker, generation and pid.
    """
    at: datetime = event["timestamp"]
    # msgspec leaves out the fraction when it is zero, once in a million turns.
    stamp = at if at.microsecond else f"{at:%Y-%m-%dT%H:%M:%S}.000000Z"
    level, kind = event["level"], event["event"]
    worker, generation, pid = event["worker"], event["generation"], event["pid"]
    batch: Iterable[tuple[str, str]] = event["batch"]
    first: int = event["seq"]
    try:
        lines = _encode_lines(
            [
                Record(
                    stamp, level, kind, "Hello, " + name, name, worker, generation, pid, seq, client
                )
                for seq, (name, client) in enumerate(batch, first)
            ]
        )
    except UnicodeEncodeError:  # a lone surrogate
        lines = b"\x7f"
    # Plain ASCII is the rule, and one look at all lines is cheaper than a look at each name.
    # JSON escapes the other controls, so DEL is the only ASCII character that can still harm.
    if lines.isascii() and b"\x7f" not in lines:
        return lines
    return _encode_lines(
        [
            Record(
                stamp,
                level,
                kind,
                _shown("Hello, " + name),
                _shown(name),
                worker,
                generation,
                pid,
                seq,
                _shown(client),
            )
            for seq, (name, client) in enumerate(batch, first)
        ]
    )


def _shown(text: str) -> Text:
    return text if text.isprintable() else msgspec.Raw(to_ascii_json(text).encode())
