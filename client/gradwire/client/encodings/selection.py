"""Which encodings a worker has, one for each direction, by what its attachment asks for."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from gradwire.client.encodings import flat_vector
from gradwire.client.encodings.gradients import DenseGradients, GradientEncoder, Int8Gradients
from gradwire.client.encodings.parameters import DeltaParameters, DenseParameters, ParameterDecoder
from gradwire.v1 import run_pb2, train_pb2
from gradwire.wire.encoding import wire_dtype
from gradwire.wire.int8 import Blocks
from gradwire.wire.layout import Layout, Range


@dataclass(frozen=True)
class Encodings:
    """What writes the gradients of one worker and reads the parameters that it is sent."""

    gradients: GradientEncoder
    parameters: ParameterDecoder

    def begin_stream(self) -> None:
        """A stream has been attached: what it carries does not lean on what earlier ones carried."""
        self.gradients.drop()
        self.parameters.restart()


def encodings_of(attach: train_pb2.Attach, layout: Layout, state: np.dtype[Any]) -> Encodings:
    """Those of the streams that begin with ``attach``. Raises ProtocolViolation."""
    int8 = run_pb2.ENCODING_INT8
    blocks = functools.cache(lambda: Blocks(layout))

    def whole_blocks(ranges: Sequence[Range], row_bytes: int, slice_bytes: int) -> Iterable[Range]:
        return blocks().tiles(ranges, slice_bytes // row_bytes)

    decoder = (
        DeltaParameters(blocks())
        if attach.parameter_encoding == int8
        else DenseParameters(wire_dtype(attach.parameter_encoding, state))
    )
    if attach.gradient_encoding == int8:
        return Encodings(Int8Gradients(layout, blocks()), decoder)
    # The server answers slice by slice; of a slice that cuts a block it cannot send the ends as INT8.
    tiles = whole_blocks if attach.parameter_encoding == int8 else flat_vector.tiles
    return Encodings(DenseGradients(layout, wire_dtype(attach.gradient_encoding, state), tiles), decoder)
