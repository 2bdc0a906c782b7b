"""greeterctl without waiting for it, and its answer later."""

import contextlib
import subprocess
from collections.abc import Callable, Iterator

from tests.system.harness import Daemon, clean_environment, program

Ask = Callable[..., subprocess.Popen[str]]


@contextlib.contextmanager
def asking() -> Iterator[Ask]:
    """Give what starts greeterctl on a daemon; those that still run are ended."""
    with contextlib.ExitStack() as stack:

        def ask(server: Daemon, *arguments: str) -> subprocess.Popen[str]:
            started = subprocess.Popen(
                [program("greeterctl"), "--run-dir", str(server.run_dir), *arguments],
                env=clean_environment({}),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            stack.enter_context(started)
            stack.callback(started.kill)
            return started

        yield ask


def answer(asked: subprocess.Popen[str]) -> tuple[int, str]:
    """Wait for greeterctl; return its exit code and all that it has said."""
    out, err = asked.communicate(timeout=60)
    return asked.returncode, out + err
