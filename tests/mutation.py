"""Break the daemon in many small ways, and print which of them its tests do not see.

Run by hand: python -m tests.mutation [PACKAGE or MODULE ...] [--most N] [--jobs J].  Each mutant is
one change of one module, made in a copy of the project.  The unit tests of its package run first;
where they pass, the integration tests of its package do; it is killed when one of them fails or
exceeds the time limit.  Without a name, every module but those of greeterd.bench is mutated.

Mutated code forks, kills and removes.  Tests run in a session, a PID namespace and a temporary
directory of their own, under resource limits, and all that they started ends with the namespace.
This needs util-linux, and root or user namespaces.
"""

import argparse
import ast
import compileall
import os
import py_compile
import queue
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[1]
TIERS = ("unit", "integration")
NOT_COPIED = shutil.ignore_patterns(".*", "__pycache__", "build", "dist")
SEED = 1
PATIENCE = 5.0  # times what the tests take without a mutant
START = 60.0  # seconds, added to it

CONFINE = (
    *("setpriv", "--pdeathsig", "KILL"),
    *("unshare", "--kill-child", "--fork", "--pid", "--mount-proc"),
    *(("--user", "--map-current-user", "--keep-caps") if os.geteuid() else ()),
)
RUN = """import os, resource, subprocess, sys
subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1g", "tests", os.environ["TMPDIR"]], check=True)
for kind, most in ("CPU", int(sys.argv[1])), ("AS", 4 << 30):
    number = getattr(resource, "RLIMIT_" + kind)
    resource.setrlimit(number, (most, resource.getrlimit(number)[1]))
tests = os.fork()
if not tests:
    import pytest
    sys.exit(pytest.main(sys.argv[2:]))
ended = None
while ended != tests:
    ended, status = os.wait()
os._exit(os.waitstatus_to_exitcode(status) & 255)
"""
"""The first process of the namespace: it reaps what the tests leave behind, as init does."""
PYTEST = ("-x", "-q", "-oaddopts=", "-p", "no:cacheprovider")

PAIRS: tuple[tuple[type[ast.AST], type[ast.AST]], ...] = (
    (ast.Lt, ast.LtE), (ast.Gt, ast.GtE), (ast.Eq, ast.NotEq), (ast.Is, ast.IsNot),
    (ast.In, ast.NotIn), (ast.And, ast.Or), (ast.Add, ast.Sub), (ast.Mult, ast.Div),
)  # fmt: skip
OPPOSITES = dict([*PAIRS, *((other, one) for one, other in PAIRS)])
NAMES = {"min": "max", "max": "min", "any": "all", "all": "any"}
EXACT = (ast.Is, ast.IsNot, ast.In, ast.NotIn, ast.Eq, ast.NotEq)
"""The comparisons whose opposite is their negation: one mutant of the two is enough."""
CONDITIONS = {"test", "ifs", "guard"}
NOT_CODE = {"annotation", "returns", "decorator_list"}
STATEMENTS = (ast.Expr, ast.Assign, ast.AugAssign, ast.Delete, ast.Continue, ast.Break, ast.Return)


class Mutant(NamedTuple):
    """One change."""

    module: Path
    line: int
    what: str
    source: str


def alternatives(node: ast.AST, field: str) -> Iterator[ast.AST]:
    """Yield what a node may be changed into."""
    match node:
        case ast.UnaryOp(ast.Not(), operand):
            yield operand
        case ast.Constant(bool() as value):
            yield ast.Constant(not value)
        case ast.Constant(int() | float() as value):
            yield ast.Constant(value + 1)
        case ast.Constant(str() as value):
            yield ast.Constant(value + "x")
        case ast.Name(name) if name in NAMES:
            yield ast.Name(NAMES[name])
        case ast.Expr(ast.Constant()) | ast.Return(ast.Constant()):
            pass  # a docstring; a constant that is changed itself
        case ast.stmt() if isinstance(node, STATEMENTS):
            returns = isinstance(node, ast.Return) and node.value
            yield ast.Return(ast.Constant(None)) if returns else ast.Pass()
        case _ if type(node) in OPPOSITES:
            yield OPPOSITES[type(node)]()
        case _ if field in CONDITIONS and isinstance(node, ast.expr) and not _exact(node):
            yield ast.UnaryOp(ast.Not(), node)


