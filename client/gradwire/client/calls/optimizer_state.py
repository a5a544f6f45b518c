"""A whole optimizer state on its way to the server."""

from __future__ import annotations

import operator
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from gradwire.client.encodings import flat_vector
from gradwire.v1 import service_pb2
from gradwire.wire.layout import Layout


@dataclass(frozen=True)
class StateUpload:
    """An optimizer state on its way to the server."""

    header: service_pb2.StateHeader
    vectors: list[npt.NDArray[Any]]

    def slices(self) -> Iterator[service_pb2.SlotSlice]:
        """All slots, in the header's order."""
        for slot, vector in enumerate(self.vectors):
            yield from flat_vector.slot_slices(slot, vector)


def pack_state(layout: Layout, dtype: np.dtype[Any], slots: Sequence[str], state: Mapping[str, Any]) -> StateUpload:
    """A state as `Run.state_dict` gives it. Raises ValueError or TypeError for one that does not fit."""
    if not isinstance(state, Mapping) or not {"step", "tensors"} <= set(state):
        raise ValueError('the state is no mapping with "step" and "tensors"; expected what `state_dict` returns')
    tensors: Mapping[str, Mapping[str, Any]] = state["tensors"]
    flat_vector.check_names(layout, tensors, "the state's tensors")
    for name, parts in tensors.items():
        if set(parts) != {"step", *slots}:
            raise ValueError(f"the state of {name!r} has {sorted(parts)}; expected {sorted(('step', *slots))}")
    vectors = [
        flat_vector.flatten(layout, {name: parts[slot] for name, parts in tensors.items()}, dtype, f"the {slot} values")
        for slot in slots
    ]
    header = service_pb2.StateHeader(
        step=operator.index(state["step"]),
        tensor_steps=[operator.index(tensors[tensor.name]["step"]) for tensor in layout.tensors],
        slots=slots,
    )
    return StateUpload(header, vectors)
