"""Where no memory can be shared, values go through gRPC: the same numbers, and one line in the log."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from gradwire.client import AMSGrad, RunOptions, Server, connect
from gradwire.client.options import shares_memory
from gradwire.server.memory import shared_memory as server_region
from gradwire.server.memory.shared_memory import SharedMemory
from gradwire.server.rpc import codec, service
from gradwire.v1 import train_pb2
from tests.faults.bare import fresh_name
from tests.faults.hosted import HostedServer
from tests.serving import ServerProcess

pytestmark = pytest.mark.usefixtures("no_lanes")

PARAMS = {"x": np.random.default_rng(0).standard_normal(300_000, np.float32)}
GRADIENTS = {"x": np.random.default_rng(1).standard_normal(300_000, np.float32)}


def lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    """What has been said of shared memory."""
    return [record.getMessage() for record in caplog.records if "through gRPC" in record.getMessage()]


def check_falls_back(server: Server, plain: Server, caplog: pytest.LogCaptureFixture, expected_lines: int) -> None:
    """Attaches again too: a way that was closed once is not tried again, and not spoken of."""
    run = server.create_run(fresh_name("back"), PARAMS, AMSGrad(lr=0.1))
    twin = plain.create_run(fresh_name("twin"), PARAMS, AMSGrad(lr=0.1))
    for _ in range(2):
        run.step(GRADIENTS)
        twin.step(GRADIENTS)
        assert not run.shares_memory
        run.close()
    assert run.params["x"].tobytes() == twin.params["x"].tobytes()
    assert len(lines(caplog)) == expected_lines, lines(caplog)


Change = Callable[[train_pb2.SharedRegion], None]


def no_such_process(region: train_pb2.SharedRegion) -> None:
    region.pid = 2**22 + 1


def another_process(region: train_pb2.SharedRegion) -> None:
    """As where the server is in another namespace, in which its number is somebody else's."""
    region.pid = 1 if os.getpid() != 1 else os.getppid()


def a_closed_file(region: train_pb2.SharedRegion) -> None:
    region.file_descriptor = 1_000_000


def a_file_of_another_kind(region: train_pb2.SharedRegion) -> None:
    region.file_descriptor = 0


def another_secret(region: train_pb2.SharedRegion) -> None:
    region.nonce = bytes(32)


def too_large(region: train_pb2.SharedRegion) -> None:
    region.parameter_bytes *= 2


@pytest.mark.parametrize(
    "change", [no_such_process, another_process, a_closed_file, a_file_of_another_kind, another_secret, too_large]
)
def test_a_region_that_the_client_cannot_map(
    hosted: HostedServer,
    server: Server,
    plain: Server,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    change: Change,
) -> None:
    encode = codec.encode_region

    def changed(memory: SharedMemory) -> train_pb2.SharedRegion:
        region = encode(memory)
        change(region)
        return region

    monkeypatch.setattr(service, "encode_region", changed)
    check_falls_back(server, plain, caplog, 1)


def test_a_client_that_may_not_open_the_file(
    server: Server, plain: Server, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: str) -> str:
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr(os, "readlink", refuse)
    check_falls_back(server, plain, caplog, 1)