def _exact(node: ast.AST) -> bool:
    return isinstance(node, ast.Compare) and isinstance(node.ops[0], EXACT)


def places(tree: ast.AST) -> Iterator[tuple[ast.AST, str, Any, Any]]:
    """Yield every node with its parent, the field that it is in, and what holds it with its key."""
    for field, value in ast.iter_fields(tree):
        if field in NOT_CODE or (isinstance(tree, ast.Expr) and isinstance(value, ast.Constant)):
            continue
        holder: Any = value if isinstance(value, list) else vars(tree)
        for key in range(len(value)) if isinstance(value, list) else [field]:
            if isinstance(holder[key], ast.AST):
                yield tree, field, holder, key
                yield from places(holder[key])


def modules(name: str) -> list[Path]:
    """Return the modules below a package or module: `worker`, `worker.loop`, `greeterd/worker`."""
    path = ROOT / "greeterd" / name.removesuffix(".py").replace(".", "/").removeprefix("greeterd/")
    found = sorted(path.rglob("*.py")) if path.is_dir() else [path.with_suffix(".py")]
    if not found[0].is_file():
        raise SystemExit(f"no such package or module: {name}")
    return [one.relative_to(ROOT) for one in found]


def mutants(module: Path) -> Iterator[Mutant]:
    """Yield every mutant of a module."""
    tree = ast.parse((ROOT / module).read_text())
    for parent, field, holder, key in places(tree):
        node = holder[key]
        shown = node if isinstance(node, ast.stmt | ast.expr) else parent
        before = ast.unparse(shown)
        for other in alternatives(node, field):
            holder[key] = ast.copy_location(other, node)
            after = ast.unparse(other if shown is node else parent)
            line = getattr(shown, "lineno", 0)
            yield Mutant(module, line, f"{before} -> {after}", ast.unparse(tree))
            holder[key] = node


def tests_of(module: Path, tier: str) -> tuple[str, ...]:
    """Return a tier's tests of a module's package: quick ones first, those that name it first."""
    directory = ROOT / "tests" / tier
    package = module.parts[1]
    at_the_root = package.endswith(".py")
    found = (
        directory.glob(f"test_{module.stem}*.py")
        if at_the_root
        else (directory / package).rglob("test_*.py")
    )

    def late(test: Path) -> tuple[bool, bool, Path]:
        return "histories" in test.stem, module.stem not in test.read_text(), test

    return tuple(str(one.relative_to(ROOT)) for one in sorted(found, key=late))


