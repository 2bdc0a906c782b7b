"""Addresses: parsing and normal form of a TCP port of one interface, or of a path.

Three forms, and only these: `host:port`, `[v6]:port`, `unix:/path`. A parsed address is in normal
form: two texts of one place (`[::1]:80`, `[0:0::1]:080`) are equal addresses, and
`parse_address(str(address)) == address`. A host name stays a name: `listener` resolves it.
"""

import ipaddress
import re
from dataclasses import dataclass, replace
from typing import Final, Self

UNIX_PREFIX: Final = "unix:"
MAX_PORT: Final = 65535
MAX_PATH_BYTES: Final = 107
"""unix(7): `sun_path` holds 108 bytes, the last of them NUL."""

_FORMS: Final = "write host:port, [v6]:port or unix:/path"
_LABEL: Final = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?")
_DIGITS: Final = re.compile(r"[0-9]{1,5}")
_LIKE_V4: Final = re.compile(r"[0-9.]+")


@dataclass(frozen=True, slots=True)
class Address:
    """A place to listen at: `host` and `port`, or `path` alone."""

    host: str = ""
    port: int = 0
    path: str = ""

    @property
    def is_unix(self) -> bool:
        """True for a path."""
        return bool(self.path)

    @property
    def is_v6(self) -> bool:
        """True for an IPv6 host; a host name is taken for IPv4."""
        return ":" in self.host

    def with_port(self, port: int) -> Self:
        """Return the same host at another port, such as the one that the kernel chose for 0."""
        return replace(self, port=port)

    def __str__(self) -> str:
        if self.is_unix:
            return UNIX_PREFIX + self.path
        return f"[{self.host}]:{self.port}" if self.is_v6 else f"{self.host}:{self.port}"


def parse_address(text: str) -> Address:
    """Return the address that `text` names.

    Raises:
        ValueError: `text` has none of the three forms; the message is the reason alone.
    """
    if text.startswith(UNIX_PREFIX):
        return Address(path=_path(text.removeprefix(UNIX_PREFIX)))
    host, colon, port = text.rpartition(":")
    if not colon or (host.startswith("[") and not host.endswith("]")):
        raise ValueError(f"it has no port: {_FORMS}")
    if host.startswith("["):
        return Address(host=_v6(host[1:-1]), port=_port(port))
    if ":" in host:
        raise ValueError("an IPv6 host goes in brackets: [::1]:12345")
    return Address(host=_host(host), port=_port(port))


def _port(text: str) -> int:
    if not _DIGITS.fullmatch(text) or int(text) > MAX_PORT:
        raise ValueError(f"the port must be 0 to {MAX_PORT}, not {text!r}")
    return int(text)


def _v6(text: str) -> str:
    try:
        return str(ipaddress.IPv6Address(text))
    except ipaddress.AddressValueError:
        raise ValueError(f"{text!r} is not an IPv6 address") from None


def _host(text: str) -> str:
    # glibc would read "1" as 0.0.0.1, and Python "" as every interface. Both surprise, so an IPv4
    # address must be written in full, and every interface as 0.0.0.0.
    if text in ("", "*"):
        raise ValueError("the host is missing: 0.0.0.0 or [::] is every interface")
    if _LIKE_V4.fullmatch(text):
        try:
            return str(ipaddress.IPv4Address(text))
        except ipaddress.AddressValueError:
            raise ValueError(f"{text!r} is not an IPv4 address") from None
    if not all(_LABEL.fullmatch(label) for label in text.split(".")):
        raise ValueError(f"{text!r} is not a host name")
    return text.lower()


def _path(text: str) -> str:
    if not text.startswith("/"):
        # The daemon leaves its directory, so a relative path would change its meaning.
        raise ValueError("the path of a unix socket must be absolute: unix:/run/greeterd.sock")
    if text.endswith("/"):
        raise ValueError("the path of a unix socket names a directory")
    if " " in text or not text.isprintable():
        # It would break the lists that addresses are written in, and every line that names it.
        raise ValueError("the path of a unix socket holds a space or a control character")
    size = len(text.encode())
    if size > MAX_PATH_BYTES:
        raise ValueError(
            f"the path of a unix socket has {size} bytes, the kernel takes {MAX_PATH_BYTES}"
        )
    return text
