"""The package that users get: what is in it, and that it installs and runs.

The wheel is built from the sdist, as an installer from source does it. Installing needs the package
index; where it cannot be reached those tests are skipped.
"""

import subprocess
import sys
import tarfile
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest

from greeterd import __version__

ROOT = Path(__file__).resolve().parents[2]

# Imports all that is installed, so that a missing dependency shows.
IMPORT_ALL = """
import importlib, pkgutil, greeterd
for module in pkgutil.walk_packages(greeterd.__path__, "greeterd."):
    if not module.name.endswith("__main__"):
        importlib.import_module(module.name)
"""


def run(*command: str | Path) -> str:
    """Run a command to its end; AssertionError with its output if it fails."""
    done = subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
    return done.stdout


def tracked(*paths: str) -> list[str]:
    """Return the files of the checkout that git knows; skip where it is none (an sdist)."""
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    return run("git", "-C", ROOT, "ls-files", "--", *paths).splitlines()


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a directory with an sdist, and the wheel built from it."""
    directory = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", directory, ROOT)
    return directory


@pytest.fixture(scope="module")
def wheel_names(dist: Path) -> list[str]:
    """Return the files in the wheel."""
    (wheel,) = dist.glob("*.whl")
    with zipfile.ZipFile(wheel) as file:
        return file.namelist()


@pytest.fixture(scope="module")
def sdist_names(dist: Path) -> list[str]:
    """Return the files in the sdist, without its own directory."""
    (sdist,) = dist.glob("*.tar.gz")
    with tarfile.open(sdist) as file:
        return [name.partition("/")[2] for name in file.getnames()]


@pytest.fixture(scope="module")
def installed(dist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the programs' directory of a new environment with the wheel and what it asks for."""
    directory = tmp_path_factory.mktemp("installed")
    venv.create(directory, with_pip=True)
    pip = directory / "bin" / "pip"
    (wheel,) = dist.glob("*.whl")
    command = [str(pip), "install", "--retries=2", "--timeout=20", str(wheel)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    broken = [line for line in done.stderr.splitlines() if "connection broken" in line]
    if done.returncode != 0 and broken:
        pytest.skip(f"the package index cannot be reached: {broken[-1]}")
    assert done.returncode == 0, done.stderr
    return pip.parent


def test_the_wheel_holds_the_package_and_nothing_else(wheel_names: list[str]) -> None:
    tops = {name.split("/")[0] for name in wheel_names}
    assert tops == {"greeterd", f"greeterd-{__version__}.dist-info"}


def test_the_wheel_says_that_it_is_typed(wheel_names: list[str]) -> None:
    assert "greeterd/py.typed" in wheel_names


def test_the_wheel_holds_the_data_that_the_package_reads(wheel_names: list[str]) -> None:
    data = [name for name in tracked("greeterd") if not name.endswith((".py", ".md"))]
    assert len(data) > 1
    assert [name for name in wheel_names if name.endswith(".md")] == []
    assert [name for name in data if name not in wheel_names] == []


def test_the_sdist_holds_all_that_is_needed_to_test_it(sdist_names: list[str]) -> None:
    wanted = tracked("greeterd", "tests", "conf", "systemd", ".ci")
    wanted += ["README.md", "CHANGELOG.md", "LICENSE", "pyproject.toml"]
    assert [name for name in wanted if name not in sdist_names] == []
    assert {"conf", "greeterd", "systemd", "tests"} <= {name.split("/")[0] for name in sdist_names}


@pytest.mark.parametrize("program", ["greeterd", "greeterctl", "greeter"])
def test_an_installed_program_tells_its_version(installed: Path, program: str) -> None:
    assert __version__ in run(installed / program, "--version")


def test_every_installed_module_finds_what_it_imports(installed: Path) -> None:
    run(installed / "python", "-I", "-W", "error", "-c", IMPORT_ALL)


def test_the_three_programs_are_the_only_ones() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert set(project["scripts"]) == {"greeterd", "greeterctl", "greeter"}


def test_the_top_level_holds_only_what_a_reader_looks_for() -> None:
    tops = {name.split("/")[0] for name in tracked()}
    assert {top for top in tops if not top.startswith(".")} == {
        "CHANGELOG.md", "LICENSE", "README.md", "conf", "greeterd", "pyproject.toml", "systemd",
        "tests",
    }  # fmt: skip
