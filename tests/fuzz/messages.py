"""Requests: good streams, bent; messages with any fields that their descriptors have; bytes that are none."""

from __future__ import annotations

import copy
import random
import struct
from collections.abc import Callable, Sequence
from typing import Any

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from gradwire.v1 import run_pb2, service_pb2, train_pb2

SERVICE = service_pb2.DESCRIPTOR.services_by_name["OptimizerService"]
METHODS = {method.name: method for method in SERVICE.methods}

NAMES = ["a", "b", "c"]
"""Of runs that are there now and then: requests for nothing but strangers reach no code behind the first check."""

_INTEGERS = [0, 1, 2, 3, 7, 255, 256, 2**16, 2**31 - 1, 2**31, 2**32 - 1, 2**53, 2**63 - 1, 2**64 - 1]
_FLOATS = [0.0, -0.0, 1e-3, 0.9, 0.999, 1.0, -1.0, 1e38, 1e308, 5e-324, float("inf"), float("-inf"), float("nan")]
_TEXTS = ["", "runs/a", "runs/b", "runs/new", "runs/", "w", "w\0", "\n", "\x1b[31m", "\u202e", "é" * 100, "x" * 300]
_TEXTS += [
    "tenants/victim/runs/secret",
    "tenants/default/runs/a",
    "../../etc/passwd",
    "runs/a/../secret",
    "%s%n",
    "'; --",
]
_INTEGER_TYPES = {
    FieldDescriptor.CPPTYPE_INT32: (-(2**31), 2**31 - 1),
    FieldDescriptor.CPPTYPE_INT64: (-(2**63), 2**63 - 1),
    FieldDescriptor.CPPTYPE_UINT32: (0, 2**32 - 1),
    FieldDescriptor.CPPTYPE_UINT64: (0, 2**64 - 1),
}


