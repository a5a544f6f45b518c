"""Gradients leave while autograd still computes others."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from gradwire.client.torch.tensors import Array, GradientMark, RemoteTensor
from gradwire.client.torch.uncompiled import uncompiled
from gradwire.client.training.early_gradients import Source
from gradwire.wire.encoding import SLICE_BYTES


class Overlap:
    """Watches the parameters' gradients and hands over each bucket of them that is complete.

    A bucket holds neighbours of the flat vector, so that small tensors share messages. Autograd calls from threads of
    its own; this keeps no reference in the parameters that would keep it alive.

    Args:
        tensors: in layout order.
        send: takes name -> source of one bucket; False: it could not be sent, and `step` will.
    """

    def __init__(self, tensors: Sequence[RemoteTensor], send: Callable[[Mapping[str, Source]], bool]) -> None:
        self._tensors = tensors
        self._send = send
        self._lock = threading.Lock()
        self._paused = 0
        self._failed = False  # no further attempts in this step: each may have to wait for a server that is away
        self._marks: dict[str, GradientMark] = {}
        self._buckets: list[_Bucket] = []
        self._handles: dict[int, Any] = {}
        self.watch()

    def watch(self) -> None:
        """Watches all parameters that need a gradient; those that were frozen before, too."""
        wanted = {index for index, tensor in enumerate(self._tensors) if tensor.param.requires_grad}
        if wanted == self._handles.keys():
            return
        for index in self._handles.keys() - wanted:
            self._handles.pop(index).remove()
        with self._lock:
            self._buckets = list(_buckets(self._tensors, sorted(wanted)))
            bucket_of = {index: bucket for bucket in self._buckets for index in bucket.members}
        for index in wanted:
            if index in self._handles:
                self._handles[index].remove()
            register: Any = self._tensors[index].param.register_post_accumulate_grad_hook
            self._handles[index] = register(_hook(weakref.ref(self), index, bucket_of[index]))

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Nothing is sent inside."""
        self._paused += 1
        try:
            yield
        finally:
            self._paused -= 1

    def accumulated(self, index: int, bucket: _Bucket) -> None:
        """Autograd has added to the gradient of tensor ``index``."""
        with self._lock:
            if self._paused or self._failed:
                return
            bucket.arrived.add(index)
            if len(bucket.arrived) < len(bucket.members):
                return
            bucket.arrived.clear()
            marks = {}
            for member in bucket.members:
                grad = self._tensors[member].param.grad
                if grad is None or grad.layout is not torch.strided or tuple(grad.shape) != self._tensors[member].shape:
                    return  # for `step` to refuse
                marks[self._tensors[member].name] = GradientMark(grad)
            if self._send({name: mark.read for name, mark in marks.items()}):
                self._marks.update(marks)
            else:
                self._failed = True

    def still_holding(self, arrays: Mapping[str, Array]) -> Collection[str]:
        """Those of the gradients (name -> values) that have left as they are now."""
        grads = {tensor.name: tensor.param.grad for tensor in self._tensors if tensor.name in self._marks}
        return [
            name
            for name, mark in self._marks.items()
            if (grad := grads[name]) is not None and name in arrays and mark.holds(grad, arrays[name])
        ]

    def forget(self) -> None:
        """What has left is of no use."""
        with self._lock:
            self._marks.clear()
            self._failed = False
            for bucket in self._buckets:
                bucket.arrived.clear()

    @property
    def begun(self) -> bool:
        """Whether anything of the next step has left."""
        return bool(self._marks)

    def close(self) -> None:
        """Watches no longer."""
        for handle in self._handles.values():
            handle.remove()
        self._handles.clear()


class _Bucket:
    """Tensors that leave together, and which of them have a new gradient."""

    def __init__(self, members: Sequence[int]) -> None:
        self.members = members
        self.arrived: set[int] = set()


def _buckets(tensors: Sequence[RemoteTensor], watched: Sequence[int]) -> Iterator[_Bucket]:
    members: list[int] = []
    size = 0
    for index in watched:
        members.append(index)
        size += tensors[index].param.numel() * tensors[index].param.element_size()
        if size >= SLICE_BYTES:
            yield _Bucket(members)
            members, size = [], 0
    if members:
        yield _Bucket(members)


def _hook(overlap: weakref.ref[Overlap], index: int, bucket: _Bucket) -> Callable[[torch.Tensor], None]:
    @uncompiled
    def hook(_: torch.Tensor) -> None:
        alive = overlap()
        if alive is not None:
            alive.accumulated(index, bucket)

    return hook
