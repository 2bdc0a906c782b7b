"""The names of our descriptors in the service manager's store, which keeps them over a restart.

A name holds what the descriptor itself does not show: the entry of `bind` that it was opened for
(port 0 and host names are resolved only once), the slot and the index of a worker's own listener,
and the file of a unix socket.  It is an FDNAME of systemd: printable ASCII, no colon, at most 255
characters.  Every name with PREFIX is ours, also when this version cannot read the rest of it.
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
    """What a stored descriptor is: a guard, a slot's listener, or else a shared listener."""

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
    """Return an entry of `bind` as part of a name: quoted, or its hash when that is too long."""
    label = quote(bind, safe="[]", errors="surrogateescape")
    if len(label) <= MAX_LABEL:
        return label
    return "sha256-" + hashlib.sha256(bind.encode("utf-8", "surrogateescape")).hexdigest()


def parse_name(name: str) -> Stored | None:
    """Return what a name says; None when it has another form."""
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