class Maker:
    """Makes the messages of one case from its own random numbers."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)

    def stream(self, method: str) -> list[bytes]:
        """Serialized requests of one call."""
        draw = self.random.random()
        good = self._good(method)
        if draw < 0.15:
            messages: Sequence[Message] = good
        elif draw < 0.65:
            messages = self._bent(good)
        else:
            count = self.random.choice([0, 1, 1, 2, 5]) if METHODS[method].client_streaming else 1
            messages = [self.message(METHODS[method].input_type) for _ in range(count)]
        serialized = [message.SerializeToString() for message in messages]
        if self.random.random() < 0.1:
            serialized = [self._spoilt(data) for data in serialized]
        return serialized

    def message(self, descriptor: Descriptor, depth: int = 0) -> Message:
        """One of this type, with some of its fields."""
        made: Any = GetMessageClass(descriptor)()
        if descriptor is run_pb2.Adam.DESCRIPTOR:
            made.CopyFrom(self._adam())
        elif descriptor is run_pb2.SharedRun.DESCRIPTOR:
            made.CopyFrom(self.shared())
        else:
            for field in descriptor.fields:
                if self.random.random() < (0.6 if depth < 4 else 0.1):
                    self._set(made, field, depth)
        message: Message = made
        return message

    def _set(self, message: Any, field: FieldDescriptor, depth: int) -> None:
        if field.is_repeated:
            for _ in range(self.random.choice([0, 1, 2, 3])):
                if field.message_type is not None:
                    getattr(message, field.name).add().CopyFrom(self.message(field.message_type, depth + 1))
                else:
                    getattr(message, field.name).append(self._scalar(field))
        elif field.message_type is not None:
            getattr(message, field.name).CopyFrom(self.message(field.message_type, depth + 1))
        else:
            setattr(message, field.name, self._scalar(field))

    def _scalar(self, field: FieldDescriptor) -> Any:
        kind, pick = field.cpp_type, self.random
        if kind in _INTEGER_TYPES:
            low, high = _INTEGER_TYPES[kind]
            return min(max(pick.choice([*_INTEGERS, pick.randrange(8)]), low), high)
        if kind in (FieldDescriptor.CPPTYPE_FLOAT, FieldDescriptor.CPPTYPE_DOUBLE):
            return pick.choice(_FLOATS)
        if kind == FieldDescriptor.CPPTYPE_BOOL:
            return pick.random() < 0.5
        if kind == FieldDescriptor.CPPTYPE_ENUM:
            assert field.enum_type is not None
            return pick.choice([*(value.number for value in field.enum_type.values), 99])
        if field.type == FieldDescriptor.TYPE_BYTES:
            return self._data(pick.choice([0, 1, 2, 3, 4, 17]))
        return pick.choice([*_TEXTS, *(f"runs/{name}" for name in NAMES)])

    def _adam(self) -> run_pb2.Adam:
        """Of few kinds: each new one is compiled, which takes longer than all the rest."""
        pick = self.random
        made = run_pb2.Adam(amsgrad=pick.random() < 0.5)
        for name in ("lr", "beta1", "beta2", "eps", "weight_decay", "low", "high"):
            if pick.random() < 0.2:
                setattr(made, name, pick.choice(_FLOATS))
        return made

    def shared(self) -> run_pb2.SharedRun:
        """One whose rounds end at once, for a stream that waits is no answer; or one that is refused."""
        pick = self.random
        fields: dict[str, Any] = {
            "quorum": pick.randrange(3),
            "deadline_seconds": 0.01,
            "lease_seconds": pick.choice([0.01, 30.0]),
            "max_staleness": pick.randrange(3),
            "at_least": pick.randrange(3),
            **{name: pick.randrange(3) for name in ("on_deadline", "stale", "combine", "clip")},
        }
        if pick.random() < 0.2:
            wrong = pick.choice(["deadline_seconds", "lease_seconds", "quorum_weight", "grace_seconds"])
            fields[wrong] = pick.choice([-1.0, float("nan"), float("inf")])
        return run_pb2.SharedRun(**fields)

    def _data(self, elements: int) -> bytes:
        values = [self.random.choice([*_FLOATS[:7], 0.5, -2.0, float("nan")]) for _ in range(elements)]
        data = struct.pack(f"<{elements}f", *values)
        return data if self.random.random() < 0.9 else data[: self.random.randrange(len(data) + 1)]

    def _bent(self, messages: list[Message]) -> list[Message]:
        """A good stream of which something is missing, doubled, out of order or different."""
        pick = self.random
        for _ in range(pick.choice([1, 1, 2])):
            if not messages:
                break
            at = pick.randrange(len(messages))
            act = pick.randrange(4)
            if act == 0 and len(messages) > 1:
                del messages[at]
            elif act == 1:
                messages.insert(pick.randrange(len(messages) + 1), messages[at])
            elif act == 2:
                pick.shuffle(messages)
            else:
                bent = copy.deepcopy(messages[at])
                self._bend(bent)
                messages[at] = bent
        return messages

    def _bend(self, message: Any) -> None:
        """Changes one field, of the message or of one that lies in it."""
        present = [field for field, _ in message.ListFields() if field.message_type is not None]
        inner = [field for field in present if not field.is_repeated]
        if inner and self.random.random() < 0.7:
            self._bend(getattr(message, self.random.choice(inner).name))
            return
        if message.DESCRIPTOR.fields:
            field = self.random.choice(message.DESCRIPTOR.fields)
            message.ClearField(field.name)
            self._set(message, field, 3)

    def _spoilt(self, data: bytes) -> bytes:
        if not data:
            return bytes([self.random.randrange(256)])
        at = self.random.randrange(len(data))
        cut = self.random.choice(
            [data[:at], data + b"\xff", data[:at] + bytes([self.random.randrange(256)]) + data[at + 1 :]]
        )
        return cut

    # --- good streams ------------------------------------------------------------------------------------------------

    def _good(self, method: str) -> list[Message]:
        name = f"runs/{self.random.choice(NAMES)}"
        request = GetMessageClass(METHODS[method].input_type)
        makers: dict[str, Callable[[], list[Message]]] = {
            "CreateRun": lambda: self._create(name),
            "Train": lambda: self._train(name),
            "WriteParameters": lambda: [
                request(header={"name": name, "partial": self.random.random() < 0.5}),
                request(slice={"data": self._data(3)}),
            ],
            "WriteState": lambda: [request(header={"name": name}), request(slice={"data": self._data(3)})],
            "ImportRun": lambda: [request(header={"name": name, "request_id": "i"}), request(data=self._data(17))],
            "ForkRun": lambda: [
                request(name=name, new_name=f"runs/{self.random.choice(NAMES)}", request_id="f", replace=True)
            ],
            "GetSeries": lambda: [request(name=name, resolution=self.random.randrange(3), series=["loss", "lr"])],
            "LogScalars": lambda: [
                request(
                    name=name,
                    worker_id=f"w{self.random.randrange(2)}",
                    number=self.random.randrange(1, 3),
                    epoch=self.random.randrange(4),
                    scalars=self._scalars(1),
                )
            ],
            "RollBack": lambda: [request(name=name, snapshot_id=self.random.randrange(4))],
        }
        if method in makers:
            return makers[method]()
        fields = METHODS[method].input_type.fields_by_name
        return [request(name=name) if "name" in fields else request()]

    def _create(self, name: str) -> list[Message]:
        group = run_pb2.Group(tensors=[run_pb2.Tensor(name="w", shape=[3])], adam=self._adam())
        spec = run_pb2.RunSpec(name=name, groups=[group])
        header = service_pb2.CreateRunHeader(spec=spec, request_id=f"r{self.random.randrange(3)}", replace=True)
        return [
            service_pb2.CreateRunRequest(header=header),
            service_pb2.CreateRunRequest(slice=run_pb2.Slice(data=struct.pack("<3f", 1, 2, 3))),
        ]

    def _scalars(self, steps: int) -> list[train_pb2.Scalar]:
        """None, mostly; values, or buckets."""
        pick = self.random
        found = []
        for name in pick.sample(["loss", "accuracy", "a b"], pick.choice([0, 0, 1, 2])):
            scalar = train_pb2.Scalar(name=name)
            if pick.random() < 0.5:
                scalar.values.append(pick.choice(_FLOATS))
            else:
                rows = sorted(pick.randrange(-5, steps) for _ in range(pick.randrange(1, 4)))
                scalar.block_steps.extend(rows)
                scalar.buckets.bucket_steps = pick.choice([1, 2, 2**20])
                for field in ("first", "minimum", "maximum", "last", "total"):
                    getattr(scalar.buckets, field).extend(pick.choice(_FLOATS) for _ in rows)
                scalar.buckets.count.extend(pick.choice([1, 5, 2**40]) for _ in rows)
            if pick.random() < 0.1:
                self._bend(scalar)
            found.append(scalar)
        return found

    def _train(self, name: str) -> list[Message]:
        attach = train_pb2.Attach(
            run=name, worker_id=f"w{self.random.randrange(2)}", takeover=self.random.random() < 0.7
        )
        shared = self.random.random() < 0.5
        if shared:
            attach.understands.extend([train_pb2.FEATURE_SHARED_RUN, train_pb2.FEATURE_REASONED_WAIT])
            attach.leads, attach.resumes = self.random.random() < 0.2, self.random.randrange(3)
        messages: list[Message] = [train_pb2.TrainRequest(attach=attach)]
        for sequence in range(1, self.random.randrange(1, 5)):
            header = train_pb2.BlockHeader(steps=1, scalars=self._scalars(1))
            if shared:
                header.contribution.CopyFrom(
                    train_pb2.Contribution(weight=self.random.choice([1.0, 0.5, 1e30]), base_step=max(0, sequence - 1))
                )
            block = train_pb2.Gradients(sequence=sequence, data=self._data(3), last=True, header=header)
            messages.append(train_pb2.TrainRequest(gradients=block))
        return messages
