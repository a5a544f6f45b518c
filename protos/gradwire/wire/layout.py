"""Names <-> ranges of the flat vector.

A layout is an ordered list of tensors, packed without gaps; each group's tensors lie next to each other.
"""

from __future__ import annotations

import math
import re
from bisect import bisect_left, bisect_right
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, chain
from typing import Any, NamedTuple, NoReturn

import numpy as np
import numpy.typing as npt

from gradwire.wire.errors import InvalidSpec, shorten

MAX_ELEMENTS = 2**31 - 1
"""Largest flat vector of one run; a larger one would have to be cut into several placements."""

MAX_TENSORS = 65_536
"""Tensors of one run; their names and shapes are held in memory beside the values."""

MAX_TENSOR_NAME_BYTES = 512
MAX_DIMENSIONS = 64
"""numpy's own limit."""

TENANT_NAME = r"[a-z0-9][a-z0-9-]{0,62}"
"""Pattern of the names of tenants, of ASCII."""

_TENANT_PREFIX = re.compile(rf"tenants/{TENANT_NAME}/(?=runs/)", re.ASCII)
_RUN_NAME = re.compile(r"runs/([A-Za-z0-9][A-Za-z0-9._-]{0,127})", re.ASCII)


class Range(NamedTuple):
    """Elements ``start .. stop`` of a flat vector."""

    start: int
    stop: int


@dataclass(frozen=True)
class TensorLayout:
    """One tensor's place. ``start`` and ``size`` count elements."""

    name: str
    shape: tuple[int, ...]
    group: int
    start: int
    size: int

    @property
    def stop(self) -> int:
        return self.start + self.size


class Columns(NamedTuple):
    """The tensors of a layout as arrays."""

    starts: npt.NDArray[np.int64]
    """Elements."""
    stops: npt.NDArray[np.int64]
    groups: npt.NDArray[np.int64]


class Layout:
    """The ordered tensors of a run.

    Args:
        groups: for each group the (name, shape) pairs of its tensors.

    Raises InvalidSpec for no group, an empty group, an empty, overlong or repeated name, or a negative dimension.
    """

    def __init__(self, groups: Sequence[Sequence[tuple[str, tuple[int, ...]]]]) -> None:
        if not groups:
            raise InvalidSpec("a run needs at least one group of tensors")
        check_tensor_count(sum(len(members) for members in groups))
        self.names = [name for members in groups for name, _ in members]
        known: dict[tuple[int, ...], tuple[int, ...]] = {}  # most shapes are those of many tensors
        self.shapes = [known.setdefault(shape, shape) for members in groups for _, shape in members]
        if not self._is_good(groups):
            _refuse(groups)
        self.groups = len(groups)
        self.first_tensors = [0, *accumulate(map(len, groups))][:-1]
        """Of each group."""
        self.elements = sum(map(math.prod, self.shapes))
        self._whole = (Range(0, self.elements),) if self.elements else ()

    def _is_good(self, groups: Sequence[Sequence[Any]]) -> bool:
        """Whether there is nothing to refuse. Looks at all tensors at once: a run may have many."""
        if not all(groups) or len({*self.names}) != len(self.names) or not all(self.names):
            return False
        sizes = map(len, self.names) if "".join(self.names).isascii() else (len(name.encode()) for name in self.names)
        if max(sizes) > MAX_TENSOR_NAME_BYTES or max(map(len, self.shapes)) > MAX_DIMENSIONS:
            return False
        return min(chain.from_iterable(self.shapes), default=0) >= 0

    @cached_property
    def index(self) -> dict[str, int]:
        """Of each tensor, by name."""
        return {name: index for index, name in enumerate(self.names)}

    @cached_property
    def indices(self) -> frozenset[int]:
        """Of all tensors."""
        return frozenset(range(len(self.names)))

    @cached_property
    def _starts(self) -> list[int]:
        return [0, *accumulate(map(math.prod, self.shapes))][:-1]

    @cached_property
    def tensors(self) -> tuple[TensorLayout, ...]:
        """All of them, each with its place. Where there may be many, what only counts or compares takes columns."""
        return tuple(self._tensor(index) for index in range(len(self.names)))

    def _tensor(self, index: int) -> TensorLayout:
        start = self._starts[index]
        size = math.prod(self.shapes[index])
        group = bisect_right(self.first_tensors, index) - 1
        return TensorLayout(self.names[index], self.shapes[index], group, start, size)

    @cached_property
    def columns(self) -> Columns:
        """For a vector of at most MAX_ELEMENTS, which is all that can be trained."""
        bounds = np.array([*self._starts, self.elements], np.int64)
        lengths = np.diff([*self.first_tensors, len(self.names)])
        return Columns(bounds[:-1], bounds[1:], np.repeat(np.arange(self.groups), lengths))

    def present(self, absent: Collection[int]) -> npt.NDArray[np.bool_]:
        """Whether each tensor is not in ``absent``."""
        found = np.ones(len(self.names), np.bool_)
        found[np.fromiter(absent, np.intp, len(absent))] = False
        return found

    def present_ranges(self, absent: Collection[int]) -> tuple[Range, ...]:
        """The flat vector without the tensors whose indices are in ``absent``, as few ranges as possible, in order."""
        if not absent:
            return self._whole
        starts, stops, _ = self.columns
        kept = self.present(absent) & (starts < stops)
        starts, stops = starts[kept], stops[kept]
        apart = starts[1:] != stops[:-1]
        first, last = np.append(True, apart), np.append(apart, True)
        return tuple(map(Range, starts[first].tolist(), stops[last].tolist())) if starts.size else ()

    def tensors_in(self, part: Range) -> range:
        """Indices of the tensors that have elements in ``part``; empty tensors between them are included."""
        first = bisect_right(self._starts, part.start) - 1
        return range(max(first, 0), max(bisect_left(self._starts, part.stop), first))

    def tensor_at(self, element: int) -> TensorLayout:
        """The tensor that holds ``element`` of the flat vector."""
        return self._tensor(bisect_right(self._starts, element) - 1)


