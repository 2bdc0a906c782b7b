"""Looks for the packages of the extra `bench`, which only measuring needs."""

from importlib.util import find_spec

from greeterd.errors import MissingPackageError


def require(*modules: str) -> None:
    """Make sure that these modules can be imported, and import none.

    Raises:
        MissingPackageError: one cannot.

    """
    for module in modules:
        if find_spec(module) is None:
            raise MissingPackageError(module)
