"""greeterd/README.md says what the code says of packages and of a worker's life."""

import ast
import re
from pathlib import Path

from greeterd.supervisor.ids import WorkerState
from greeterd.supervisor.machine import WORKERS
from tests.documents import DESIGN, PACKAGE, sources


def about(path: Path) -> str:
    """Return the first line of a module's docstring."""
    return (ast.get_docstring(sources()[path]) or "").splitlines()[0]


def test_the_packages_are_those_of_the_code_with_what_they_say_of_themselves() -> None:
    packages = [path for path in sources() if path.name == "__init__.py" and path.parent != PACKAGE]
    modules = [path for path in sources() if path.parent == PACKAGE and path.name != "__init__.py"]
    wanted = [[f"`{path.parent.relative_to(PACKAGE)}/`", about(path)] for path in packages]
    wanted += [[f"`{path.name}`", about(path)] for path in modules]
    assert DESIGN.table("Packages") == wanted


def test_the_life_of_a_worker_is_that_of_the_supervisor() -> None:
    picture = DESIGN.block("Design", "mermaid", "stateDiagram")
    arrows = re.findall(r"^ +(\S+) --> (\w+): \S", picture, re.MULTILINE)
    assert len(arrows) == picture.count("-->")
    known = {
        ("[*]" if before is WorkerState.GONE else before.value, after.value)
        for row in WORKERS.values()
        for before, after in row.items()
        if isinstance(after, WorkerState)
    }
    assert set(arrows) == known
    assert len(arrows) == len(set(arrows))
