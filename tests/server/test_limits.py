"""Threads and memory follow the limits of the container, not the size of the machine."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import pytest

from gradwire.server.devices.cpu import CpuDevice
from gradwire.server.devices.select import open_device
from gradwire.server.limits import available_memory_bytes, available_processors

MACHINE = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
GIB = 2**30


@pytest.fixture(autouse=True)
def eight(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine of eight processors."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)


def machine(root: Path, own: str, files: Mapping[str, str]) -> Path:
    """A file system below ``root``: the process is in the groups ``own``, whose ``files`` say what they may use."""
    for name, text in {"proc/self/cgroup": own, **{f"sys/fs/cgroup/{name}": files[name] for name in files}}.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


V1 = "5:memory:/docker/1\n4:cpu,cpuacct:/docker/1\n0::/docker/1\n"
PROCESSORS: dict[str, tuple[str, dict[str, str], int]] = {
    "nothing": ("0::/\n", {}, 8),
    "unlimited": ("0::/\n", {"cpu.max": "max 100000\n"}, 8),
    "more than there are": ("0::/\n", {"cpu.max": "9900000 100000\n"}, 8),
    "a container's outermost": ("0::/\n", {"cpu.max": "200000 100000\n"}, 2),
    "one and a half": ("0::/\n", {"cpu.max": "150000 100000\n"}, 2),
    "part of one": ("0::/\n", {"cpu.max": "1000 100000\n"}, 1),
    "around it": ("0::/a/b\n", {"a/cpu.max": "300000 100000", "a/b/cpu.max": "max 100000"}, 3),
    "own": ("0::/a/b\n", {"a/cpu.max": "300000 100000", "a/b/cpu.max": "100000 50000"}, 2),
    "a path of the host": ("0::/system.slice/docker-1.scope\n", {"cpu.max": "100000 100000"}, 1),
    "a path that is not mounted here": ("0::/../../elsewhere\n", {"cpu.max": "100000 100000"}, 1),
    "somebody else's": ("0::/a/b\n", {"a/c/cpu.max": "1 1", "b/cpu.max": "1 1"}, 8),
    "nonsense": ("\n0\n0:\n::::\n", {"cpu.max": "many"}, 8),
}


@pytest.mark.parametrize("tree", PROCESSORS)
def test_processors(tmp_path: Path, tree: str) -> None:
    own, files, expected = PROCESSORS[tree]
    assert available_processors(machine(tmp_path, own, files)) == expected


@pytest.mark.parametrize("folder", ["cpu,cpuacct", "cpu", "cpuacct,cpu"])
@pytest.mark.parametrize(("quota", "expected"), [("300000", 3), ("-1", 8)])
def test_processors_of_version_1(tmp_path: Path, folder: str, quota: str, expected: int) -> None:
    files = {
        f"{folder}/docker/1/cpu.cfs_quota_us": f"{quota}\n",
        f"{folder}/docker/1/cpu.cfs_period_us": "100000\n",
    }
    own = V1.replace("cpu,cpuacct", folder) if "," in folder else V1  # else linked to by its own name alone
    assert available_processors(machine(tmp_path, own, files)) == expected


def test_a_machine_without_control_groups(tmp_path: Path) -> None:
    assert (available_processors(tmp_path), available_memory_bytes(tmp_path)) == (8, MACHINE)


def test_the_cpu_device_takes_all_processors_unless_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gradwire.server.devices.cpu.available_processors", lambda: 3)
    for threads, expected in [(None, 3), (5, 5)]:
        device = open_device("cpu", threads)
        assert isinstance(device, CpuDevice)
        assert device.threads == expected
        device.close()


MEMORY: dict[str, tuple[str, dict[str, str], int]] = {
    "v2, unlimited": ("0::/\n", {"memory.max": "max\n"}, 0),
    "v2, own": ("0::/a/b\n", {"a/b/memory.max": f"{GIB}", "a/memory.max": "max"}, GIB),
    "v2, around it": ("0::/a/b\n", {"a/b/memory.max": f"{2 * GIB}", "a/memory.max": f"{GIB}"}, GIB),
    "v2, a container's outermost": ("0::/\n", {"memory.max": f"{GIB}"}, GIB),
    "v2, a path that is not mounted here": ("0::/../../elsewhere\n", {"memory.max": f"{GIB}"}, GIB),
    "v1, own": ("5:cpu:/x\n4:memory:/a/b\n", {"memory/a/b/memory.limit_in_bytes": f"{GIB}"}, GIB),
    "v1, around it": ("4:hugetlb,memory:/a/b\n0::/c\n", {"memory/a/memory.limit_in_bytes": f"{GIB}"}, GIB),
    "v1, unlimited": ("4:memory:/\n", {"memory/memory.limit_in_bytes": "9223372036854771712\n"}, 0),
    "v1, not said": ("", {"memory/memory.limit_in_bytes": f"{GIB}"}, GIB),
    "somebody else's": ("0::/a/b\n", {"a/c/memory.max": "5", "b/memory.max": "5", "a/b/memory.max": "max"}, 0),
    "a path with a colon": ("0::/a:b\n", {"a:b/memory.max": f"{GIB}"}, GIB),
    "nonsense": ("\n0\n0:\n::::\n", {"memory.max": "many"}, 0),
}


@pytest.mark.parametrize("tree", MEMORY)
def test_memory(tmp_path: Path, tree: str) -> None:
    own, files, limit = MEMORY[tree]
    assert available_memory_bytes(machine(tmp_path, own, files)) == (min(limit, MACHINE) or MACHINE)
