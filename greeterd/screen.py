"""Renders tables and colours with rich, for a terminal or a pipe; control characters are escaped.

Text from outside is shown and never interpreted: what is not printable is escaped where rich makes
segments of it, before rich adds its own colours and cuts to a width. Markup ("[red]") is text.
Callers still escape what must stay on one line: a newline begins another.
"""

from collections.abc import Iterable
from typing import TextIO

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.text import Text

from greeterd.system.escape import escape_lines


class Screen(Console):
    """A console for `file`; width, colours and encoding are the file's."""

    def __init__(self, file: TextIO | None = None, *, stderr: bool = False) -> None:
        super().__init__(file=file, stderr=stderr, highlight=False, markup=False, emoji=False)

    def render(
        self, renderable: RenderableType, options: ConsoleOptions | None = None
    ) -> Iterable[Segment]:
        """Yield the segments of a renderable; rich calls this for each cell, too."""
        for text, style, control in super().render(renderable, options):
            yield Segment(text if control else escape_lines(text), style, control)

    def text_of(self, *renderables: RenderableType) -> str:
        """Return the text that shows these, one below the other; a Text is never wrapped."""
        with self.capture() as capture:
            for one in renderables:
                self.print(one, soft_wrap=isinstance(one, Text))
        return "".join(f"{line.rstrip()}\n" for line in capture.get().splitlines())


def duration(seconds: float) -> str:
    """Return at most two units, six characters below a hundred days: 7s, 12m05s, 3h20m, 2d04h."""
    minutes, second = divmod(max(0, int(seconds)), 60)
    hours, minute = divmod(minutes, 60)
    days, hour = divmod(hours, 24)
    if days:
        return f"{days}d{hour:02}h"
    if hours:
        return f"{hour}h{minute:02}m"
    if minutes:
        return f"{minute}m{second:02}s"
    return f"{second}s"
