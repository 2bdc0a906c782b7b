"""The entry points of the three programs: each imports its module, and starts it.

A package that is missing is named in one line, whichever module imports it.
"""

import sys
from functools import partial
from importlib import import_module

from greeterd.cli.program import run_program


def greeterd() -> int:
    """Run the daemon."""
    return _start("greeterd")


def greeterctl() -> int:
    """Run the program of the operator."""
    return _start("greeterctl")


def greeter() -> int:
    """Run the program of the client."""
    return _start("greeter")


def _start(name: str) -> int:
    module = f"greeterd.cli.{name}"
    code: int = run_program(name, partial(_import, module)) or sys.modules[module].main()
    return code


def _import(module: str) -> int:
    import_module(module)
    return 0