def test_a_server_that_cannot_make_a_file(
    server: Server, plain: Server, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It says so at each attachment: it knows nothing of the one before."""

    def refuse(size_bytes: int) -> int:
        raise OSError("no memory files today")

    monkeypatch.setattr(server_region, "_sealed_file", refuse)
    check_falls_back(server, plain, caplog, 2)


def test_a_server_with_little_memory(caplog: pytest.LogCaptureFixture) -> None:
    """A step must find its room: what is shared takes a small part of what is free."""
    caplog.set_level("INFO")
    with (
        HostedServer(max_memory=20_000_000) as hosted,
        connect(hosted.target) as server,
        connect(hosted.target, shared_memory=False) as plain,
    ):
        check_falls_back(server, plain, caplog, 2)


def test_the_servers_flag(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    with (
        HostedServer(shared_memory=False) as hosted,
        connect(hosted.target) as server,
        connect(hosted.target, shared_memory=False) as plain,
    ):
        check_falls_back(server, plain, caplog, 0)


@pytest.mark.parametrize("how", ["connection", "run", "environment"])
def test_the_clients_flag(
    hosted: HostedServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, how: str
) -> None:
    """Not even an offer is made."""
    monkeypatch.setattr(server_region, "_sealed_file", lambda size_bytes: pytest.fail("a file was made"))
    if how == "environment":
        monkeypatch.setenv("GRADWIRE_SHARED_MEMORY", "0")
    options: dict[str, Any] = {"shared_memory": False} if how == "run" else {}
    with connect(hosted.target, shared_memory=False if how == "connection" else None) as server:
        run = server.create_run(fresh_name("off"), PARAMS, AMSGrad(), **options)
        run.step(GRADIENTS)
        assert not run.shares_memory
        fork = run.fork(fresh_name("fork"))
        assert how == "run" or not fork.shares_memory
        fork.close()
    assert not lines(caplog)


def test_a_run_may_say_otherwise_than_its_connection(plain: Server) -> None:
    run = plain.create_run(fresh_name("on"), PARAMS, AMSGrad(), shared_memory=True)
    assert run.shares_memory
    with run.fork(fresh_name("fork"), shared_memory=False) as fork:
        assert not fork.shares_memory
    with run.fork(fresh_name("fork")) as fork:
        assert fork.shares_memory


@pytest.mark.parametrize(
    ("choice", "text", "meant"),
    [
        (None, None, True),
        (None, "", True),
        (None, "1", True),
        (None, "off", False),
        (True, "0", True),
        (False, "1", False),
    ],
)
def test_who_decides(monkeypatch: pytest.MonkeyPatch, choice: bool | None, text: str | None, meant: bool) -> None:
    monkeypatch.delenv("GRADWIRE_SHARED_MEMORY", raising=False)
    if text is not None:
        monkeypatch.setenv("GRADWIRE_SHARED_MEMORY", text)
    assert shares_memory(choice) is meant
    assert RunOptions().shared_memory is None


def test_a_malformed_environment_says_so(hosted: HostedServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRADWIRE_SHARED_MEMORY", "maybe")
    with pytest.raises(ValueError, match="GRADWIRE_SHARED_MEMORY is 'maybe'; expected 1 or 0"):
        connect(hosted.target)


def test_a_client_that_does_not_know_shared_memory(hosted: HostedServer, server: Server) -> None:
    """The field is not set: nothing is offered."""
    run = server.create_run(fresh_name("old"), PARAMS, AMSGrad())
    run._attachment.message.ClearField("shared_memory")
    run.close()
    run.step(GRADIENTS)
    assert not run.shares_memory


def test_unix_sockets_and_embedded_servers_share_memory() -> None:
    with connect("embedded") as server:
        assert server.target.startswith("unix:")
        assert server.create_run("one", PARAMS, AMSGrad()).shares_memory


# --- real boundaries, where this machine lets a test put one up ------------------------------------------------------

CLIENT = f"""
import json, logging, sys
import numpy as np
from gradwire.client import AMSGrad, connect
logging.basicConfig(level=logging.INFO, stream=sys.stderr)
with connect(sys.argv[1]) as server:
    run = server.create_run("behind", {{"x": np.zeros({PARAMS["x"].size}, np.float32)}}, AMSGrad())
    step = run.step({{"x": np.ones({PARAMS["x"].size}, np.float32)}}).step
    print(json.dumps([run.shares_memory, step, float(run.params["x"][0])]))
"""


def behind(boundary: list[str], target: str) -> tuple[list[Any], str]:
    """What a client says that runs behind ``boundary``, and its log."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    result = subprocess.run(
        [*boundary, sys.executable, "-c", CLIENT, target],
        capture_output=True,
        text=True,
        env=environment,
        timeout=60,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout), result.stderr


def test_a_client_in_a_process_of_its_own() -> None:
    with ServerProcess() as process:
        (shares, step, value), log = behind([], process.target)
    assert shares
    assert step == 1
    assert value < 0
    assert "through gRPC" not in log


@pytest.mark.parametrize(
    ("boundary", "shared"),
    [
        (["unshare", "--pid", "--fork", "--mount-proc"], True),  # by its lane the client is handed the file
        (["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"], False),
    ],
    ids=["another namespace of processes", "another user"],
)
def test_a_client_behind_a_boundary(boundary: list[str], shared: bool) -> None:
    if shutil.which(boundary[0]) is None or os.geteuid() != 0:
        pytest.skip("only root can put this boundary up")
    if subprocess.run([*boundary, sys.executable, "-c", "import numpy"], capture_output=True, check=False).returncode:
        pytest.skip("this machine does not allow that boundary, or its Python is of one user alone")
    with ServerProcess() as process:
        (shares, step, value), log = behind(boundary, process.target)
    assert shares is shared
    assert step == 1
    assert value < 0
    said = [line for line in log.splitlines() if "through gRPC" in line]
    assert len(said) == (0 if shared else 1)
    assert all("Permission denied" in line for line in said)
    assert ("no lane" in log) is not shared
