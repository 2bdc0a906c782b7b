"""Texts become addresses, and addresses become the same texts."""

import re
import string
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from greeterd.sockets.address import MAX_PATH_BYTES, Address, parse_address

LABELS = st.from_regex(r"[a-z]([a-z0-9-]{0,10}[a-z0-9])?", fullmatch=True)
PORTS = st.integers(0, 65535)
PATHS = st.text(st.characters(categories=["L", "N", "P", "S"]), max_size=25).map(
    lambda text: "/" + text.rstrip("/") + "x"
)

ADDRESSES = st.one_of(
    st.builds(Address, st.lists(LABELS, min_size=1, max_size=3).map(".".join), PORTS),
    st.builds(Address, st.ip_addresses().map(str), PORTS),
    st.builds(Address, path=PATHS),
)


@given(ADDRESSES)
def test_an_address_and_its_text_name_each_other(address: Address) -> None:
    assert parse_address(str(address)) == address


@given(st.text(string.printable, max_size=30))
def test_any_text_is_refused_by_a_value_error_or_has_a_normal_form(text: str) -> None:
    with suppress(ValueError):
        address = parse_address(text)
        assert parse_address(str(address)) == address


@pytest.mark.parametrize(
    ("text", "address", "normal"),
    [
        ("127.0.0.1:80", Address("127.0.0.1", 80), "127.0.0.1:80"),
        ("0.0.0.0:0", Address("0.0.0.0", 0), "0.0.0.0:0"),
        ("localhost:080", Address("localhost", 80), "localhost:80"),
        ("LocalHost:80", Address("localhost", 80), "localhost:80"),
        ("[::1]:80", Address("::1", 80), "[::1]:80"),
        ("[0:0:0::1]:80", Address("::1", 80), "[::1]:80"),
        ("[::]:65535", Address("::", 65535), "[::]:65535"),
        ("[fe80::1%eth0]:80", Address("fe80::1%eth0", 80), "[fe80::1%eth0]:80"),
        ("unix:/run/a.sock", Address(path="/run/a.sock"), "unix:/run/a.sock"),
        ("unix:/run/a:1", Address(path="/run/a:1"), "unix:/run/a:1"),
    ],
)
def test_the_three_forms_are_understood(text: str, address: Address, normal: str) -> None:
    assert parse_address(text) == address
    assert str(address) == normal


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "no port"),
        ("localhost", "no port"),
        ("[::1]", "no port"),
        ("80", "no port"),
        (":80", "the host is missing"),
        ("*:80", "the host is missing"),
        ("localhost:", "the port must be"),
        ("localhost:http", "the port must be"),
        ("localhost:-1", "the port must be"),
        ("localhost:65536", "the port must be"),
        ("localhost:" + "9" * 5000, "the port must be"),
        ("localhost:\N{ARABIC-INDIC DIGIT ONE}", "the port must be"),
        ("::1:80", "in brackets"),
        ("[127.0.0.1]:80", "not an IPv6 address"),
        ("[]:80", "not an IPv6 address"),
        ("127.0.0:80", "not an IPv4 address"),
        ("127.0.0.256:80", "not an IPv4 address"),
        ("1:80", "not an IPv4 address"),
        ("-a:80", "not a host name"),
        ("a..b:80", "not a host name"),
        ("a b:80", "not a host name"),
        ("http://a:80", "in brackets"),
        ("unix:", "must be absolute"),
        ("unix:a.sock", "must be absolute"),
        ("unix:@a", "must be absolute"),
        ("unix:/run/", "names a directory"),
        ("unix:/a b", "a space or a control character"),
        ("unix:/a\0b", "a space or a control character"),
        ("unix:/a\nb", "a space or a control character"),
        ("unix:/a\udcff", "a space or a control character"),
        ("unix:/" + "é" * 54, "has 109 bytes"),
    ],
)
def test_anything_else_is_refused_with_its_reason(text: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        parse_address(text)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("a:65536", "the port must be 0 to 65535, not '65536'"),
        ("a", "it has no port: write host:port, [v6]:port or unix:/path"),
        ("a b:1", "'a b' is not a host name"),
        ("1:1", "'1' is not an IPv4 address"),
        ("[1]:1", "'1' is not an IPv6 address"),
        (":1", "the host is missing: 0.0.0.0 or [::] is every interface"),
        ("::1", "an IPv6 host goes in brackets: [::1]:12345"),
        ("unix:/" + "a" * 107, "the path of a unix socket has 108 bytes, the kernel takes 107"),
    ],
)
def test_a_reason_is_a_whole_message(text: str, reason: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(reason)}$"):
        parse_address(text)


def test_a_path_has_neither_host_nor_port() -> None:
    address = parse_address("unix:/a")
    assert (address.host, address.port, address.path) == ("", 0, "/a")
    assert parse_address("a:1").path == ""


def test_the_longest_path_that_the_kernel_takes_is_an_address() -> None:
    path = "/" + "a" * (MAX_PATH_BYTES - 1)
    assert parse_address("unix:" + path).path == path


@pytest.mark.parametrize(
    ("text", "is_unix", "is_v6"),
    [("127.0.0.1:1", False, False), ("[::1]:1", False, True), ("unix:/a:1", True, False)],
)
def test_an_address_knows_its_family(text: str, is_unix: bool, is_v6: bool) -> None:
    address = parse_address(text)
    assert (address.is_unix, address.is_v6) == (is_unix, is_v6)


def test_the_port_that_the_kernel_chose_takes_the_place_of_port_0() -> None:
    assert str(parse_address("[::1]:0").with_port(4711)) == "[::1]:4711"
