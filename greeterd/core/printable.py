r"""Makes text safe to show: nothing that a terminal could obey, nothing that ends a line.

Unsafe is what `str.isprintable` says is: C0 and C1 controls, DEL, U+2028, bidirectional overrides,
zero-width characters, lone surrogates. JSON alone escapes only the C0 controls.
"""

import json


def to_ascii_json(value: object) -> str:
    r"""Return `value` as JSON of printable ASCII only; every other character becomes `\uNNNN`."""
    return json.dumps(value)  # its ASCII rule escapes DEL as well, unlike msgspec's and orjson's


def escape(text: str) -> str:
    r"""Return `text` on one line, unprintable characters as `\xNN`, `\uNNNN` or `\UNNNNNNNN`."""
    if text.isprintable():
        return text
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text
    )


def escape_lines(text: str) -> str:
    """Return `text` with its line feeds kept and all else escaped: for tracebacks."""
    return "\n".join(escape(line) for line in text.split("\n"))
