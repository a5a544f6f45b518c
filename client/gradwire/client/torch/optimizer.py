"""A ``torch.optim.Optimizer`` whose state and arithmetic are on a server."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from copy import deepcopy
from dataclasses import fields
from typing import Any, NoReturn

import torch
from torch.optim import Optimizer

from gradwire.client.connection import Server, connect
from gradwire.client.optimizers import Adam, TorchAdam
from gradwire.client.options import Receipt
from gradwire.client.run import Run
from gradwire.client.torch import groups as torch_groups
from gradwire.client.torch.binding import Binding
from gradwire.client.torch.closing import Closing
from gradwire.client.torch.overlap import Overlap
from gradwire.client.torch.shield import Shield
from gradwire.client.torch.state import check_parts
from gradwire.client.torch.state_entry import SLOTS
from gradwire.client.torch.state_view import States, StateView
from gradwire.client.torch.tensors import check_parameter
from gradwire.client.torch.uncompiled import uncompiled
from gradwire.client.training.early_gradients import Source
from gradwire.wire.errors import GradwireError


class RemoteOptimizer(Optimizer):
    """Adam, AdamW or AMSGrad with the state and the arithmetic on a server; otherwise as ``torch.optim.Adam``.

    The server holds parameters and state of the run (float32; float64 if any parameter is): 16-bit parameters have
    float32 master weights there. A step sends the gradients and writes the new values into the parameters, once all of
    them are here. Parameters that were changed in between (``clamp_``, ``load_state_dict``) are sent first.

    Args:
        params: parameters, ``named_parameters()``, or groups (dicts) as every torch optimizer takes them; the keys of a
            group win over ``optimizer``.
        optimizer: a preset such as ``TorchAdam(lr=1e-3, amsgrad=True)``; default ``TorchAdam()``, with those of
            ``options`` that are hyperparameters (``lr``, ``betas``, ...), which win over a preset, too.
        target: see `gradwire.client.connect`; or a `Server` to share, which is not closed with this.
        run: name of the run on the server.
        on_existing: ``"error"``; ``"resume"``: go on with the run of this name, its values, state and hyperparameters,
            which are put into the parameters and ``param_groups``; ``"replace"``.
        maximize: turn the gradients' signs first. None: as ``optimizer`` says.
        overlap: send each gradient as soon as autograd has it, so that the upload hides behind the backward pass. The
            results are the same. Gradients that change before the step (clipping, unscaling) are sent again.
        clip_norm, clip_value, non_finite: see `Server.create_run`.
        options: hyperparameters of ``optimizer``; see `RunOptions`; and ``dtype``.

    Raises ValueError or TypeError for malformed arguments, NotImplementedError for ``capturable`` and
    ``differentiable``, LayoutMismatch for a run that cannot be resumed with these, GradwireError as the error table
    says.
    """

    def __init__(
        self,
        params: Iterable[Any],
        optimizer: Adam | None = None,
        *,
        run: str,
        target: str | Server | None = None,
        on_existing: str = "error",
        maximize: bool | None = None,
        overlap: bool = False,
        clip_norm: float | None = None,
        clip_value: float | None = None,
        non_finite: str = "reject",
        **options: Any,
    ) -> None:
        preset = TorchAdam() if optimizer is None else optimizer
        if not isinstance(preset, Adam):
            raise TypeError(f"optimizer is {preset!r}; expected a preset such as TorchAdam(lr=1e-3)")
        if not isinstance(run, str):
            raise TypeError(f"run is {run!r}; expected the name of a run")
        if not (target is None or isinstance(target, (str, Server))):
            raise TypeError(f"target is {target!r}; expected host:port, unix:PATH, 'embedded' or a Server")
        if not isinstance(overlap, bool):
            raise TypeError(f"overlap is {overlap!r}; expected True or False")
        hyperparameters = {field.name for field in fields(preset)}
        changes = {name: options.pop(name) for name in list(options) if name in hyperparameters}
        self._preset = preset.replace(changes if maximize is None else {**changes, "maximize": maximize})
        self._binding: Binding | None = None
        self._overlap: Overlap | None = None
        self._made = False
        self._shield = Shield()
        self._lock = threading.RLock()  # of what the parameters and the state are compared with
        self._settling = False
        self._view = self._new_view()
        super().__init__(params, torch_groups.defaults(self._preset))
        self._creation: dict[str, Any] = {
            "name": run,
            "clip_norm": clip_norm,
            "clip_value": clip_value,
            "non_finite": non_finite,
            **options,
        }
        self._server = target if isinstance(target, Server) else connect(target)
        self._closing = Closing(None if isinstance(target, Server) else self._server)
        weakref.finalize(self, self._closing.in_background).atexit = False
        self._made = True
        try:
            creation = {**self._creation, "on_existing": on_existing}
            self._bind(Binding(self._server, self.param_groups, self._preset, creation), overlap)
            if on_existing == "resume":
                self._bound.resume(self.param_groups)
        except BaseException:
            self._close()
            raise
        self._closing.last_words = _weakly(self, RemoteOptimizer._write_changes)

    # --- steps ---------------------------------------------------------------------------------------------------

    @uncompiled
    @Optimizer.profile_hook_step  # its hooks, too, run uncompiled
    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step over all parameters that have a gradient; they hold the new values when it returns.

        Parameters and ``state`` that were changed since the last one are written first. Compiled code calls it by a
        graph break. A step of zero gradients with ``lr`` 0 before any other is how torch.distributed.checkpoint makes
        a state: it makes that of no step, here.

        Args:
            closure: computes the loss and the gradients; its result is returned.

        Raises ValueError or TypeError for gradients, parameters and states that do not fit (nothing is sent),
        GradwireError as the error table says. The parameters are then as they were.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        bound = self._bound
        with self._lock:
            overrides = bound.overrides(self.param_groups)
            gradients = bound.gradients()
            if not gradients:  # as in torch
                pass
            elif self._only_makes_state(gradients):
                self._view.begin(bound.empty_states())
            else:
                self._write_changes()
                ahead = self._overlap.still_holding(gradients) if self._overlap is not None else ()
                try:
                    bound.step(gradients, overrides, ahead)
                finally:
                    self._view.outdate()
                    self._forget_ahead()
        if self._overlap is not None:
            self._overlap.watch()
        return loss

    step.hooked = True  # type: ignore[attr-defined]  # torch's mark: nothing is to be wrapped around it any more

    def _only_makes_state(self, gradients: Mapping[str, Any]) -> bool:
        return (
            self.run.step_count == 0
            and all(float(group["lr"]) == 0 for group in self.param_groups)
            and not any(gradient.any() for gradient in gradients.values())
            and not self._view
        )

    def _write_changes(self) -> None:
        """Brings what was done to ``state`` and to the parameters to the server."""
        with self._lock:
            if self._binding is None or self._settling or not self._closing.here:
                return
            self._settling = True  # what is read for it needs no writing before
            try:
                edits = self._view.edits()
                if edits:
                    self._binding.write_states(edits)
                    self._view.note()
                self._binding.write_edits()
            finally:
                self._settling = False

    @uncompiled
    def zero_grad(self, set_to_none: bool = True) -> None:
        """As torch's; gradients that were sent ahead are forgotten too."""
        super().zero_grad(set_to_none)
        self._forget_ahead()

    def no_sync(self) -> AbstractContextManager[None]:
        """Inside, gradients accumulate and nothing is sent: for all backwards of a step but the last, with overlap."""
        return nullcontext() if self._overlap is None else self._overlap.paused()

    @property
    def run(self) -> Run:
        """The run. It belongs to this optimizer: step it through nothing else.

        Reading it, exporting it and its snapshots write what was changed here since the last step first.
        """
        return self._bound.run

    @property
    def last_receipt(self) -> Receipt | None:
        """What the last step answered."""
        return self.run.last_receipt

    @property
    def _bound(self) -> Binding:
        self._check_usable()
        assert self._binding is not None
        return self._binding

    def _check_usable(self) -> None:
        """Raises RuntimeError in a forked process and after `close`."""
        if not self._closing.here:
            raise RuntimeError("this optimizer belongs to the process that made it; a forked one cannot use it")
        self._shield.wait()
        if self._binding is None:
            raise RuntimeError("this optimizer is closed")

    def _bind(self, binding: Binding, overlap: bool) -> None:
        if overlap:
            self._overlap = Overlap(binding.tensors, _weakly(self, RemoteOptimizer._send_ahead))
        binding.run._before_reading = _weakly(self, RemoteOptimizer._write_changes)
        self._closing.run = binding.run
        self._binding = binding

    def _send_ahead(self, sources: Mapping[str, Source]) -> bool:
        """Called in the middle of a backward pass, which it must not end: what fails here, `step` meets again."""
        if self._binding is None or self._overlap is None or not self._closing.here:
            return False
        try:
            # Edits are not written here: weights may be others for a backward pass alone. Where the last step had some,
            # this one will, too, and its write would end the stream on which these gradients left.
            overrides: dict[int, dict[str, Any]] = {}
            if not self._overlap.begun:
                if self._binding.wrote and self._binding.edited:
                    return False
                overrides = self._binding.overrides(self.param_groups)
            return self._binding.run.send_ahead(sources, overrides)
        except (GradwireError, ValueError, TypeError, NotImplementedError):
            return False

    def _forget_ahead(self) -> None:
        if self._overlap is not None and self._binding is not None:
            self._overlap.forget()
            self._binding.run.discard_ahead()

    # --- groups and state ----------------------------------------------------------------------------------------

    @property
    def state(self) -> StateView:
        """As torch's, of what is on the server: reading fetches it, changes are written before the next step."""
        return self._view

    @state.setter
    def state(self, values: Mapping[Any, Any]) -> None:
        if self._made and values is not self._view:
            self._view.replace(values)

    def _new_view(self) -> StateView:
        alive = weakref.ref(self)

        def params() -> list[torch.Tensor]:
            optimizer = alive()
            return [] if optimizer is None else [tensor.param for tensor in optimizer._bound.tensors]

        def fetch() -> States:
            optimizer = alive()
            return {} if optimizer is None or not optimizer._made else optimizer._read_states()

        return StateView(params, fetch)

    def _read_states(self) -> States:
        with self._lock:
            before, self._settling = self._settling, True
            try:
                return self._bound.states()
            finally:
                self._settling = before

    @uncompiled
    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """As torch's. Once there is a run, it is replaced, whole or not at all, by one with the new group too.

        Ctrl-C in between is raised when that has been done.
        """
        if not self._made:  # called by the constructor
            self._add(param_group)
            return
        self._check_usable()
        self._shield.run(lambda: self._add(param_group))

    def _add(self, param_group: dict[str, Any]) -> None:
        torch_groups.check_members(len(self.param_groups), param_group)
        super().add_param_group(param_group)
        try:
            index = len(self.param_groups) - 1
            torch_groups.checked_numbers(param_group)
            if len(set(param_group["params"])) != len(param_group["params"]):
                raise ValueError(f"parameter group {index} has the same parameter twice")
            for position, param in enumerate(param_group["params"]):
                check_parameter(f"{index}.{position}", param)
            if self._binding is not None:
                self._grow()
        except BaseException:
            self.param_groups.pop()
            raise

    def _grow(self) -> None:
        """Puts a run of the groups as they are now in the place of the one there is."""
        overlap = self._overlap is not None
        self._forget_ahead()
        self._write_changes()
        with self._lock:
            self._settling = True
            try:
                grown = self._bound.grown(self._server, self.param_groups, self._preset, self._creation)
            finally:
                self._settling = False
        if self._overlap is not None:
            self._overlap.close()
        self._bind(grown, overlap)

    @uncompiled
    def state_dict(self) -> dict[str, Any]:
        """The whole state, read from the server, in the format of ``torch.optim.Adam``, which can load it.

        What wrappers keep in ``state`` is in it too. A copy; nothing is changed by it, here or there.
        """
        self._check_usable()
        for pre_hook in self._optimizer_state_dict_pre_hooks.values():
            pre_hook(self)
        numbers: dict[int, int] = {}
        for group in self.param_groups:
            for param in group["params"]:
                numbers.setdefault(id(param), len(numbers))
        found: dict[str, Any] = {
            "state": {
                numbers[id(key)] if isinstance(key, torch.Tensor) else key: value
                for key, value in self._view.saved().items()
                if not isinstance(key, torch.Tensor) or id(key) in numbers
            },
            "param_groups": [
                {
                    **{key: value for key, value in group.items() if key != "params"},
                    "params": [numbers[id(param)] for param in group["params"]],
                }
                for group in self.param_groups
            ],
        }
        for post_hook in self._optimizer_state_dict_post_hooks.values():
            replaced = post_hook(self, found)
            found = found if replaced is None else replaced
        return found

    @uncompiled
    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Puts a state of this class, of ``torch.optim.Adam`` or ``AdamW`` on the server, whole or not at all.

        Hyperparameters become those of the state, as in torch; keys of its entries that are not Adam's are kept here.
        Where ``param_groups`` was assigned with other parameters, the run becomes one of those first. Raises ValueError
        for a state that does not fit: other groups, shapes, or another variant (``amsgrad``, ``maximize``, decoupled
        weight decay, ...).
        """
        state: Any = dict(state_dict) if isinstance(state_dict, Mapping) else state_dict
        for pre_hook in self._optimizer_load_state_dict_pre_hooks.values():
            replaced = pre_hook(self, state)
            state = state if replaced is None else replaced
        check_parts(state)
        saved = deepcopy(state["param_groups"])
        theirs, ours = ([len(group["params"]) for group in groups] for groups in (saved, self.param_groups))
        if theirs != ours:
            raise ValueError(f"the state has parameter groups of {theirs} parameters; this optimizer has {ours}")
        loaded = [torch_groups.merged(group, new) for group, new in zip(self.param_groups, saved, strict=True)]
        members = [
            (param, key)
            for group, new in zip(loaded, saved, strict=True)
            for param, key in zip(group["params"], new["params"], strict=True)
        ]
        states, others = _divided(state["state"], {key: param for param, key in members})

        def load() -> None:
            self._forget_ahead()
            if not self._bound.has(self.param_groups):
                self._grow()
            self._bound.load(states, saved)
            self._view.keep(others)
            self.param_groups[:] = loaded

        self._check_usable()
        self._shield.run(load)
        for post_hook in self._optimizer_load_state_dict_post_hooks.values():
            post_hook(self)

    def __setstate__(self, state: dict[str, Any]) -> None:
        rest = dict(state)
        if "state" in rest:
            self.state = rest.pop("state")
        super().__setstate__(rest)

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        raise TypeError(
            "a RemoteOptimizer cannot be pickled or copied: it holds a connection, and its state is on a server. "
            "Save state_dict(), make a new one and load_state_dict() into it"
        )

    def close(self) -> None:
        """Gives the run back to the server, where it stays, and closes the connection if it is this optimizer's own.

        What was done to the parameters and to ``state`` since the last step is written before; what is raised where
        that fails is raised when all is closed. Collected rather than closed, and after an exception in its ``with``
        block, an optimizer writes nothing more.
        """
        try:
            if self._closing.here:
                self._shield.wait()
                self._write_changes()
        finally:
            self._close()

    def _close(self) -> None:
        if self._overlap is not None:
            self._overlap.close()
        if self._binding is not None:
            self._binding.run._before_reading = None
        self._binding = None
        self._closing()

    def __enter__(self) -> RemoteOptimizer:
        self._check_usable()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.close()
        else:
            self._close()


def _weakly(optimizer: RemoteOptimizer, method: Callable[..., Any]) -> Callable[..., Any]:
    """A method that does not keep its optimizer alive; False without it."""
    alive = weakref.ref(optimizer)

    def call(*args: Any) -> Any:
        one = alive()
        return False if one is None else method(one, *args)

    return call


def _divided(
    states: Mapping[Any, Any], params: Mapping[Any, torch.Tensor]
) -> tuple[dict[Any, Any], dict[Any, dict[str, Any]]]:
    """Saved states: what is Adam's, and what is others', as torch would load it."""
    ours: dict[Any, Any] = {}
    others: dict[Any, Any] = {}
    for key, entry in states.items():
        if isinstance(key, str) and key not in params:
            others[key] = deepcopy(entry)
            continue
        if not isinstance(entry, Mapping) or key not in params:
            ours[key] = entry
            continue
        ours[key] = {name: value for name, value in entry.items() if name in SLOTS}
        param = params[key]
        rest = {name: _moved(value, param) for name, value in entry.items() if name not in SLOTS}
        if rest:
            others[param] = rest
    return ours, others


def _moved(value: Any, param: torch.Tensor) -> Any:
    if isinstance(value, torch.Tensor):
        return value.detach().to(device=param.device, dtype=param.dtype, copy=True)
    return deepcopy(value)
