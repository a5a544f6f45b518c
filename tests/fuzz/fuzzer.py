"""Sends what `messages` makes to a server with tenants, and looks what becomes of it and of a bystander."""

from __future__ import annotations

import struct
from collections import Counter
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from google.rpc import status_pb2

from gradwire.v1 import run_pb2, service_pb2, train_pb2
from gradwire.wire.errors import STATUS_DETAILS_KEY, TABLE, from_status
from tests.contract.bare import BareClient, BareStream, group, unpack
from tests.faults.hosted import HostedServer, eventually
from tests.faults.raw_http2 import RawConnection
from tests.fuzz.messages import METHODS, NAMES, Maker
from tests.integration.access import AccessFile, secret_of

CALL_SECONDS = 60.0
"""For which a call may take, on a busy machine; longer, it hangs."""

SORTED_METHODS = sorted(set(METHODS) - {"StreamSeries"})
"""Those that come to an end."""

VICTIM = "secret"
SIZE = 50


class Broken(AssertionError):
    """Raised for an answer that the contract does not know; says how to see it again."""


class Fuzzer:
    """A server of its own, and its tenants: ``fuzz``, which sends anything, and ``victim``, which trains. A context
    manager. Cases are numbered; each is the same whenever it is sent to a server in the same condition."""

    def __init__(self, directory: Path, **settings: Any) -> None:
        access = AccessFile(directory / "access.toml", ("fuzz", "victim"))
        for role in ("read", "contribute", "train"):
            access.add(role, "fuzz", role)
        access.add("victim", "victim", "train")
        access.add("admin", "fuzz", "admin")
        limits = {"max_parameters": 10_000, "max_memory": 64 * 2**20, "max_result": 2**20, "stall_timeout_seconds": 5.0}
        self.hosted = HostedServer(access=str(access.path), **{**limits, **settings})
        self.outcomes: Counter[str] = Counter()
        # gRPC's own client starts two threads a call, which takes longer than all that the server does.
        self._connection = RawConnection(self.hosted.target)
        self._connection.settimeout(CALL_SECONDS)
        self._bystander = Bystander(BareClient(self.hosted.target, secret_of("victim")))
        self.at_rest_bytes = self.hosted.used_bytes

    def run(self, case: int) -> int:
        """Sends one case; returns of how many messages. Raises Broken."""
        maker = Maker(case)
        method = "Train" if maker.random.random() < 0.3 else maker.random.choice(SORTED_METHODS)
        if case % 10 == 0:
            self._plant(NAMES[case // 10 % len(NAMES)], maker.shared() if case // 10 % 3 == 0 else None)
        token = maker.random.choices(["train", "contribute", "read", "nobody", ""], [70, 10, 5, 5, 10])[0]
        messages = maker.stream(method)
        self.outcomes[self._call(method, messages, token, f"case {case}, {method}")] += 1
        if case % 50 == 0:
            self._bystander.step()
        return len(messages)

    def _plant(self, name: str, shared: run_pb2.SharedRun | None) -> None:
        """Sees to it that there is a run of this name: what does not get past a name reaches little. Where there is no
        memory, a run of what was sent before takes it, perhaps."""
        spec = run_pb2.RunSpec(name=f"runs/{name}", groups=[group(w=[3])], shared=shared)
        header = service_pb2.CreateRunHeader(spec=spec, request_id="planted", replace=True)
        values = run_pb2.Slice(data=struct.pack("<3f", 1, 2, 3))
        messages = [service_pb2.CreateRunRequest(header=header), service_pb2.CreateRunRequest(slice=values)]
        self._call("CreateRun", [message.SerializeToString() for message in messages], "train", f"planting {name}")

    def _call(self, method: str, messages: list[bytes], token: str, what: str) -> str:
        """The reason of the refusal, or OK. Raises Broken for an answer that the table does not know, or that nobody
        has planned for."""
        metadata = [("authorization", f"Bearer {secret_of(token)}")] if token else []
        try:
            end = self._connection.call(method, messages, metadata)
        except TimeoutError:
            raise Broken(f"{what}: no answer within {CALL_SECONDS:g} s") from None
        code = end.get("grpc-status", b"missing")
        if code == b"0":
            return "OK"
        details = end.get(STATUS_DETAILS_KEY)
        refusal = None if details is None else from_status(status_pb2.Status.FromString(details.removeprefix(b"\0")))
        if refusal is None or refusal.reason not in TABLE or refusal.reason == "INTERNAL":
            raise Broken(f"{what}: status {code.decode()}: {end.get('grpc-message', b'').decode()}")
        if int(code) != refusal.code:
            raise Broken(f"{what}: status {code.decode()} beside {refusal.reason}")
        return refusal.reason

    def finish(self) -> None:
        """Raises Broken, AssertionError unless all is as if nothing had been sent, but for the runs of ``fuzz``."""
        self._bystander.check()
        with BareClient(self.hosted.target, secret_of("train")) as owner:
            while names := [run.name for run in owner.call("ListRuns", service_pb2.ListRunsRequest()).runs]:
                for name in names:
                    owner.call("DeleteRun", service_pb2.DeleteRunRequest(name=name))
        eventually(lambda: self.hosted.used_bytes == self.at_rest_bytes, "the memory is given back")

    def close(self) -> None:
        self._bystander.close()
        self._connection.close()
        self.hosted.close()

    def __enter__(self) -> Fuzzer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class Bystander:
    """Trains a run of another tenant, and the same run on a server that nobody disturbs."""

    def __init__(self, client: BareClient) -> None:
        self._quiet = HostedServer()
        self._clients = [client, BareClient(self._quiet.target)]
        self._random = np.random.default_rng(0)
        start = self._random.normal(size=SIZE).tolist()
        for one in self._clients:
            one.create(VICTIM, [group(w=[SIZE])], start, durability=run_pb2.DURABILITY_MEMORY)
        attach = train_pb2.Attach(run=f"runs/{VICTIM}", worker_id="bystander")
        self._streams = [BareStream(one.stub, attach, one.metadata, 1e5) for one in self._clients]
        self._sequence = 0

    def step(self) -> None:
        """Raises AssertionError where the two are not the same, bit for bit."""
        self._sequence += 1
        gradient = self._random.normal(size=SIZE).tolist()
        answers = []
        for stream in self._streams:
            stream.send(
                train_pb2.Gradients(
                    sequence=self._sequence,
                    data=np.array(gradient, "<f4").tobytes(),
                    last=True,
                    header=train_pb2.BlockHeader(),
                )
            )
            answers.append([unpack(part.data) for part in stream.answer()])
        assert answers[0] == answers[1], f"the bystander's step {self._sequence}"

    def check(self) -> None:
        """As `step`, of the whole run."""
        self.step()
        digests = {
            one.call("DigestRun", service_pb2.DigestRunRequest(name=f"runs/{VICTIM}")).sha256 for one in self._clients
        }
        assert len(digests) == 1

    def close(self) -> None:
        for stream in self._streams:
            stream.close()
        for client in self._clients:
            client.__exit__(None, None, None)
        self._quiet.close()
