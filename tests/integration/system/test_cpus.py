"""Which CPUs may be used, and how many: by affinity and by the quotas of cgroups."""

import os
from collections.abc import Mapping
from pathlib import Path

import pytest

from greeterd.errors import ResourceError
from greeterd.system.cpus import affinity_of, allowed_cpus, cpu_of, unusable, usable_cpus


@pytest.fixture
def unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the kernel refuse to tell the affinity, as a seccomp filter does."""

    def refuse(_pid: int) -> set[int]:
        raise PermissionError

    monkeypatch.setattr(os, "sched_getaffinity", refuse)


def test_slots_are_pinned_by_turns_to_the_cpus_of_the_list() -> None:
    cpus = affinity_of("3,0-1")
    assert [cpu_of(slot, cpus) for slot in range(1, 6)] == [3, 0, 1, 3, 0]
    assert [cpu_of(slot, affinity_of("off")) for slot in range(1, 3)] == [None, None]
    assert affinity_of("auto") == tuple(sorted(os.sched_getaffinity(0)))


def test_a_cpu_beyond_the_affinity_is_unusable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: {1, 2})
    assert allowed_cpus() == {1, 2}
    assert unusable([3, 1, 0, 2]) == [0, 3]


@pytest.mark.usefixtures("unknown")
def test_without_a_known_affinity_the_machine_s_cpus_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 7)
    assert (allowed_cpus(), unusable([99])) == (frozenset(), [])
    assert usable_cpus(tmp_path) == 7
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert usable_cpus(tmp_path) == 1
    with pytest.raises(ResourceError, match=r"^cpu_affinity: auto: the usable CPUs are unknown$"):
        affinity_of("auto")


def test_the_affinity_counts_where_it_is_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: {4, 5, 6})
    assert usable_cpus(tmp_path) == 3


# Quotas

V2 = "30 1 0:26 {top} /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate\n"
V1 = "33 31 0:30 {top} /sys/fs/cgroup/cpu rw shared:9 - cgroup cgroup rw,cpu,cpuacct\n"
MEMORY = "34 31 0:31 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n"


def fake_root(
    root: Path, *, cgroup: str = "", mounts: str = "", files: Mapping[str, str] | None = None
) -> Path:
    tree = {"proc/self/cgroup": cgroup, "proc/self/mountinfo": mounts}
    tree |= {f"sys/fs/cgroup/{name}": text for name, text in (files or {}).items()}
    for name, text in tree.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


@pytest.mark.parametrize(
    ("quota", "cpus"),
    [
        ("max 100000", 8),
        ("100000 100000", 1),
        ("150000 100000", 2),
        ("1000 100000", 1),
        ("400000 100000", 4),
        ("1600000 100000", 8),
        ("0 0", 8),
        ("0 100000", 8),
        ("100000 0", 8),
        ("", 8),
        ("nonsense", 8),
    ],
)
def test_a_quota_caps_the_cpus_and_is_rounded_up(quota: str, cpus: int, tmp_path: Path) -> None:
    root = fake_root(
        tmp_path, cgroup="0::/a\n", mounts=V2.format(top="/"), files={"a/cpu.max": quota}
    )
    assert usable_cpus(root, affinity=8) == cpus


@pytest.mark.parametrize("group", ["a/b/c", "a/b", "a"])
def test_the_smallest_quota_on_the_way_up_counts(group: str, tmp_path: Path) -> None:
    files = {f"{one}/cpu.max": "500000 100000" for one in ("a/b/c", "a/b", "a", "other")}
    files |= {f"{group}/cpu.max": "300000 100000", "other/x/cpu.max": "100000 100000"}
    root = fake_root(tmp_path, cgroup="0::/a/b/c\n", mounts=V2.format(top="/"), files=files)
    assert usable_cpus(root, affinity=8) == 3


def test_version_1_has_a_quota_and_a_period_and_minus_one_for_none(tmp_path: Path) -> None:
    files = {
        "cpu/a/cpu.cfs_quota_us": "250000\n",
        "cpu/a/cpu.cfs_period_us": "100000\n",
        "cpu/cpu.cfs_quota_us": "-1\n",
        "cpu/cpu.cfs_period_us": "100000\n",
        "memory/a/cpu.max": "100000 100000",
    }
    cgroup = "9:memory:/b\n4:cpu,cpuacct:/a\n1:name=systemd:/c\n0::/\n"
    root = fake_root(tmp_path, cgroup=cgroup, mounts=MEMORY + V1.format(top="/"), files=files)
    assert usable_cpus(root, affinity=8) == 3


def test_a_container_sees_its_cgroup_as_the_root_of_the_mount(tmp_path: Path) -> None:
    files = {"cpu.max": "200000 100000", "docker/x/cpu.max": "100000 100000"}
    root = fake_root(
        tmp_path, cgroup="0::/docker/x\n", mounts=V2.format(top="/docker/x"), files=files
    )
    assert usable_cpus(root, affinity=8) == 2


@pytest.mark.parametrize(("path", "top"), [("/../../elsewhere", "/"), ("/elsewhere", "/docker/x")])
def test_a_cgroup_outside_of_the_mount_counts_as_its_root(
    path: str, top: str, tmp_path: Path
) -> None:
    root = fake_root(
        tmp_path,
        cgroup=f"0::{path}\n",
        mounts=V2.format(top=top),
        files={"cpu.max": "200000 100000", "../../elsewhere/cpu.max": "100000 100000"},
    )
    assert usable_cpus(root, affinity=8) == 2


def test_a_mount_may_have_a_space_in_its_path(tmp_path: Path) -> None:
    mounts = V2.format(top="/").replace("/sys/fs/cgroup", r"/sys/fs/cgroup/a\040b")
    files = {"a b/c/cpu.max": "200000 100000"}
    root = fake_root(tmp_path, cgroup="0::/c\n", mounts=mounts, files=files)
    assert usable_cpus(root, affinity=8) == 2


def test_without_cgroups_the_affinity_counts(tmp_path: Path) -> None:
    assert usable_cpus(tmp_path, affinity=8) == 8
    assert usable_cpus(fake_root(tmp_path, mounts="garbage\n - \n"), affinity=5) == 5


def test_this_machine_has_a_usable_cpu() -> None:
    assert usable_cpus() >= 1
