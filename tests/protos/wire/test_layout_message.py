"""Layouts and the groups of a spec, which are the same said twice."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gradwire.v1 import run_pb2
from gradwire.wire.errors import InvalidSpec
from gradwire.wire.layout import MAX_TENSORS, Layout
from gradwire.wire.layout_message import decode_layout, encode_tensors

GROUPS = st.lists(
    st.lists(
        st.tuples(st.text(min_size=1, max_size=200), st.lists(st.integers(0, 2**40), max_size=3).map(tuple)),
        min_size=1,
        max_size=5,
        unique_by=lambda tensor: tensor[0],
    ),
    min_size=1,
    max_size=3,
)


@given(GROUPS)
def test_what_is_encoded_is_what_protobuf_would_write_and_comes_back(
    groups: list[list[tuple[str, tuple[int, ...]]]],
) -> None:
    named = [[(f"{index}.{name}", shape) for name, shape in group] for index, group in enumerate(groups)]
    expected = [
        run_pb2.Group(tensors=[run_pb2.Tensor(name=name, shape=shape) for name, shape in group]) for group in named
    ]
    layout = Layout(named)
    assert encode_tensors(layout) == tuple(group.SerializeToString() for group in expected)
    assert decode_layout(expected).tensors == layout.tensors


def test_too_many_tensors_are_refused_before_anything_is_built_from_them() -> None:
    group = run_pb2.Group()
    for _ in range(MAX_TENSORS + 1):
        group.tensors.add()  # nameless: they would be refused for that, were they looked at
    with pytest.raises(InvalidSpec, match="expected at most 65536"):
        decode_layout([group])
