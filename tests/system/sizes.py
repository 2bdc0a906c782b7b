"""How large the system tests are: reduced in the suite, the full number with TEST_SIZE=full."""

import os


def sized(full: int, reduced: int) -> int:
    """Return the full number if the environment asks for it, else the reduced one."""
    return full if os.environ.get("TEST_SIZE") == "full" else reduced
