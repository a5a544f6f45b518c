"""A run as one safetensors file, which any program that knows tensors opens too, and back."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from gradwire.server.durability.records import groups_to_data, spec_from_text, spec_to_text
from gradwire.server.durability.run_snapshot import PARAMETERS
from gradwire.server.engine.run import Run
from gradwire.server.engine.spec import Durability, RunSpec
from gradwire.server.engine.threads import in_thread
from gradwire.server.optimizers.base import Hyperparameters
from gradwire.server.runs.creation import Creation
from gradwire.server.runs.operations import groups_of, tensor_steps_of
from gradwire.server.runs.registry import Registry
from gradwire.server.runs.transfer import check_state
from gradwire.server.series.stored_series import check_data
from gradwire.server.store.base import Snapshot, SnapshotDamaged, Vector
from gradwire.server.store.json_text import joined, list_text
from gradwire.server.store.writer import refusing
from gradwire.wire.encoding import SLICE_BYTES
from gradwire.wire.errors import GradwireError, InvalidSpec, MemoryLimitExceeded, ProtocolViolation
from gradwire.wire.layout import Layout

FORMAT = 1

_HEADER_BYTES = 100_000_000
"""safetensors reads no file with a longer header."""

_RESERVED = "__metadata__"
"""A tensor of this name is none to safetensors."""


@dataclass(frozen=True)
class ExportedFile:
    """``pieces()`` makes the bytes, ``size_bytes`` of them."""

    step: int
    header: bytes
    vectors: tuple[Vector, ...]

    @property
    def size_bytes(self) -> int:
        return len(self.header) + sum(v.dtype.itemsize * int(np.prod(v.shape, dtype=np.int64)) for v in self.vectors)

    def pieces(self) -> Iterator[bytes]:
        """Blocks where the vectors are on a disk or a GPU."""
        for start in range(0, len(self.header), SLICE_BYTES):
            yield self.header[start : start + SLICE_BYTES]
        for vector in self.vectors:
            for piece in vector.pieces():
                data = np.ascontiguousarray(piece).view(np.uint8)
                for start in range(0, data.size, SLICE_BYTES):
                    yield data[start : start + SLICE_BYTES].tobytes()


def export(run: Run, snapshot: Snapshot, weights_only: bool, called: str) -> ExportedFile:
    """Not for the event loop: there may be many tensors.

    Args:
        called: the run's name, as its owner says it.

    Raises InvalidSpec where a tensor's name is in the way: nobody could read the file.
    """
    from gradwire.server.store.snapshots import safetensors_header

    slots = () if weights_only else run.spec.slots
    layout = run.spec.layout
    shapes = dict(zip(layout.names, layout.shapes, strict=True))
    if _RESERVED in shapes:
        raise InvalidSpec(f"tensor {_RESERVED!r} has a name that safetensors keeps for itself, so no file can hold it")
    for slot in slots:
        for tensor, shape in zip(layout.names, layout.shapes, strict=True):
            name = slot_name(slot, tensor)
            if name in shapes:
                raise InvalidSpec(f"tensor {name!r} has the name of another one's state; export the weights only")
            shapes[name] = shape
    metadata = {} if weights_only else {"gradwire": _description(run, snapshot, called)}
    header = safetensors_header({name: (run.spec.dtype, shape) for name, shape in shapes.items()}, metadata)
    if len(header) > _HEADER_BYTES:
        raise InvalidSpec(
            f"the names of {run.spec.name}'s tensors take {len(header)} bytes of a file; safetensors reads at most "
            f"{_HEADER_BYTES}"
        )
    # The tensors lie in the flat vector as they will in the file: one after another, in layout order.
    return ExportedFile(snapshot.step, header, tuple(snapshot.vectors[name] for name in (PARAMETERS, *slots)))


def slot_name(slot: str, tensor: str) -> str:
    """What a tensor's slot is called in a file."""
    return f"optimizer.{slot}.{tensor}"


