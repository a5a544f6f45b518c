"""A run that needs more than a client understands is refused to it by name; to others nothing happens."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import numpy as np
import pytest

from gradwire.client import AMSGrad, ClientTooOld, connect, stored_run
from gradwire.server.engine.features import Feature
from gradwire.server.engine.spec import RunSpec
from gradwire.v1 import train_pb2
from tests.contract.bare import BareClient, group, refused
from tests.faults.hosted import HostedServer


@pytest.fixture
def hosted() -> Iterator[HostedServer]:
    with HostedServer() as server:
        yield server


@pytest.fixture
def needing(monkeypatch: pytest.MonkeyPatch) -> None:
    """No kind of run needs anything yet: these need two features."""
    needs = frozenset({Feature.SHARED_RUN, Feature.REASONED_WAIT})
    monkeypatch.setattr(RunSpec, "needs", property(lambda spec: needs))


@pytest.mark.usefixtures("needing")
def test_a_client_that_lacks_a_feature_is_refused_by_its_name_and_disturbs_nobody(hosted: HostedServer) -> None:
    with BareClient(hosted.target) as bare:
        bare.create("x", [group(w=[2])], [0.0, 0.0])
        both = [train_pb2.FEATURE_REASONED_WAIT, train_pb2.FEATURE_SHARED_RUN]
        with bare.attach("x", understands=[*both, 99]) as stream:
            for understands, missing in (
                ([], "SHARED_RUN, REASONED_WAIT"),
                ([train_pb2.FEATURE_LANE], "SHARED_RUN, REASONED_WAIT"),
                (both[:1], "SHARED_RUN"),
                (both[1:], "REASONED_WAIT"),
            ):
                attach = partial(bare.attach, "x", "another", takeover=True, understands=understands)
                refusal = refused("CLIENT_TOO_OLD", attach)
                assert refusal.info.metadata["feature"] == missing
            assert bare.get("x").attached_worker_id == "worker"
            _, receipt = stream.step(1, [1.0, 1.0])
            assert receipt.step == 1


def test_runs_of_today_need_nothing_and_a_client_may_claim_what_it_likes(hosted: HostedServer) -> None:
    with BareClient(hosted.target) as bare:
        bare.create("x", [group(w=[2])], [0.0, 0.0])
        bare.attach("x").close()
        with bare.attach("x", understands=[1, 2, 3, 4, 5]) as stream:
            assert stream.attached.epoch == 2


@pytest.mark.usefixtures("needing")
def test_our_client_says_what_it_understands(hosted: HostedServer, monkeypatch: pytest.MonkeyPatch) -> None:
    with connect(hosted.target) as server:
        values = {"w": np.zeros(2, np.float32)}
        with monkeypatch.context() as older:
            older.setattr(stored_run, "UNDERSTANDS", ())
            with pytest.raises(ClientTooOld, match="needs clients that understand SHARED_RUN, REASONED_WAIT"):
                server.create_run("x", values, AMSGrad())
        assert server.attach("x").step({"w": np.ones(2, np.float32)}).step == 1
