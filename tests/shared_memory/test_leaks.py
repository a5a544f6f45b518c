"""What shared memory leaves behind: nothing, however streams end."""

from __future__ import annotations

import gc
import os
import sys
from pathlib import Path

import numpy as np
import pytest

from gradwire.client import AMSGrad, NonFiniteGradient, Server, connect
from tests.children import child
from tests.faults.bare import fresh_name
from tests.faults.hosted import HostedServer, eventually
from tests.faults.proxy import Proxy
from tests.serving import ServerProcess

SIZE = 300_000
GRADIENTS = {"x": np.ones(SIZE, np.float32)}


_known: set[int] = set()
"""Inodes of the regions that this process had before the test: other tests keep their runs."""


@pytest.fixture(autouse=True)
def known() -> None:
    gc.collect()
    _known.clear()
    _known.update(files_of(os.getpid()), maps_of(os.getpid()))


def files_of(pid: int) -> list[int]:
    """Inodes of the regions that a process has open."""
    found = []
    for name in os.listdir(f"/proc/{pid}/fd"):
        try:
            if "memfd:gradwire" in os.readlink(f"/proc/{pid}/fd/{name}"):
                found.append(os.stat(f"/proc/{pid}/fd/{name}").st_ino)
        except FileNotFoundError:
            continue
    return found


def maps_of(pid: int) -> dict[int, tuple[int, int]]:
    """Inode -> addresses of the regions that a process has mapped."""
    lines = [line.split() for line in Path(f"/proc/{pid}/maps").read_text().splitlines() if "memfd:gradwire" in line]
    return {int(line[4]): (int(line[0].split("-")[0], 16), int(line[0].split("-")[1], 16)) for line in lines}


def regions_of(pid: int) -> tuple[int, int]:
    """Regions that a process has open, and has mapped, since the test began."""
    return len(set(files_of(pid)) - _known), len(maps_of(pid).keys() - _known)


@pytest.mark.timeout(240)
def test_hundreds_of_attachments_leave_nothing() -> None:
    """In two processes: files, maps, memory."""
    with ServerProcess(forked=False) as process, connect(process.target) as server:
        run = server.create_run(fresh_name("many"), {"x": np.zeros(SIZE, np.float32)}, AMSGrad())
        run.step(GRADIENTS)
        assert run.shares_memory
        assert regions_of(process.pid) == regions_of(os.getpid()) == (1, 1)
        before = process.rss_bytes()
        for _ in range(300):
            run.close()
            run.hold()
            run.step(GRADIENTS)
        assert run.shares_memory
        assert regions_of(process.pid) == regions_of(os.getpid()) == (1, 1)
        assert process.rss_bytes() < before + 64 * 2**20
        run.close()
        eventually(lambda: regions_of(process.pid) == (0, 0), "the server has let go")
        assert regions_of(os.getpid()) == (0, 0)


@pytest.mark.usefixtures("no_lanes")  # by a lane a step may succeed that the proxy has cut
def test_streams_that_break_leave_nothing(hosted: HostedServer) -> None:
    with Proxy(hosted.target) as proxy, connect(proxy.target) as server:
        run = server.create_run(fresh_name("broken"), {"x": np.zeros(SIZE, np.float32)}, AMSGrad())
        used = hosted.used_bytes
        for _ in range(20):
            run.step(GRADIENTS)
            proxy.cut()
            run.step(GRADIENTS)
        assert run.shares_memory
        eventually(lambda: hosted.used_bytes == used, "only the last region is counted")
        run.close()
    gc.collect()
    eventually(lambda: regions_of(os.getpid()) == (0, 0), "both ends have let go")


def test_refused_steps_leave_nothing(hosted: HostedServer, server: Server) -> None:
    run = server.create_run(fresh_name("refused"), {"x": np.zeros(SIZE, np.float32)}, AMSGrad())
    run.step(GRADIENTS)
    used = hosted.used_bytes
    for _ in range(20):
        with pytest.raises(NonFiniteGradient):
            run.step({"x": np.full(SIZE, np.nan, np.float32)})
        run.step(GRADIENTS)
    assert run.step_count == 21
    eventually(lambda: hosted.used_bytes == used, "only the last region is counted")
    run.close()
    eventually(lambda: regions_of(os.getpid()) == (0, 0), "both ends have let go")


def test_a_deleted_run_leaves_nothing(hosted: HostedServer, server: Server) -> None:
    before = hosted.used_bytes
    run = server.create_run(fresh_name("deleted"), {"x": np.zeros(SIZE, np.float32)}, AMSGrad())
    run.step(GRADIENTS)
    server.delete_run(run.name)
    eventually(lambda: hosted.used_bytes == before, "all is free")
    run.close()
    eventually(lambda: regions_of(os.getpid()) == (0, 0), "both ends have let go")


def test_a_client_that_is_killed_leaves_nothing() -> None:
    code = (
        "import sys, numpy as np\n"
        "from gradwire.client import AMSGrad, connect\n"
        "server = connect(sys.argv[1])\n"
        f"run = server.create_run('killed', {{'x': np.zeros({SIZE}, np.float32)}}, AMSGrad())\n"
        f"run.step({{'x': np.ones({SIZE}, np.float32)}})\n"
        "print(run.shares_memory, flush=True)\n"
        "sys.stdin.read()\n"
    )
    with ServerProcess() as process:
        command = [sys.executable, "-c", code, process.target]
        with child(command, stderr=None) as client:
            assert client.stdout is not None
            assert client.stdout.readline() == "True\n"
            assert regions_of(process.pid) == (1, 1)
            client.kill()
        eventually(lambda: regions_of(process.pid) == (0, 0), "the server has let go")


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_forked_child_keeps_nothing_and_harms_nothing(server: Server) -> None:
    """Such as a DataLoader's worker. It ends while the parent steps on."""
    run = server.create_run(fresh_name("forked"), {"x": np.zeros(SIZE, np.float32)}, AMSGrad())
    run.step(GRADIENTS)
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(writer)
        kept = regions_of(os.getpid())[1]
        os.read(reader, 1)
        os._exit(0 if kept == 0 else 1)
    os.close(reader)
    run.step(GRADIENTS)
    os.close(writer)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert run.step(GRADIENTS).step == 3
    assert run.shares_memory


def test_memory_is_counted_while_it_is_shared(hosted: HostedServer, server: Server) -> None:
    run = server.create_run(fresh_name("counted"), {"x": np.zeros(SIZE, np.float32)}, AMSGrad())
    run.close()
    before = hosted.used_bytes
    run.hold()
    shared = hosted.used_bytes - before
    ((start, stop),) = [place for inode, place in maps_of(os.getpid()).items() if inode not in _known]
    assert shared >= stop - start >= 2 * 4 * SIZE
    run.close()
    eventually(lambda: hosted.used_bytes == before, "all is free")
