"""Reads the series of a run, and logs what belongs to no block any more."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from gradwire.client.transport.link import Link
from gradwire.client.transport.retry import RetryPolicy, retrying
from gradwire.v1 import service_pb2


@dataclass(frozen=True, eq=False)
class Series:
    """One scalar over the steps of a run: what is kept of it, in buckets, and only those with values. All arrays have
    the same length."""

    name: str
    bucket_steps: int
    """Steps of each bucket, a power of two; 1 as long as all values fit."""
    first_step: npt.NDArray[np.int64]
    """The bucket holds the values of steps ``first_step .. first_step + bucket_steps - 1``."""
    first: npt.NDArray[np.float64]
    minimum: npt.NDArray[np.float64]
    """NaN is left out where there is another value."""
    maximum: npt.NDArray[np.float64]
    last: npt.NDArray[np.float64]
    total: npt.NDArray[np.float64]
    """Sum of the values."""
    count: npt.NDArray[np.int64]
    last_step: int
    """Of the newest value."""

    @property
    def mean(self) -> npt.NDArray[np.float64]:
        """Of the values of each bucket."""
        return self.total / self.count


def read_series(
    link: Link,
    name: str,
    uid: str,
    retry: RetryPolicy | None,
    series: Sequence[str] = (),
    from_step: int = 0,
    resolution: int = 0,
) -> tuple[list[Series], list[str]]:
    """Those that there are of ``series``, or all, and the names of all; see ``gradwire.v1.GetSeriesRequest``."""
    request = service_pb2.GetSeriesRequest(
        name=name, run_uid=uid, series=series, from_step=from_step, resolution=resolution
    )
    found = retrying(lambda: link.stub.GetSeries(request), retry, link)
    return [decode_series(message) for message in found.series], list(found.names)


def decode_series(message: service_pb2.Series) -> Series:
    """As arrays."""
    return Series(
        name=message.name,
        bucket_steps=message.bucket_steps,
        first_step=np.array(message.first_step, np.int64),
        first=_floats(message.first),
        minimum=_floats(message.minimum),
        maximum=_floats(message.maximum),
        last=_floats(message.last),
        total=_floats(message.total),
        count=np.array(message.count, np.int64),
        last_step=message.last_step,
    )


def _floats(values: Any) -> npt.NDArray[np.float64]:
    return np.array(values, np.float64)
