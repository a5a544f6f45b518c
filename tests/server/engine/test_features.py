"""What a run may need its workers to understand: the domain's words, and those of the contract."""

from __future__ import annotations

import pytest

from gradwire.server.engine.features import Feature, require_understood
from gradwire.server.rpc.codec import decode_features
from gradwire.v1 import train_pb2
from gradwire.wire.errors import ClientTooOld


def test_the_words_are_those_of_the_contract() -> None:
    contract = {name.removeprefix("FEATURE_"): number for name, number in train_pb2.Feature.items() if number}
    assert {feature.name: feature.value for feature in Feature} == contract


def test_what_a_newer_client_knows_besides_is_left_aside() -> None:
    attach = train_pb2.Attach()
    attach.understands.extend([77, train_pb2.FEATURE_LANE, 0, train_pb2.FEATURE_SHARED_RUN, 77])  # type: ignore[list-item]
    found = decode_features(train_pb2.Attach.FromString(attach.SerializeToString()).understands)
    assert found == {Feature.LANE, Feature.SHARED_RUN}
    assert all(isinstance(feature, Feature) for feature in found)


def test_a_run_that_needs_nothing_takes_everybody() -> None:
    require_understood("runs/x", frozenset(), ())
    require_understood("runs/x", {Feature.LANE}, set(Feature))


def test_each_missing_feature_is_named() -> None:
    with pytest.raises(ClientTooOld, match=r"runs/x needs clients that understand SHARED_RUN, LANE,") as caught:
        require_understood("runs/x", {Feature.LANE, Feature.PLACEMENTS, Feature.SHARED_RUN}, {Feature.PLACEMENTS})
    assert caught.value.metadata == {"feature": "SHARED_RUN, LANE"}
    assert caught.value.applied is False