class Copies:
    """Copies of the project in `directory`, one for each of `jobs`; runs tests in them."""

    def __init__(
        self, directory: Path, jobs: int, limit: float | None, also: Sequence[str]
    ) -> None:
        self._limit = limit
        self._also = tuple(also)
        self._took: dict[frozenset[str], float] = {}  # without a mutant, in seconds
        self._free: queue.Queue[Path] = queue.Queue()
        directory.chmod(0o755)  # tests run programs of it as another user
        for number in range(jobs):
            copy = directory / str(number)
            shutil.copytree(ROOT, copy, ignore=NOT_COPIED)
            # A mutant may have the size and the second of what stood there before.
            checked = py_compile.PycInvalidationMode.CHECKED_HASH
            compileall.compile_dir(copy, quiet=1, invalidation_mode=checked)
            (copy / "tmp").mkdir()
            self._free.put(copy)

    def tiers(self, module: Path) -> list[tuple[str, ...]]:
        """Return the tests to run on a mutant of a module, tier by tier."""
        every = [*(tests_of(module, tier) for tier in TIERS), self._also]
        return [tests for tests in every if tests]

    def measure(self, module: Path) -> None:
        """Run the tests of a module without a mutant, for the time that they take."""
        for tests in self.tiers(module):
            if frozenset(tests) in self._took:
                continue
            copy = self._free.get()
            began = time.monotonic()
            if not self._passes(copy, tests, self._limit or 600.0):
                raise SystemExit(f"these fail without any mutant: {' '.join(tests)}")
            self._took[frozenset(tests)] = time.monotonic() - began
            self._free.put(copy)

    def survives(self, mutant: Mutant) -> bool:
        """Return whether a mutant passes all tests of its module; print it then."""
        copy = self._free.get()
        path = copy / mutant.module
        path.write_text(mutant.source)
        try:
            for tests in self.tiers(mutant.module):
                limit = self._limit or START + PATIENCE * self._took[frozenset(tests)]
                if not self._passes(copy, tests, limit):
                    return False
        finally:
            shutil.copy(ROOT / mutant.module, path)
            self._free.put(copy)
        print(f"survived: {mutant.module}:{mutant.line}: {mutant.what}", flush=True)
        return True

    def _passes(self, copy: Path, tests: Sequence[str], limit: float) -> bool:
        """Return whether tests pass within `limit` seconds; all that they started ends."""
        command = [*CONFINE, sys.executable, "-c", RUN, str(int(limit)), *PYTEST, *tests]
        environment = {
            **os.environ,
            "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",  # none of them is needed, and each takes time
            "PYTHONPATH": str(copy),
            "PYTHONDONTWRITEBYTECODE": "1",
            "TMPDIR": str(copy / "tmp"),
        }
        try:
            done = subprocess.run(
                command,
                cwd=copy,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                timeout=limit,
                check=False,
                start_new_session=True,
            )
        except subprocess.TimeoutExpired:
            return False
        return done.returncode == 0


def choose(names: Sequence[str], most: int) -> list[Mutant]:
    """Return the mutants of these modules, or a sample of them that is the same each time."""
    found = [path for name in names or [""] for path in modules(name)]
    if not names:
        found = [path for path in found if path.parts[1] != "bench"]
    chosen = [mutant for path in dict.fromkeys(found) for mutant in mutants(path)]
    if len(chosen) > most:
        print(f"{most} of {len(chosen)} mutants, sampled with seed {SEED}")
        chosen = random.Random(SEED).sample(chosen, most)
    return chosen


def report(chosen: Sequence[Mutant], survived: Sequence[bool], took: float) -> None:
    """Print how many were killed: of each module, and of all."""
    every = Counter(mutant.module for mutant in chosen)
    alive = Counter(one.module for one, lives in zip(chosen, survived, strict=True) if lives)
    for module, count in sorted(every.items()):
        killed = count - alive[module]
        print(f"{module}: killed {killed} of {count}: {killed / count:.1%}")
    killed = len(chosen) - alive.total()
    print(f"killed {killed} of {len(chosen)}: {killed / len(chosen):.1%}, in {took:.0f} s")


def main() -> None:
    """Try the mutants; print those that survive, and how many were killed."""
    parser = argparse.ArgumentParser(prog="python -m tests.mutation", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help="packages or modules of greeterd")
    parser.add_argument("--most", type=int, default=400, help="mutants at most (default: 400)")
    parser.add_argument("--jobs", type=int, default=2, help="copies at a time (default: 2)")
    parser.add_argument(
        "--limit", type=float, help="seconds for a tier's tests (default: measured)"
    )
    parser.add_argument("--also", nargs="+", default=[], help="tests for what survives the others")
    given = parser.parse_args()
    chosen = choose(given.names, given.most)
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as directory:
        copies = Copies(Path(directory), given.jobs, given.limit, given.also)
        for module in {mutant.module for mutant in chosen}:
            copies.measure(module)
        pool = ThreadPoolExecutor(given.jobs)
        try:
            survived = list(pool.map(copies.survives, chosen))
        finally:
            pool.shutdown(cancel_futures=True)
    report(chosen, survived, time.monotonic() - began)


if __name__ == "__main__":
    main()
