"""Breaks the supervisor in many small ways, and tells which of them its tests do not see.

Run by hand: python -m tests.mutation [at most so many mutants].  Each mutant is one change of one
module, made in a copy of the project; it is killed when the supervisor's tests fail or hang.
"""

import ast
import os
import queue
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[1]
MODULES = (
    "observe", "operations", "records", "recycling", "rescue", "shutdown", "slots",
    "state", "supervisor",
)  # fmt: skip
JOBS = 2
LIMIT = 400
TIMEOUT = 300.0
RUN = """import resource, sys, pytest
resource.setrlimit(resource.RLIMIT_CPU, (60, 60))
resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30))
sys.exit(pytest.main(sys.argv[1:]))
"""
"""What runs the tests: a mutant may loop, and ask for more and more."""
SEED = 1
QUICKLY = {**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}

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

    module: str
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


def mutants(module: str) -> Iterator[Mutant]:
    """Yield every mutant of a module."""
    tree = ast.parse((ROOT / f"greeterd/supervisor/{module}.py").read_text())
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


def passes(copy: Path) -> bool:
    """Tell whether the supervisor's tests pass in this copy of the project."""
    found = map(str, copy.glob("tests/unit/supervisor/test_*.py"))
    tests = sorted(found, key=lambda path: "histories" in path)  # the quick ones first
    plain = ("-x", "-q", "-oaddopts=", "-p", "no:cacheprovider")
    command = [sys.executable, "-B", "-c", RUN, *plain, *tests]
    try:
        done = subprocess.run(
            command, cwd=copy, env=QUICKLY, capture_output=True, timeout=TIMEOUT, check=False
        )
    except subprocess.TimeoutExpired:
        return False
    return done.returncode == 0


def count_survivors(chosen: list[Mutant], directory: Path) -> int:
    """Print and count the mutants that the tests let pass, in copies of the project in here."""
    copies: queue.Queue[Path] = queue.Queue()
    for number in range(JOBS):
        copy = directory / str(number)
        for name in ("greeterd", "tests"):
            shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("*.pyc"))
        shutil.copy(ROOT / "pyproject.toml", copy)
        assert passes(copy), "the tests fail without any mutant"
        copies.put(copy)

    def survives(mutant: Mutant) -> bool:
        copy = copies.get()
        path = copy / f"greeterd/supervisor/{mutant.module}.py"
        original = path.read_text()
        path.write_text(mutant.source)
        try:
            lives = passes(copy)
            if lives:
                print(f"survived: {mutant.module}.py:{mutant.line}: {mutant.what}", flush=True)
            return lives
        finally:
            path.write_text(original)
            copies.put(copy)

    with ThreadPoolExecutor(JOBS) as pool:
        return sum(pool.map(survives, chosen))


def main() -> None:
    """Try the mutants, and print those that survive."""
    limit = int(sys.argv[1]) if len(sys.argv) > 1 else LIMIT
    chosen = [mutant for module in MODULES for mutant in mutants(module)]
    if len(chosen) > limit:
        print(f"{limit} of {len(chosen)} mutants, sampled with seed {SEED}")
        chosen = random.Random(SEED).sample(chosen, limit)
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as directory:
        survivors = count_survivors(chosen, Path(directory))
    killed = len(chosen) - survivors
    took = time.monotonic() - began
    print(f"killed {killed} of {len(chosen)}: {killed / len(chosen):.1%}, in {took:.0f} s")


if __name__ == "__main__":
    main()
