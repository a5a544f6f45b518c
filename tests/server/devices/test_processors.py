"""Threads follow the limits of the container, not the size of the machine."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from gradwire.server.devices.cpu import CpuDevice
from gradwire.server.devices.processors import available_processors
from gradwire.server.devices.select import open_device


@pytest.fixture(autouse=True)
def eight(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine of eight processors."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)


def found(root: Path, own: str, **files: str) -> int:
    """With control groups as files below ``root``; ``__`` in a name ends a folder."""
    (root / "own").write_text(own)
    for name, text in files.items():
        path = root / "mount" / name.replace("__", "/").replace("_max", ".max")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return available_processors(root / "own", root / "mount")


def test_nothing_is_said(tmp_path: Path) -> None:
    assert available_processors(tmp_path / "own", tmp_path) == 8
    assert found(tmp_path, "0::/\n") == 8
    assert found(tmp_path, "0::/\n", cpu_max="max 100000\n") == 8


def test_a_container_sees_its_own_group_as_the_root(tmp_path: Path) -> None:
    assert found(tmp_path, "0::/\n", cpu_max="200000 100000\n") == 2


def test_part_of_a_processor_counts_as_one(tmp_path: Path) -> None:
    assert found(tmp_path, "0::/\n", cpu_max="150000 100000\n") == 2
    assert found(tmp_path, "0::/\n", cpu_max="1000 100000\n") == 1


def test_the_narrowest_of_nested_groups_counts(tmp_path: Path) -> None:
    own = "0::/outer/inner\n"
    assert found(tmp_path, own, outer__cpu_max="300000 100000", outer__inner__cpu_max="max 100000") == 3
    assert found(tmp_path, own, outer__inner__cpu_max="100000 50000") == 2


def test_a_path_of_the_host_that_is_not_mounted(tmp_path: Path) -> None:
    assert found(tmp_path, "0::/system.slice/docker-1.scope\n", cpu_max="100000 100000") == 1


def test_version_1(tmp_path: Path) -> None:
    folder = tmp_path / "mount/cpu,cpuacct/docker/1"
    folder.mkdir(parents=True)
    (folder / "cpu.cfs_quota_us").write_text("300000\n")
    (folder / "cpu.cfs_period_us").write_text("100000\n")
    own = "5:memory:/docker/1\n4:cpu,cpuacct:/docker/1\n0::/docker/1\n"
    assert found(tmp_path, own) == 3
    (folder / "cpu.cfs_quota_us").write_text("-1\n")
    assert found(tmp_path, own) == 8


def test_the_affinity_bounds_it_too(tmp_path: Path) -> None:
    assert found(tmp_path, "0::/\n", cpu_max="9900000 100000\n") == 8


def test_the_cpu_device_takes_it_unless_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gradwire.server.devices.select.available_processors", lambda: 3)
    for threads, expected in [(None, 3), (5, 5)]:
        device = open_device("cpu", threads)
        assert isinstance(device, CpuDevice)
        assert device.threads == expected
        device.close()
