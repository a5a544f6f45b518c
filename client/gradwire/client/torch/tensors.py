"""torch tensors as the client's numpy arrays, and how a change of one is noticed."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import torch
from torch.nn.parameter import is_lazy

Array = npt.NDArray[Any]

FLOATS = (torch.float32, torch.float64, torch.bfloat16, torch.float16)

_LANES = 1021
"""64-bit words summed side by side. A prime: the rows of a real matrix do not lie under each other."""


def as_array(tensor: torch.Tensor) -> Array:
    """The values on the host, C-contiguous, in the tensor's own precision; shares memory where it can."""
    host = tensor.detach()
    if host.device.type != "cpu" or host.is_neg() or not host.is_contiguous():
        host = host.cpu().resolve_neg().contiguous()
    if host.dtype is torch.bfloat16:
        bits: Array = host.view(torch.int16).numpy()
        return bits.view(ml_dtypes.bfloat16)
    array: Array = host.numpy()
    return array


def fingerprint(array: Array) -> int:
    """A number that changes, for all practical purposes, when any value of a contiguous array does; at memory speed.

    A tensor's version misses what is done to its ``.data``, which training scripts do.
    """
    if array.nbytes < 8 * _LANES:
        return hash(array.tobytes())
    data = array.reshape(-1).view(np.uint8)
    whole = data.size // (8 * _LANES) * (8 * _LANES)
    lanes = np.add.reduce(data[:whole].view(np.uint64).reshape(-1, _LANES), axis=0)
    return hash((lanes.tobytes(), data[whole:].tobytes()))


def _version(tensor: torch.Tensor) -> int:
    return 0 if tensor.is_inference() else tensor._version


class Look:
    """A tensor's version, storage and, on the host, values, at one moment. Inference tensors have no version."""

    def __init__(self, tensor: torch.Tensor) -> None:
        device = tensor.device
        self._by_values = device.type == "cpu" or tensor.is_inference()
        self._version = _version(tensor)
        self._storage = (device, tensor.data_ptr())
        self._fingerprint = fingerprint(as_array(tensor)) if self._by_values else 0

    def changed(self, tensor: torch.Tensor) -> bool:
        """Whether the tensor has been written to since, or is another one."""
        if _version(tensor) != self._version or (tensor.device, tensor.data_ptr()) != self._storage:
            return True
        return self._by_values and fingerprint(as_array(tensor)) != self._fingerprint


class RemoteTensor:
    """A parameter, its place in the run, and what it looked like when it was last equal to the server's."""

    def __init__(self, name: str, param: torch.Tensor) -> None:
        self.name = name
        self.param = param
        self.shape = tuple(param.shape)
        self.dtype = param.dtype
        self._seen = Look(param)

    @property
    def edited(self) -> bool:
        """Whether somebody has changed the parameter since `note` (on a GPU: not through ``.data``)."""
        return self._seen.changed(self.param)

    def note(self) -> None:
        """The parameter is now as the server has it."""
        self._seen = Look(self.param)

    def differences(self, values: Array) -> npt.NDArray[np.bool_]:
        """Where the parameter is not, bit for bit, what `put` would make of ``values``."""
        taken = as_array(torch.from_numpy(values).to(self.param.dtype))
        bits = np.dtype(f"u{taken.itemsize}")
        return np.asarray(taken.view(bits) != as_array(self.param).view(bits))

    def check(self) -> None:
        """Raises ValueError where the parameter is no longer what the run was made for."""
        param = self.param
        if param.shape != self.shape:
            raise ValueError(
                f"parameter {self.name!r} has shape {tuple(param.shape)} now; the run has it as {self.shape}"
            )
        if param.dtype is not self.dtype:
            raise ValueError(f"parameter {self.name!r} is {param.dtype} now; the run was made for {self.dtype}")
        if param.is_meta:
            raise ValueError(f"parameter {self.name!r} is on the meta device now, where it has no values to update")

    def gradient(self) -> Array | None:
        """The gradient, or None. Raises TypeError for a sparse or complex one, ValueError for another shape."""
        grad = self.param.grad
        if grad is None:
            return None
        if grad.layout is not torch.strided:
            raise TypeError(f"the gradient of {self.name!r} is sparse; expected a dense one (Embedding: sparse=False)")
        if grad.dtype not in FLOATS:
            raise TypeError(f"the gradient of {self.name!r} is {grad.dtype}; expected a floating type")
        if grad.shape != self.shape:
            raise ValueError(f"the gradient of {self.name!r} has shape {tuple(grad.shape)}; expected {self.shape}")
        return as_array(grad)


