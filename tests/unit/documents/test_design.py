"""greeterd/README.md says what the code says of packages and of a worker's life."""

import ast
import re
from pathlib import Path

from greeterd.master.descriptors import needed
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


def test_the_descriptors_are_as_many_as_the_master_counts() -> None:
    points = DESIGN.section("Limits").split("\n- ")
    (said,) = (one for one in points if one.startswith("**Descriptors:"))
    alone = needed("inherit", workers=0, addresses=1)
    inherit = needed("inherit", workers=1, addresses=1) - alone
    dispatcher = needed("handoff", workers=0, addresses=1) - alone
    handoff = needed("handoff", workers=1, addresses=1) - alone - dispatcher
    reuseport = needed("reuseport", workers=1, addresses=1) - alone - 1
    half = inherit // 2
    assert [int(one) for one in re.findall(r"\d+", said)] == [
        *(alone, inherit, half, half, handoff, reuseport, dispatcher)
    ]