def _description(run: Run, snapshot: Snapshot, name: str) -> str:
    parts = {
        "format": json.dumps(FORMAT),
        "spec": spec_to_text(replace(run.spec, name=name)),
        "groups": list_text(groups_to_data(groups_of(snapshot))),
        "step": json.dumps(snapshot.step),
        "tensor_steps": list_text(tensor_steps_of(snapshot).tolist()),
    }
    series = json.loads(snapshot.meta).get("series")
    if series:  # files of runs without any are as they always were
        parts["series"] = json.dumps(series)
    return joined("{}", (f"{json.dumps(key)}: {part}" for key, part in parts.items()))


class Import:
    """A file on its way in."""

    def __init__(self, registry: Registry, path: Path, tenant: str) -> None:
        self._registry = registry
        self._tenant = tenant
        self._stored_bytes = registry.disk_use.of(tenant)
        self._path = path
        with refusing():
            self._file = path.open("wb")
        self._size_bytes = 0

    def add(self, data: bytes) -> None:
        """Takes the next bytes. Raises MemoryLimitExceeded for a file that no run of this server can come from,
        QuotaExceeded where the tenant may not have it on the disk, StorageFull, StorageFailed."""
        limit = self._registry.budget.limit_bytes
        if self._size_bytes + len(data) > limit:
            raise MemoryLimitExceeded(
                f"the file has more than {limit} bytes, and a run of it would have more than this server may hold"
            )
        # What arrives is no run yet; it has its end with the call.
        registry, arriving = self._registry, self._registry.disk_use.arriving_files
        registry.ledger.require_disk(self._tenant, self._stored_bytes + arriving[self._tenant], len(data), "the file")
        arriving[self._tenant] += len(data)
        self._size_bytes += len(data)
        with refusing():
            self._file.write(data)

    async def finish(
        self,
        name: str,
        request_id: str,
        *,
        replaces: bool,
        weights_only: bool,
        groups: Sequence[Hyperparameters],
        durability: Durability | None,
    ) -> tuple[Run, bool]:
        """Makes the run of it; returns it, and whether it is new. Raises InvalidSpec where it is no run's."""
        with refusing():
            self._file.close()
        registry = self._registry
        existing = registry.existing(name, request_id)
        if existing is not None:
            return existing, False
        if (len(groups) == 1) != weights_only or len(groups) > 1:
            raise ProtocolViolation(
                f"{len(groups)} groups are given; expected one with weights_only, else none: the file has them"
            )
        read = partial(_read, self._path, groups[0] if weights_only else None)
        spec, state, vectors = await in_thread(registry.executor, read)
        spec = replace(spec, name=name, durability=durability)
        creation = registry.begin_creation(spec, request_id, replaces, None)
        creation.origin = "from a file"
        try:
            if state is not None:
                try:
                    creation.run.tensor_steps = check_state(creation.run, spec.slots, state.step, state.tensor_steps)
                except ProtocolViolation as error:
                    raise InvalidSpec(f"the file's description of the run makes no sense: {error}") from error
                creation.run.step = state.step
                creation.run.series.load(state.series)
            await registry.prepare(creation.run)
            await in_thread(registry.executor, partial(_fill, creation, vectors, state is not None))
            run = await registry.finish_creation(creation)
        finally:
            creation.abandon()
        return run, run is creation.run

    def close(self) -> None:
        """May be called more than once."""
        self._registry.disk_use.arriving_files[self._tenant] -= self._size_bytes
        self._size_bytes = 0
        with suppress(OSError):  # what is not written yet is of no use any more
            self._file.close()


@contextmanager
def importing(registry: Registry, tenant: str) -> Iterator[Import]:
    """A file of its own for an import, which is gone afterwards. Raises StorageFull, StorageFailed."""
    scratch = None if registry.stored_runs is None else registry.stored_runs.store.scratch
    with refusing():
        descriptor, path = tempfile.mkstemp(prefix="import-", suffix=".tmp", dir=scratch)
    os.close(descriptor)
    try:
        upload = Import(registry, Path(path), tenant)
        try:
            yield upload
        finally:
            upload.close()
    finally:
        os.unlink(path)


