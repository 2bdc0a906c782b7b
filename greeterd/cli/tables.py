"""Shows a Status as text: the heading, a table of slots, what is out of the ordinary.

Nothing is cut off.  On a terminal the notes stand in the table where they fit, else under it; in a
pipe, where no width is known, lines are as long as they need to be and have no colours.
"""

from typing import Final, TextIO

from rich.table import Table
from rich.text import Text

from greeterd.control.status import BACK_OFF, COLUMNS, Status, footing, heading, table_rows
from greeterd.screen import Screen
from greeterd.system.escape import escape

_STATE_STYLES: Final = {
    "ready": "green",
    "starting": "yellow",
    "draining": "yellow",
    BACK_OFF: "red",
}
_LEFT: Final = frozenset({"state", "note"})
_UNLIMITED: Final = 100_000
_STATE: Final = COLUMNS.index("state")


def render_status(status: Status, file: TextIO) -> str:
    """Return the text that shows a status on `file`, which is asked for its width and colours."""
    console = Screen(file)
    rows = [tuple(escape(cell) for cell in row) for row in table_rows(status)]
    table = _table(rows, notes=True)
    fits = not console.is_terminal or _width(console, table) <= console.width
    if not fits:
        table = _table(rows, notes=False)
    console.width = max(console.width, _width(console, table))
    lines = [escape(line) for line in heading(status)]
    after = [escape(line) for line in footing(status)]
    if not fits:
        after = [f"slot {slot}: {note}" for slot, *_, note in rows if note] + after
    return console.text_of(*map(Text, lines), Text(), table, *map(Text, after))


def _table(rows: list[tuple[str, ...]], *, notes: bool) -> Table:
    shown = COLUMNS if notes else COLUMNS[:-1]
    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False, header_style="bold")
    for name in shown:
        table.add_column(name, justify="left" if name in _LEFT else "right", no_wrap=True)
    for row in rows:
        style = _STATE_STYLES.get(row[_STATE], "")
        cells = [
            Text(cell, style if index == _STATE else "")
            for index, cell in enumerate(row[: len(shown)])
        ]
        table.add_row(*cells)
    return table


def _width(console: Screen, table: Table) -> int:
    return console.measure(table, options=console.options.update(max_width=_UNLIMITED)).maximum
