r"""Escapes text for terminals and logs: no control sequence and no line end is left in it.

Escaped is what `str.isprintable` refuses: C0 and C1 controls, DEL, U+2028, bidirectional overrides,
zero-width characters, lone surrogates. JSON alone escapes only the C0 controls.
"""

import json
import re

_NOT_ASCII = re.compile(r"[^ -~]")


def to_ascii_json(value: object) -> str:
    r"""Return `value` as JSON of printable ASCII only; every other character becomes `\uNNNN`."""
    return json.dumps(value)  # its ASCII rule escapes DEL as well, unlike msgspec's and orjson's


def to_ascii(encoded: bytes) -> str:
    r"""Return the same JSON in printable ASCII only, on one line; `encoded` is valid UTF-8."""
    # Characters beyond ASCII occur only inside strings, where `\uNNNN` means the same.
    return _NOT_ASCII.sub(lambda found: json.dumps(found[0])[1:-1], encoded.decode())


def escape(text: str) -> str:
    r"""Return `text` on one line, unprintable characters as `\xNN`, `\uNNNN` or `\UNNNNNNNN`."""
    if text.isprintable():
        return text
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text
    )


def escape_lines(text: str) -> str:
    """Return `text` escaped, with its line feeds kept: for tracebacks."""
    return "\n".join(escape(line) for line in text.split("\n"))