def shape_text(tensor: TensorLayout) -> str:
    """A tensor as error messages name it: its name, cut short, and its shape."""
    return f"{shorten(tensor.name)!r} of shape {tensor.shape}"


def merge(ranges: Iterable[Range]) -> tuple[Range, ...]:
    """Ordered ranges with neighbours joined and empty ones dropped."""
    merged: list[Range] = []
    for part in ranges:
        if part.start == part.stop:
            continue
        if merged and merged[-1].stop == part.start:
            merged[-1] = Range(merged[-1].start, part.stop)
        else:
            merged.append(part)
    return tuple(merged)


def check_tensor_count(count: int) -> None:
    """Raises InvalidSpec for more tensors than a run may have."""
    if count > MAX_TENSORS:
        raise InvalidSpec(f"the run has {count} tensors; expected at most {MAX_TENSORS}", max_tensors=MAX_TENSORS)


def parse_run_name(name: str) -> str:
    """NAME of the resource name ``runs/NAME``. Raises InvalidSpec."""
    match = _RUN_NAME.fullmatch(name)
    if match is None:
        raise InvalidSpec(
            f"{shorten(name)!r} is no run name; expected runs/NAME, NAME being 1 to 128 of A-Z a-z 0-9 . _ - "
            "and starting with a letter or digit"
        )
    return match[1]


def run_resource(name: str) -> str:
    """The resource name of the run that users call ``name``: their own, or, as ``tenants/TENANT/runs/NAME``, another
    tenant's, which is for administrators. Raises InvalidSpec."""
    tenant = _TENANT_PREFIX.match(name)
    whole = name if tenant else f"runs/{name}"
    parse_run_name(whole[tenant.end() :] if tenant else whole)
    return whole


def _refuse(groups: Sequence[Sequence[tuple[str, tuple[int, ...]]]]) -> NoReturn:
    """Raises InvalidSpec for the first thing that is wrong."""
    seen: set[str] = set()
    for group, members in enumerate(groups):
        if not members:
            raise InvalidSpec(f"group {group} has no tensors; every group needs at least one")
        for name, shape in members:
            _check_tensor(name, shape)
            if name in seen:
                raise InvalidSpec(f"tensor name {shorten(name)!r} appears twice; names must be unique in a run")
            seen.add(name)
    raise AssertionError("a layout that is good was about to be refused")


def _check_tensor(name: str, shape: tuple[int, ...]) -> None:
    if not name or len(name.encode()) > MAX_TENSOR_NAME_BYTES:
        raise InvalidSpec(
            f"tensor name {shorten(name)!r} has {len(name.encode())} bytes; expected 1 to {MAX_TENSOR_NAME_BYTES}"
        )
    if len(shape) > MAX_DIMENSIONS or any(dimension < 0 for dimension in shape):
        raise InvalidSpec(
            f"tensor {shorten(name)!r} has shape {shorten(str(shape))}; "
            f"expected at most {MAX_DIMENSIONS} dimensions, each >= 0"
        )
