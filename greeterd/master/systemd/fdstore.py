"""Names what the service manager keeps for us while no process of ours lives, and reads the names.

A name tells all that the descriptor itself does not: the entry of `bind` that it was opened for
(port 0 and host names are resolved only once), the slot and the index of a worker's own listener,
and which file a unix socket made.  It is an FDNAME of systemd: printable ASCII, no colon, at most
255 characters.  Whatever begins with PREFIX is ours, also when this version cannot read the rest.
"""

import hashlib
import re
from dataclasses import dataclass
from typing import Final
from urllib.parse import quote

PREFIX: Final = "escrow/"
MAX_LABEL: Final = 150

_FORM: Final = re.compile(
    PREFIX + r"(?:(?P<guard>guard)|shared(?:-(?P<device>\d+)-(?P<inode>\d+))?"
    r"|slot-(?P<slot>\d+)-index-(?P<index>\d+))/(?P<label>[^/]+)",
    re.ASCII,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Stored:
    """What a stored descriptor is: a guard, a slot's listener, or else a listener of all slots."""

    label: str
    """Stands for the entry of `bind`: see label_of."""
    guard: bool = False
    slot: int | None = None
    index: int = 0
    """The slot's place in the order of listen()."""
    file: tuple[int, int] | None = None
    """Device and inode of the file that a unix socket was bound to."""

    @property
    def name(self) -> str:
        """The FDNAME."""
        kind = "guard" if self.guard else "shared"
        if self.slot is not None:
            kind = f"slot-{self.slot}-index-{self.index}"
        elif self.file is not None:
            kind = "shared-{}-{}".format(*self.file)
        return f"{PREFIX}{kind}/{self.label}"


def label_of(bind: str) -> str:
    """Return what stands for an entry of `bind` in a name: the entry itself where that fits."""
    label = quote(bind, safe="[]", errors="surrogateescape")
    if len(label) <= MAX_LABEL:
        return label
    return "sha256-" + hashlib.sha256(bind.encode("utf-8", "surrogateescape")).hexdigest()


def parse_name(name: str) -> Stored | None:
    """Return what the name tells; None when it is not one of these."""
    match = _FORM.fullmatch(name)
    if match is None:
        return None
    slot, device = match["slot"], match["device"]
    return Stored(
        label=match["label"],
        guard=match["guard"] is not None,
        slot=None if slot is None else int(slot),
        index=int(match["index"] or 0),
        file=None if device is None else (int(device), int(match["inode"])),
    )
