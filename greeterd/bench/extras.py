"""Looks for the packages of the extra `bench`, which only measuring needs."""

from importlib.util import find_spec
from typing import ClassVar, Final

from greeterd.errors import GreeterdError

_PACKAGES: Final = {"hdrh": "hdrhistogram"}
"""Of modules that are not called as their package."""


class MissingPackageError(GreeterdError):
    """A package of the extra is not installed (EX_UNAVAILABLE)."""

    exit_code: ClassVar[int] = 69


def require(*modules: str) -> None:
    """Make sure that these modules can be imported, and import none.

    Raises:
        MissingPackageError: one cannot.

    """
    for module in modules:
        if find_spec(module) is None:
            name = _PACKAGES.get(module, module)
            raise MissingPackageError(f"{name} is not installed: pip install 'greeterd[bench]'")
