"""The source itself keeps the design: imports point down, and a few calls have one home.

Read with ast, so nothing is run, and an import inside a function counts as well.
"""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[2] / "greeterd"

FACILITIES = "facilities"
LAYERS: tuple[frozenset[str], ...] = (
    frozenset({"", "errors"}),  # "" is the package itself: its version
    frozenset({"core"}),
    frozenset({"files", "socketfiles", "strictmodes", "signals"}),
    frozenset({"cpus", "kinds", "linefile", "rights"}),  # parts of one module above each
    frozenset({"config"}),
    frozenset({"settings"}),
    frozenset({"inheritance", "limits"}),  # what a process begins with
    frozenset({FACILITIES}),  # every module that is not named here
    frozenset({"inspection"}),
    frozenset({"activation", "escrow", "handshakes", "intake", "manager", "nursery", "seat"}),
    frozenset({"generations", "masterlog", "reception"}),
    frozenset({"legacy"}),
    frozenset({"mending"}),
    frozenset({"crew", "dispatcher", "service", "upgrading"}),  # parts of master and worker
    frozenset({"leaving", "survey"}),
    frozenset({"workloop"}),
    frozenset({"worker"}),
    frozenset({"forking", "names", "orders", "trial"}),
    frozenset({"performing"}),
    frozenset({"master"}),
    frozenset({"start"}),
    frozenset({"bench"}),
    frozenset({"cli"}),
    frozenset({"__main__"}),
)
"""Lowest first. A module may import from the layers below its own, and from its own package."""

WORLD = frozenset({
    "asyncio", "fcntl", "mmap", "multiprocessing", "os", "select", "selectors", "signal", "socket",
    "structlog", "subprocess", "threading", "time",
})  # fmt: skip
"""What core may not know: processes, sockets, clocks and logs."""

SERVERS = frozenset({
    "crew", "escrow", "forking", "intake", "leaving", "listener", "master", "orders", "performing",
    "scoreboard", "seat", "service", "start", "upgrading", "worker", "workloop",
})  # fmt: skip
"""What bench may not know: it meets a server as a user does, by process, socket and log."""

HOMES = {
    ("os", "fork"): {
        "greeterd.bench.load_seed",
        "greeterd.system.daemonize",
        "greeterd.master.children",
    },
    ("os", "forkpty"): set[str](),
    ("signal", "signal"): {"greeterd.system.signals"},
}
"""The only modules that may use a name of the standard library."""


def name_of(path: Path) -> str:
    """Return the dotted name of a module of the package."""
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


SOURCES = {name_of(path): path.read_text() for path in sorted(PACKAGE.rglob("*.py"))}


def imports(source: str, *, module: str, is_package: bool = False) -> Iterator[str]:
    """Yield every dotted name that a source imports: modules, and names out of modules."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = module.split(".")[: len(module.split(".")) - node.level + is_package]
                base = ".".join([*parents, *filter(None, [base])])
            yield from (f"{base}.{alias.name}" for alias in node.names)


def part(name: str) -> str:
    """Return the module or package right below greeterd that a dotted name lies in."""
    below = name.split(".")[1:2]
    return below[0] if below and is_module(f"greeterd.{below[0]}") else ""


def is_module(name: str) -> bool:
    """Tell a module from a name in one, such as greeterd.__version__."""
    path = PACKAGE.parent.joinpath(*name.split("."))
    return path.is_dir() or path.with_suffix(".py").exists()


def layer(name: str) -> int:
    """Return how high a part of the package stands."""
    found = [height for height, names in enumerate(LAYERS) if name in names]
    return found[0] if found else LAYERS.index(frozenset({FACILITIES}))


def breaches(module: str, source: str, *, is_package: bool = False) -> list[str]:
    """Return in words what a source imports against the rules."""
    own = part(module)
    found = []
    for name in imports(source, module=module, is_package=is_package):
        top = name.split(".", maxsplit=1)[0]
        if top != "greeterd":
            if own == "core" and top in WORLD:
                found.append(f"{module} imports {top}, and core is pure")
            continue
        other = part(name)
        if own == "bench" and other in SERVERS:
            found.append(f"{module} imports {other}, which only a server knows")
        elif other != own and layer(other) >= layer(own):
            found.append(f"{module} imports {other}, which is not below it")
    return found


def uses(source: str) -> set[tuple[str, str]]:
    """Return the names in HOMES that a source uses: by attribute, or imported from the module."""
    found: set[tuple[str | None, str]] = set()
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Attribute(value=ast.Name(id=base), attr=name):
                found.add((base, name))
            case ast.ImportFrom(module=base, names=aliases):
                found |= {(base, alias.name) for alias in aliases}
            case ast.Import(names=aliases):
                # Under another name its use could not be seen, so that counts as one.
                renamed = {alias.name for alias in aliases if alias.asname}
                found |= {key for key in HOMES if key[0] in renamed}
            case _:
                pass
    return {key for key in HOMES if key in found}


@pytest.mark.parametrize("module", SOURCES)
def test_imports_point_down(module: str) -> None:
    is_package = PACKAGE.parent.joinpath(*module.split(".")).is_dir()
    assert breaches(module, SOURCES[module], is_package=is_package) == []


@pytest.mark.parametrize("module", SOURCES)
def test_fork_and_signal_handlers_have_one_home(module: str) -> None:
    assert [key for key in uses(SOURCES[module]) if module not in HOMES[key]] == []


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("greeterd.supervisor.supervisor", "import os"),
        ("greeterd.supervisor.supervisor", "from time import monotonic"),
        ("greeterd.supervisor.supervisor", "def f():\n import socket.x"),
        ("greeterd.supervisor.supervisor", "from greeterd.system import daemon_log as logs"),
        ("greeterd.supervisor.supervisor", "from greeterd.config.schema import Config"),
        ("greeterd.supervisor.supervisor", "from ..config import Config"),
        ("greeterd.errors", "from greeterd.supervisor import protocol"),
        ("greeterd.config.schema", "import greeterd.system.daemon_log"),
        ("greeterd.system.daemon_log", "from greeterd.sockets.listener import open_member"),
        ("greeterd.system.daemon_log", "from . import listener"),
        ("greeterd.worker.main", "from greeterd.cli import daemon"),
        ("greeterd.worker.main", "def f():\n from greeterd.cli import daemon"),
        ("greeterd.bench.load", "from greeterd.sockets.listener import open_member"),
        ("greeterd.cli.greeter", "from greeterd.__main__ import main"),
    ],
)
def test_a_breach_of_the_layers_is_seen(module: str, source: str) -> None:
    assert breaches(module, source)


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("greeterd.supervisor.supervisor", "from greeterd.protocol import classify"),
        ("greeterd.supervisor.supervisor", "from .protocol import classify"),
        ("greeterd.supervisor.supervisor", "from greeterd.errors import GreeterdError"),
        (
            "greeterd.system.daemon_log",
            "import os, time\nfrom greeterd.config.schema import Config",
        ),
        (
            "greeterd.cli.greeterd",
            "from greeterd import __version__\nfrom greeterd.cli import client",
        ),
    ],
)
def test_what_points_down_is_let_through(module: str, source: str) -> None:
    assert breaches(module, source) == []


@pytest.mark.parametrize(
    "source",
    ["import os\nos.fork()", "from os import fork", "import os as o\no.fork()"],
)
def test_a_fork_is_seen(source: str) -> None:
    assert ("os", "fork") in uses(source)
