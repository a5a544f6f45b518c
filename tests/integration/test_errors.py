"""Every refusal of the table, provoked on a live server: on the wire, and as the Python client raises it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import grpc
import numpy as np
import pytest

from gradwire.client import AMSGrad, ParamGroup, RetryPolicy, Run, Server, connect
from gradwire.client.encodings import flat_vector
from gradwire.server import failpoints
from gradwire.server.durability.stored_runs import DamagedRun
from gradwire.server.engine.features import Feature
from gradwire.server.engine.spec import TENSOR_BYTES, RunSpec
from gradwire.v1 import run_pb2, service_pb2, train_pb2
from gradwire.wire.errors import DOMAIN, MAX_METADATA_BYTES, TABLE, GradwireError, from_status
from tests.contract.bare import BareClient, BareStream, Refusal, group, pack, slices, whole
from tests.faults.hosted import HostedServer, eventually
from tests.integration.access import AccessFile, secret_of

LARGE = 6_000_000
"""Elements of a run whose values do not fit what flow control lets through: 24 MB."""

ONCE = RetryPolicy(deadline_seconds=0)


@dataclass
class World:
    """A server with tight limits, inside this process, and three ways to it."""

    hosted: HostedServer
    patch: pytest.MonkeyPatch
    bare: BareClient
    server: Server

    def run(self, **options: Any) -> Run:
        """A run ``x`` of two elements, with the Python client attached."""
        return self.server.create_run("x", {"w": np.zeros(2, np.float32)}, AMSGrad(), retry=ONCE, **options)

    def stream(self) -> BareStream:
        """A run ``x`` of two elements, with the bare client attached."""
        self.bare.create("x", [group(w=[2])], [0.0, 0.0])
        return self.bare.attach("x")

    def large(self) -> None:
        piece = pack([0.0] * 500_000)
        parts = [run_pb2.Slice(offset=i, data=piece) for i in range(0, LARGE, 500_000)]
        self.bare.create("large", [group(run_pb2.Adam(), w=[LARGE])], parts)

    def wait_until_read_is_given_up(self) -> None:
        """The copy that a ReadParameters holds has been freed again."""
        run_bytes = 3 * LARGE * 4 + TENSOR_BYTES
        eventually(lambda: self.hosted.used_bytes > run_bytes, "the copy is made")
        eventually(lambda: self.hosted.used_bytes == run_bytes, "the copy is freed")

    def break_registry(self) -> None:
        def boom(name: str) -> None:
            raise RuntimeError("nobody planned for this")

        self.patch.setattr(self.hosted.registry, "get", boom)


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    limits: dict[str, Any] = {
        "max_parameters": LARGE,
        "max_memory": 128 * 2**20,
        "max_result": 100,
        "stall_timeout_seconds": 0.3,
    }
    with HostedServer(**limits) as hosted, BareClient(hosted.target) as bare, connect(hosted.target) as server:
        yield World(hosted, monkeypatch, bare, server)


# --- on the wire -----------------------------------------------------------------------------------------------------


def exists(world: World) -> None:
    for request_id in ("one", "two"):
        world.bare.create("x", [group(w=[1])], [0.0], request_id=request_id)


def sequence(world: World) -> None:
    with world.stream() as stream:
        stream.step(2, [1.0, 1.0])


def busy(world: World) -> None:
    with world.stream():
        world.bare.attach("x", "another")


def leader_busy(world: World) -> None:
    understands = [train_pb2.FEATURE_SHARED_RUN]
    world.bare.create("x", [group(w=[2])], [0.0, 0.0], shared=run_pb2.SharedRun())
    with world.bare.attach("x", "a", leads=True, understands=understands):
        world.bare.attach("x", "b", leads=True, understands=understands)


def needing(world: World) -> None:
    """Runs need a feature from now on that no client has yet."""
    world.patch.setattr(RunSpec, "needs", property(lambda spec: frozenset({Feature.PLACEMENTS})))


def too_old(world: World) -> None:
    needing(world)
    world.stream()


def fenced(world: World) -> None:
    with world.stream() as stream, world.bare.attach("x", "another", takeover=True):
        stream.receive()


def gradients(*messages: train_pb2.Gradients) -> Callable[[World], None]:
    def provoke(world: World) -> None:
        with world.stream() as stream:
            stream.send(*messages)
            for _ in stream.answer():
                pass

    return provoke


def trajectory_too_large(world: World) -> None:
    with world.stream() as stream:
        stream.step(1, [0.0] * 40, steps=20, returns=train_pb2.RETURNS_TRAJECTORY)


def stalled(world: World) -> None:
    world.large()
    reading = world.bare.stub.ReadParameters(service_pb2.ReadParametersRequest(name="runs/large"), timeout=30)
    world.wait_until_read_is_given_up()
    try:
        for _ in reading:
            pass
    except grpc.RpcError as error:
        raise Refusal(error) from None


def draining(world: World) -> None:
    world.hosted.refuse_work()
    world.bare.create("x", [group(w=[1])], [0.0])


def internal(world: World) -> None:
    world.break_registry()
    world.bare.get("x")


def starting(world: World) -> None:
    world.patch.setattr(world.hosted.registry, "_ready", False)
    world.bare.get("x")


@contextmanager
def failing_disk(action: str) -> Iterator[str]:
    """The address of a server that keeps runs, and whose disk fails."""
    with TemporaryDirectory() as directory, HostedServer(data_dir=directory) as hosted:
        failpoints.arm("journal.before-commit", action)
        try:
            yield hosted.target
        finally:
            failpoints.disarm()


def storage(action: str) -> Callable[[World], None]:
    def provoke(world: World) -> None:
        with failing_disk(action) as target, BareClient(target) as bare:
            bare.create("x", [group(w=[2])], [0.0, 0.0])

    return provoke


def asked(provoke: Callable[[BareClient, AccessFile], object]) -> Callable[[World], None]:
    """With a server that asks who calls, and a client that says nothing."""

    def run(world: World) -> None:
        world.patch.setattr("gradwire.server.rpc.calls.LOOK_SECONDS", 0.02)
        with TemporaryDirectory() as directory:
            file = AccessFile(Path(directory) / "access.toml")
            file.quotas["lab"] = "parameters = 1"
            file.add("one", "lab", "train")
            with HostedServer(access=str(file.path)) as hosted, BareClient(hosted.target) as bare:
                provoke(bare, file)

    return run


def denied(bare: BareClient, file: AccessFile) -> None:
    bare.metadata = (("authorization", f"Bearer {secret_of('one')}"),)
    bare.call("GetServerStatus", service_pb2.GetServerStatusRequest())


def beyond_quota(bare: BareClient, file: AccessFile) -> None:
    bare.metadata = (("authorization", f"Bearer {secret_of('one')}"),)
    bare.create("x", [group(w=[2])], [0.0, 0.0])


def revoked(bare: BareClient, file: AccessFile) -> None:
    bare.metadata = (("authorization", f"Bearer {secret_of('one')}"),)
    bare.create("x", [group(w=[1])], [0.0])
    with bare.attach("x") as stream:
        file.remove("one")
        stream.receive()


def no_snapshot(world: World) -> None:
    world.bare.create("x", [group(w=[2])], [0.0, 0.0])
    world.bare.call("RollBack", service_pb2.RollBackRequest(name="runs/x", snapshot_id=9))


def damage(world: World) -> None:
    world.hosted.registry._damaged["runs/x"] = DamagedRun("runs/x", "", "it was in a test")


def damaged(world: World) -> None:
    damage(world)
    world.bare.get("x")


ON_THE_WIRE: dict[str, tuple[grpc.StatusCode, str, Callable[[World], object]]] = {
    # reason: (status code, ErrorInfo.metadata["applied"], how to provoke it)
    "RUN_NOT_FOUND": (grpc.StatusCode.NOT_FOUND, "false", lambda world: world.bare.get("nothing")),
    "RUN_ALREADY_EXISTS": (grpc.StatusCode.ALREADY_EXISTS, "false", exists),
    "INVALID_SPEC": (grpc.StatusCode.INVALID_ARGUMENT, "false", lambda world: world.bare.create("x", [], [])),
    "INVALID_HYPERPARAMETER": (
        grpc.StatusCode.INVALID_ARGUMENT,
        "false",
        lambda world: world.bare.create("x", [group(run_pb2.Adam(lr=-1), w=[1])], [0.0]),
    ),
    "INVALID_SLICE": (grpc.StatusCode.INVALID_ARGUMENT, "false", gradients(whole(1, [1.0, 1.0, 1.0]))),
    "INCOMPLETE_VALUES": (grpc.StatusCode.INVALID_ARGUMENT, "false", gradients(whole(1, [1.0]))),
    "PROTOCOL_VIOLATION": (
        grpc.StatusCode.INVALID_ARGUMENT,
        "false",
        gradients(train_pb2.Gradients(sequence=1, data=pack([1.0, 1.0]), last=True)),
    ),
    "NON_FINITE_GRADIENT": (grpc.StatusCode.INVALID_ARGUMENT, "false", gradients(whole(1, [1.0, float("nan")]))),
    "SEQUENCE_MISMATCH": (grpc.StatusCode.FAILED_PRECONDITION, "false", sequence),
    "RUN_BUSY": (grpc.StatusCode.FAILED_PRECONDITION, "false", busy),
    "LEADER_BUSY": (grpc.StatusCode.FAILED_PRECONDITION, "false", leader_busy),
    "CLIENT_TOO_OLD": (grpc.StatusCode.FAILED_PRECONDITION, "false", too_old),
    "FENCED": (grpc.StatusCode.ABORTED, "false", fenced),
    "UNAUTHENTICATED": (grpc.StatusCode.UNAUTHENTICATED, "false", asked(lambda bare, file: bare.get("x"))),
    "PERMISSION_DENIED": (grpc.StatusCode.PERMISSION_DENIED, "false", asked(denied)),
    "PERMISSION_REVOKED": (grpc.StatusCode.UNAUTHENTICATED, "false", asked(revoked)),
    "TOO_MANY_PARAMETERS": (
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        "false",
        lambda world: world.bare.create("x", [group(w=[LARGE + 1])], []),
    ),
    "MEMORY_LIMIT_EXCEEDED": (
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        "false",
        lambda world: world.bare.create("x", [group(w=[LARGE])], [], dtype=run_pb2.DTYPE_FLOAT64),
    ),
    "QUOTA_EXCEEDED": (grpc.StatusCode.RESOURCE_EXHAUSTED, "false", asked(beyond_quota)),
    "RESULT_TOO_LARGE": (grpc.StatusCode.RESOURCE_EXHAUSTED, "false", trajectory_too_large),
    "STALLED": (grpc.StatusCode.DEADLINE_EXCEEDED, "unknown", stalled),
    "DRAINING": (grpc.StatusCode.UNAVAILABLE, "false", draining),
    "STARTING": (grpc.StatusCode.UNAVAILABLE, "false", starting),
    "STORAGE_FULL": (grpc.StatusCode.RESOURCE_EXHAUSTED, "false", storage("full")),
    "STORAGE_FAILED": (grpc.StatusCode.UNAVAILABLE, "false", storage("raise")),
    "RUN_DAMAGED": (grpc.StatusCode.DATA_LOSS, "false", damaged),
    "SNAPSHOT_NOT_FOUND": (grpc.StatusCode.NOT_FOUND, "false", no_snapshot),
    "INTERNAL": (grpc.StatusCode.INTERNAL, "unknown", internal),
}


def test_every_reason_of_the_table_is_provoked() -> None:
    assert set(ON_THE_WIRE) == set(TABLE)
    assert set(BY_THE_CLIENT) | OUT_OF_THE_CLIENTS_REACH == set(TABLE)
    assert not set(BY_THE_CLIENT) & OUT_OF_THE_CLIENTS_REACH


@pytest.mark.parametrize("reason", ON_THE_WIRE)
def test_refusal_on_the_wire(world: World, reason: str) -> None:
    code, applied, provoke = ON_THE_WIRE[reason]
    with pytest.raises(Refusal) as caught:
        provoke(world)
    refusal = caught.value
    assert (refusal.code, refusal.reason, refusal.info.domain) == (code, reason, DOMAIN)
    assert refusal.applied == applied
    assert refusal.status.message
    size = sum(len(key.encode()) + len(value.encode()) for key, value in refusal.info.metadata.items())
    assert size <= MAX_METADATA_BYTES
    error = from_status(refusal.status)
    assert type(error) is TABLE[reason]
    assert error.applied == {"true": True, "false": False, "unknown": None}[applied]


# --- as the Python client raises it ----------------------------------------------------------------------------------


def client_fenced(world: World) -> None:
    run = world.run()
    world.server.attach("x", takeover=True)
    run.step({"w": np.ones(2, np.float32)})


def client_too_old(world: World) -> None:
    needing(world)
    world.run()


def client_stalled(world: World) -> None:
    world.large()
    run = world.server.attach("large", retry=ONCE)
    place = flat_vector.place
    waited: list[bool] = []

    def slow(*arguments: Any) -> None:
        if not waited:
            waited.append(True)
            world.wait_until_read_is_given_up()
        place(*arguments)

    world.patch.setattr(flat_vector, "place", slow)
    run.read()


def client_draining(world: World) -> None:
    world.hosted.refuse_work()
    world.run()


def client_internal(world: World) -> None:
    world.break_registry()
    world.server.attach("x", retry=ONCE)


def zeros(*shape: int, dtype: Any = np.float32) -> dict[str, np.ndarray[Any, Any]]:
    return {"w": np.zeros(shape, dtype)}


def client_starting(world: World) -> None:
    world.patch.setattr(world.hosted.registry, "_ready", False)
    world.server.attach("x", retry=ONCE)


def client_storage(action: str) -> Callable[[World], None]:
    def provoke(world: World) -> None:
        with failing_disk(action) as target, connect(target) as server:
            server.create_run("x", {"w": np.zeros(2, np.float32)}, AMSGrad())

    return provoke


def client_damaged(world: World) -> None:
    damage(world)
    world.server.attach("x")


BY_THE_CLIENT: dict[str, Callable[[World], object]] = {
    "RUN_NOT_FOUND": lambda world: world.server.attach("nothing"),
    "RUN_ALREADY_EXISTS": lambda world: (world.run(), world.run()),
    "INVALID_HYPERPARAMETER": lambda world: world.server.create_run("x", zeros(2), AMSGrad(lr=-1)),
    "PROTOCOL_VIOLATION": lambda world: world.run().step_many(zeros(2**21 + 1, 2), returns="none"),
    "NON_FINITE_GRADIENT": lambda world: world.run().step({"w": np.array([1, np.inf], np.float32)}),
    "RUN_BUSY": lambda world: (world.run(), world.server.attach("x")),
    "CLIENT_TOO_OLD": client_too_old,
    "FENCED": client_fenced,
    "TOO_MANY_PARAMETERS": lambda world: world.server.create_run("x", zeros(LARGE + 1), AMSGrad()),
    "MEMORY_LIMIT_EXCEEDED": lambda world: world.server.create_run("x", zeros(LARGE, dtype=np.float64), AMSGrad()),
    "RESULT_TOO_LARGE": lambda world: world.run().step_many(zeros(20, 2), returns="trajectory"),
    "STALLED": client_stalled,
    "DRAINING": client_draining,
    "STARTING": client_starting,
    "STORAGE_FULL": client_storage("full"),
    "STORAGE_FAILED": client_storage("raise"),
    "RUN_DAMAGED": client_damaged,
    "SNAPSHOT_NOT_FOUND": lambda world: world.run().roll_back(9),
    "INTERNAL": client_internal,
}


def client_asked(act: Callable[[Server, AccessFile], object], token: str = "one") -> Callable[[World], None]:
    """As `asked`, with a client that has a token."""

    def provoke(bare: BareClient, file: AccessFile) -> None:
        with connect(bare.target, token=secret_of(token)) as server:
            act(server, file)

    return asked(provoke)


def client_revoked(server: Server, file: AccessFile) -> None:
    run = server.create_run("x", {"w": np.zeros(1, np.float32)}, AMSGrad())
    file.remove("one")
    while True:
        run.step({"w": np.ones(1, np.float32)})


BY_THE_CLIENT |= {
    "UNAUTHENTICATED": client_asked(lambda server, file: server.list_runs(), token="nobody"),
    "PERMISSION_DENIED": client_asked(lambda server, file: server.status()),
    "PERMISSION_REVOKED": client_asked(client_revoked),
    "QUOTA_EXCEEDED": client_asked(lambda server, file: server.create_run("x", zeros(2), AMSGrad())),
}
OUT_OF_THE_CLIENTS_REACH = {"LEADER_BUSY", "INVALID_SPEC", "INVALID_SLICE", "INCOMPLETE_VALUES", "SEQUENCE_MISMATCH"}
"""The Python client checks the spec itself, and cuts and numbers blocks itself."""


@pytest.mark.parametrize("reason", BY_THE_CLIENT)
def test_refusal_as_the_client_raises_it(world: World, reason: str) -> None:
    applied = {"true": True, "false": False, "unknown": None}[ON_THE_WIRE[reason][1]]
    with pytest.raises(GradwireError) as caught:
        BY_THE_CLIENT[reason](world)
    assert type(caught.value) is TABLE[reason]
    assert caught.value.applied is applied
    assert str(caught.value) == caught.value.message != ""


def test_a_bad_spec_is_the_same_error_without_a_server(world: World) -> None:
    with pytest.raises(TABLE["INVALID_SPEC"], match="'w' appears twice"):
        world.server.create_run("x", [ParamGroup(zeros(2)), ParamGroup(zeros(3))], AMSGrad())
    assert world.server.list_runs() == []


# --- what the details say --------------------------------------------------------------------------------------------


def test_an_old_sequence_was_applied_and_the_expected_one_is_named(world: World) -> None:
    with world.stream() as stream:
        for number in (1, 2, 3):
            stream.step(number, [1.0, 1.0])
        with pytest.raises(Refusal) as caught:
            stream.step(1, [1.0, 1.0])
    assert (caught.value.reason, caught.value.applied) == ("SEQUENCE_MISMATCH", "true")
    assert caught.value.info.metadata["expected_sequence"] == "4"
    assert world.bare.get("x").step == 3


def test_a_sequence_ahead_of_time_was_not_applied(world: World) -> None:
    with world.stream() as stream:
        stream.step(1, [1.0, 1.0])
        with pytest.raises(Refusal) as caught:
            stream.step(3, [1.0, 1.0])
    assert (caught.value.applied, caught.value.info.metadata["expected_sequence"]) == ("false", "2")


def test_a_refused_block_changes_nothing_and_uses_up_no_sequence(world: World) -> None:
    run = world.run()
    run.step({"w": np.ones(2, np.float32)})
    before = run.read()["w"]
    with pytest.raises(TABLE["NON_FINITE_GRADIENT"], match=r"'w' of shape \(2,\) is nan at its element 1"):
        run.step({"w": np.array([1, np.nan], np.float32)})
    assert np.array_equal(run.read()["w"], before)
    assert run.step({"w": np.ones(2, np.float32)}).step == 2


def test_errors_with_the_longest_names_still_arrive(world: World) -> None:
    """Status, message and details share one header block; one that is too large would reach nobody."""
    name = "\U0001f409" * 128  # 512 bytes
    tensors = run_pb2.Group(adam=run_pb2.Adam())
    tensors.tensors.add(name=name, shape=[1] * 64)
    tensors.tensors.add(name="\x01" * 512, shape=[1] * 64)
    worker = "\U0001f409" * 32  # 128 bytes
    world.bare.create("x" * 128, [tensors], slices([0.0, 0.0]))
    with world.bare.attach("x" * 128, worker) as stream:
        with pytest.raises(Refusal) as caught:
            world.bare.attach("x" * 128, "another")
        assert caught.value.reason == "RUN_BUSY"
        assert caught.value.info.metadata["attached_worker_id"] == worker
        with pytest.raises(Refusal) as caught:
            stream.step(1, [0.0, float("nan")])
        assert caught.value.reason == "NON_FINITE_GRADIENT"
    with world.bare.attach("x" * 128, worker) as stream:
        with pytest.raises(Refusal) as caught:
            stream.step(1, [float("nan"), 0.0])
        assert caught.value.reason == "NON_FINITE_GRADIENT"
        assert caught.value.info.metadata["tensor"] == name
    with pytest.raises(Refusal) as caught:
        world.bare.create("\U0001f409" * 5000, [tensors], [])
    assert caught.value.reason == "INVALID_SPEC"


def test_an_unexpected_error_says_nothing_of_the_inside(world: World) -> None:
    """The traceback belongs into the server's log, not on the wire."""
    world.break_registry()
    started = time.monotonic()
    with pytest.raises(TABLE["INTERNAL"], match="the server's log says more") as caught:
        world.server.attach("x", retry=ONCE)
    assert "nobody planned" not in str(caught.value)
    assert time.monotonic() - started < 20
