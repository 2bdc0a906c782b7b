"""What is looked for before an experiment begins."""

import socket
from pathlib import Path

import pytest

from greeterd.bench import extras
from greeterd.bench.experiment import runner
from greeterd.bench.experiment.environment import describe
from greeterd.bench.experiment.servers import Setup
from greeterd.bench.model import Case
from greeterd.errors import ListenError, MissingPackageError, UsageError


def test_without_a_compiler_the_cases_of_compiled_servers_are_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    cases = [Case(), Case(server="bare"), Case(server="threaded"), Case(server="asyncio")]
    left, reasons = runner.without_unbuildable(cases, Setup(build_dir=tmp_path))
    assert [case.server for case in left] == ["greeterd", "asyncio"]
    assert list(reasons) == ["bare", "threaded"]
    assert "compiler" in reasons["bare"]


def test_a_package_that_is_missing_is_named_with_its_extra(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    extras.require("json", "scipy")
    monkeypatch.setattr(extras, "find_spec", lambda name: None if name == "scipy" else name)
    with pytest.raises(MissingPackageError, match=r"scipy .*greeterd\[bench\]"):
        extras.require("json", "scipy")


def test_an_address_that_is_taken_or_none_is_refused() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(ListenError, match="in use"):
            runner.require_address(address)
    runner.require_address(address)
    with pytest.raises(UsageError, match="--bind"):
        runner.require_address("nowhere")


def test_the_environment_tells_of_the_machine_and_the_programs() -> None:
    found = describe("9.9")
    assert found.greeterd == "9.9"
    assert found.cpus >= 1
    assert found.memory_mib > 0
    assert found.kernel.count(".") >= 1
    assert int(found.sysctls["net.core.somaxconn"]) > 0
    assert found.packages["msgspec"]
