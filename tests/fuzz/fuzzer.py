"""Sends what `messages` makes to a server with tenants, and looks what becomes of it and of a bystander."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from types import TracebackType
from typing import Any

import grpc
import numpy as np
from google.rpc import status_pb2

from gradwire.v1 import run_pb2, service_pb2, train_pb2
from gradwire.wire.errors import STATUS_DETAILS_KEY, TABLE, from_status
from gradwire.wire.service import SERVICE_NAME
from tests.contract.bare import BareClient, BareStream, Refusal, group, unpack
from tests.faults.hosted import HostedServer, eventually
from tests.fuzz.messages import METHODS, NAMES, Maker
from tests.integration.access import AccessFile, secret_of

CALL_SECONDS = 60.0
"""For which a call may take, on a busy machine; longer, it hangs."""

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
        self._channel = grpc.insecure_channel(self.hosted.target)
        self._calls = {
            name: self._channel.stream_stream(f"/{SERVICE_NAME}/{name}", lambda data: data, lambda data: data)
            for name in METHODS
        }
        self._bystander = Bystander(BareClient(self.hosted.target, secret_of("victim")))
        self.at_rest_bytes = self.hosted.used_bytes
        self._owner = BareClient(self.hosted.target, secret_of("train"))

    def run(self, case: int) -> int:
        """Sends one case; returns of how many messages. Raises Broken."""
        maker = Maker(case)
        method = "Train" if maker.random.random() < 0.3 else maker.random.choice(sorted(METHODS))
        if case % 10 == 0:
            self._plant(NAMES[case // 10 % len(NAMES)])
        token = maker.random.choices(["train", "contribute", "read", "nobody", ""], [70, 10, 5, 5, 10])[0]
        metadata = (("authorization", f"Bearer {secret_of(token)}"),) if token else ()
        messages = maker.stream(method)
        call = self._calls[method](iter(messages), metadata=metadata, timeout=CALL_SECONDS)
        try:
            for _ in call:
                pass
            self.outcomes["OK"] += 1
        except grpc.RpcError as error:
            self._judge(case, method, error)
        if case % 50 == 0:
            self._bystander.step()
        return len(messages)

    def _plant(self, name: str) -> None:
        """Sees to it that there is a run of this name: what does not get past a name reaches little."""
        try:
            self._owner.create(name, [group(w=[3])], [1.0, 2.0, 3.0], request_id="planted", replace=True)
        except Refusal as refusal:  # no memory, perhaps: a run of what was sent before takes it
            if refusal.reason not in TABLE or refusal.reason == "INTERNAL":
                raise Broken(f"planting {name}: {refusal}") from None

    def _judge(self, case: int, method: str, error: Any) -> None:
        details = dict(error.trailing_metadata() or ()).get(STATUS_DETAILS_KEY)
        refusal = None if details is None else from_status(status_pb2.Status.FromString(details))
        if refusal is None or refusal.reason not in TABLE or refusal.reason == "INTERNAL":
            raise Broken(f"case {case}, {method}: {error.code().name}: {error.details()}")
        self.outcomes[refusal.reason] += 1

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
        self._owner.__exit__(None, None, None)
        self._channel.close()
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