_NONSENSE = (GradwireError, ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError)
"""What comes of a description that somebody else has written: of other types, too large, too deep."""


@dataclass(frozen=True)
class _State:
    step: int
    tensor_steps: list[int]
    series: dict[str, Any]


def _read(path: Path, optimizer: Hyperparameters | None) -> tuple[RunSpec, _State | None, dict[str, Vector]]:
    """Spec, state and vectors of a file. Raises InvalidSpec."""
    from gradwire.server.store.snapshots import read_file

    try:
        metadata, vectors = read_file(path, None)
    except SnapshotDamaged as error:
        raise InvalidSpec(f"the file is no safetensors file that can be imported: {error}") from error
    if optimizer is not None:
        weights = {name: v for name, v in vectors.items() if "gradwire" not in metadata or not _is_slot(name, vectors)}
        return _spec_of_weights(weights, optimizer), None, weights
    if "gradwire" not in metadata:
        raise InvalidSpec("the file has no optimizer state of a run; import its weights only, and name an optimizer")
    try:
        data = json.loads(metadata["gradwire"])
        if data["format"] != FORMAT:
            raise ValueError(f"format {data['format']} is not known")
        spec = spec_from_text(json.dumps({**data["spec"], "groups": data["groups"]}))
        steps = [_count(step) for step in data["tensor_steps"]]
        state = _State(_count(data["step"]), steps, data.get("series", {}))
        check_data(state.series)
    except _NONSENSE as error:
        raise InvalidSpec(f"the file's description of the run makes no sense: {error}") from error
    expected = dict(zip(spec.layout.names, spec.layout.shapes, strict=True))
    expected |= {slot_name(slot, name): shape for slot in spec.slots for name, shape in expected.items()}
    for name, shape in expected.items():
        vector = vectors.get(name)
        if vector is None or (vector.shape, vector.dtype) != (shape, spec.dtype):
            found = "missing" if vector is None else f"{vector.dtype}{list(vector.shape)}"
            raise InvalidSpec(f"tensor {name!r} of the file is {found}; expected {spec.dtype}{list(shape)}")
    if len(vectors) != len(expected):
        raise InvalidSpec(f"the file has tensors that are none of the run: {sorted(set(vectors) - set(expected))[:3]}")
    return spec, state, vectors


def _spec_of_weights(vectors: Mapping[str, Vector], optimizer: Hyperparameters) -> RunSpec:
    layout = Layout([[(name, vector.shape) for name, vector in vectors.items()]])
    wide = all(vector.dtype.itemsize == 8 for vector in vectors.values())
    return RunSpec("", layout, np.dtype(np.float64 if wide else np.float32), (optimizer,))


def _is_slot(name: str, vectors: Mapping[str, Vector]) -> bool:
    prefix, _, rest = name.partition(".")
    return prefix == "optimizer" and rest.partition(".")[2] in vectors


def _count(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise ValueError(f"{value!r} is no number of steps")
    return value


def _fill(creation: Creation, vectors: dict[str, Vector], with_state: bool) -> None:
    """Uses ``vectors`` up: to free hundreds of thousands at once would keep the event loop waiting."""
    run, layout = creation.run, creation.run.spec.layout
    for name, start in zip(layout.names, layout.columns.starts.tolist(), strict=True):
        _write(run, run.state.params, start, vectors.pop(name))
        for slot in run.spec.slots if with_state else ():
            _write(run, run.state.slots[slot], start, vectors.pop(slot_name(slot, name)))


def _write(run: Run, target: Any, start: int, vector: Vector) -> None:
    for piece in vector.pieces():
        values: npt.NDArray[Any] = piece.reshape(1, -1)
        run.device.write(target, start, values)
        start += piece.size