def put(tensors: Sequence[RemoteTensor], values: Sequence[torch.Tensor]) -> None:
    """Gives parameters new values from the server; all in one call, since there may be thousands of small ones."""
    inside = [tensor.param.is_inference() for tensor in tensors]
    for mode, wanted in ((torch.no_grad, False), (torch.inference_mode, True)):
        chosen = [index for index, is_inference in enumerate(inside) if is_inference is wanted]
        if chosen:
            with mode():
                torch._foreach_copy_([tensors[i].param for i in chosen], [values[i] for i in chosen])
    for tensor in tensors:
        tensor.note()


def check_parameter(name: str, param: torch.Tensor) -> None:
    """Raises TypeError or ValueError for a tensor that no run can hold."""
    if is_lazy(param):
        raise ValueError(
            f"parameter {name!r} is uninitialized: its lazy module has not seen a batch yet; "
            "pass one through the model before the optimizer is made"
        )
    # A class with a dispatch of its own has no memory of its own: DTensor, quantized and fake tensors.
    if type(param).__torch_dispatch__ is not torch.Tensor.__torch_dispatch__:
        raise TypeError(
            f"parameter {name!r} is a {type(param).__name__}, a tensor subclass whose values are not in one piece here "
            "(FSDP2 and tensor parallelism make DTensors); expected plain parameters: one process for each run, and "
            "DistributedDataParallel or no wrapper at all"
        )
    if param.dtype not in FLOATS:
        hint = "; optimize torch.view_as_real(it)" if param.is_complex() else ""
        raise TypeError(f"parameter {name!r} is {param.dtype}; expected float32, float64, bfloat16 or float16{hint}")
    if param.layout is not torch.strided:
        raise TypeError(f"parameter {name!r} is sparse ({param.layout}); expected a dense one")
    if param.device.type == "meta":
        raise ValueError(f"parameter {name!r} is on the meta device and has no values yet")


class GradientMark:
    """A gradient that was sent ahead. The values may change later, or even while they are read: `holds` tells."""

    def __init__(self, grad: torch.Tensor) -> None:
        self._grad: torch.Tensor | None = grad
        self._same = weakref.ref(grad)
        self._version = _version(grad)
        self._fingerprint: int | None = None
        self._ready: Any = None
        if grad.device.type == "cuda":
            self._ready = torch.cuda.Event()
            self._ready.record(torch.cuda.current_stream(grad.device))

    def read(self) -> Array:
        """The values as ``[1, size]``, for the sending thread, once.

        The fingerprint comes before anything is copied: values that change in between then differ from it.
        """
        grad = self._grad
        assert grad is not None
        if self._ready is not None:
            self._ready.synchronize()
        array = as_array(grad)
        if grad.device.type == "cpu":
            self._fingerprint = fingerprint(array)
        self._grad = None
        return array.reshape(1, -1)

    def holds(self, grad: torch.Tensor, array: Array) -> bool:
        """Whether ``grad``, with values ``array``, is what has left, or what is about to."""
        if self._same() is not grad or _version(grad) != self._version:
            return False
        # `_grad` first: it is cleared after the fingerprint is set.
        waiting = self._grad is not None
        seen = self._fingerprint
        if seen is None:
            return waiting or grad.device.type != "cpu"
        return seen == fingerprint(array)
