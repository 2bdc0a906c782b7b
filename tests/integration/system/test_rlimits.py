"""Limits in real processes: open files, core dumps, the CPU."""

import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from greeterd.system.cpus import unusable

ROOT = Path(__file__).parents[3]
CAP_SYS_RESOURCE = 24  # linux/capability.h


def may_raise_limits() -> bool:
    lines = Path("/proc/self/status").read_text().splitlines()
    (mask,) = (line.split()[1] for line in lines if line.startswith("CapEff:"))
    return bool(int(mask, 16) >> CAP_SYS_RESOURCE & 1)


def python(code: str, *, files: tuple[int, int] = (100, 200)) -> str:
    """Run code that has all of greeterd.system.rlimits, within these limits of open files."""
    head = (
        "import os, resource\n"
        "from greeterd.errors import ConfigError\n"
        "from greeterd.system.rlimits import *\n"
        f"resource.setrlimit(resource.RLIMIT_NOFILE, {files})\n"
        "def files(): return resource.getrlimit(resource.RLIMIT_NOFILE)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", head + code],
        cwd=ROOT,
        text=True,
        capture_output=True,
        check=False,
        timeout=30,
    )
    assert done.stderr == ""
    return done.stdout


def test_auto_allows_as_many_files_as_the_hard_limit() -> None:
    assert python("limit_files('auto'); print(files())") == "(200, 200)\n"


def test_a_number_of_files_is_the_soft_limit_and_may_be_raised_again() -> None:
    code = "limit_files(64); print(files()); limit_files(150); print(files())"
    assert python(code) == "(64, 200)\n(150, 200)\n"


@pytest.mark.skipif(not may_raise_limits(), reason="needs CAP_SYS_RESOURCE")
def test_the_hard_limit_of_files_is_raised_where_that_is_permitted() -> None:
    code = "allow_files(300); print(files()); limit_files(300); print(files())"
    assert python(code) == "(100, 300)\n(300, 300)\n"


WITHOUT_CAPABILITY = """
if os.geteuid() == 0:
    os.setresuid(54321, 54321, 54321)
for refused in (allow_files, limit_files):
    try:
        refused(300)
    except ConfigError as error:
        print(str(error).partition(",")[0], files())
"""


def test_more_files_than_the_hard_limit_are_refused_where_it_may_not_be_raised() -> None:
    refusal = "max_files: 300 is above the hard limit of 200 (100, 200)\n"
    assert python(WITHOUT_CAPABILITY) == refusal * 2


def test_more_files_than_the_kernel_can_have_are_refused() -> None:
    code = "try:\n limit_files(2**31 - 1)\nexcept ConfigError as error: print(error)"
    assert "fs.nr_open must allow it" in python(code)


def test_core_dumps_are_off_until_they_are_allowed_again() -> None:
    hard = resource.getrlimit(resource.RLIMIT_CORE)[1]
    code = (
        "for allowed in (False, True):\n"
        " limit_core_dumps(allowed=allowed)\n"
        " print(resource.getrlimit(resource.RLIMIT_CORE))"
    )
    assert python(code) == f"(0, {hard})\n({hard}, {hard})\n"


def test_a_pinned_process_runs_on_that_cpu_alone() -> None:
    cpu = max(os.sched_getaffinity(0))
    assert python(f"pin({cpu}); print(os.sched_getaffinity(0))") == f"{{{cpu}}}\n"


def test_a_cpu_that_is_not_there_is_named() -> None:
    code = "try:\n pin(8191)\nexcept ConfigError as error: print(error)"
    assert python(code).startswith("cpu_affinity: cannot run on CPU 8191 (usable: ")


def test_cpus_that_the_process_may_not_run_on_are_found() -> None:
    usable = os.sched_getaffinity(0)
    assert unusable(usable) == []
    assert unusable({8191, 8190, *usable}) == [8190, 8191]
