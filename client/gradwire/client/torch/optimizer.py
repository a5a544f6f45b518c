"""A ``torch.optim.Optimizer`` whose state and arithmetic are on a server."""

from __future__ import annotations

import weakref
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from copy import deepcopy
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
from gradwire.client.torch.state import check_parts
from gradwire.client.torch.tensors import check_parameter
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
        optimizer: a preset such as ``TorchAdam(lr=1e-3, amsgrad=True)``; default ``TorchAdam()``.
        target: see `gradwire.client.connect`; or a `Server` to share, which is not closed with this.
        run: name of the run on the server.
        on_existing: ``"error"``; ``"resume"``: go on with the run of this name, its values, state and hyperparameters,
            which are put into the parameters and ``param_groups``; ``"replace"``.
        maximize: turn the gradients' signs first. None: as ``optimizer`` says.
        overlap: send each gradient as soon as autograd has it, so that the upload hides behind the backward pass. The
            results are the same. Gradients that change before the step (clipping, unscaling) are sent again.
        clip_norm, clip_value, non_finite: see `Server.create_run`.
        options: see `RunOptions`; and ``dtype``.

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
        self._preset = preset if maximize is None else preset.replace({"maximize": maximize})
        self._binding: Binding | None = None
        self._overlap: Overlap | None = None
        self._made = False
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
            self.close()
            raise

    # --- steps ---------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step over all parameters that have a gradient; they hold the new values when it returns.

        Args:
            closure: computes the loss and the gradients; its result is returned.

        Raises ValueError or TypeError for gradients and parameters that do not fit (nothing is sent), GradwireError as
        the error table says. The parameters are then as they were.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        bound = self._bound
        overrides = bound.overrides(self.param_groups)
        gradients = bound.gradients()
        if gradients:  # without any there is no step, as in torch
            bound.write_edits()
            ahead = self._overlap.still_holding(gradients) if self._overlap is not None else ()
            try:
                bound.step(gradients, overrides, ahead)
            finally:
                self._forget_ahead()
        if self._overlap is not None:
            self._overlap.watch()
        return loss

    def zero_grad(self, set_to_none: bool = True) -> None:
        """As torch's; gradients that were sent ahead are forgotten too."""
        super().zero_grad(set_to_none)
        self._forget_ahead()

    def no_sync(self) -> AbstractContextManager[None]:
        """Inside, gradients accumulate and nothing is sent: for all backwards of a step but the last, with overlap."""
        return nullcontext() if self._overlap is None else self._overlap.paused()

    @property
    def run(self) -> Run:
        """The run. It belongs to this optimizer: step it through nothing else."""
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
        if self._binding is None:
            raise RuntimeError("this optimizer is closed")

    def _bind(self, binding: Binding, overlap: bool) -> None:
        self._binding = binding
        self._closing.run = binding.run
        if overlap:
            alive = weakref.ref(self)

            def send(sources: Mapping[str, Source]) -> bool:
                optimizer = alive()
                return optimizer is not None and optimizer._send_ahead(sources)

            self._overlap = Overlap(binding.tensors, send)

    def _send_ahead(self, sources: Mapping[str, Source]) -> bool:
        """Called in the middle of a backward pass, which it must not end: what fails here, `step` meets again."""
        if self._binding is None or self._overlap is None or not self._closing.here:
            return False
        try:
            # Edits come before these gradients. The write ends the stream; one that was lost is for `step` to repair.
            overrides: dict[int, dict[str, Any]] = {}
            if not self._overlap.begun:
                overrides = self._binding.overrides(self.param_groups)
                if self._binding.write_edits():
                    self._binding.run.hold()
            return self._binding.run.send_ahead(sources, overrides)
        except (GradwireError, ValueError, TypeError, NotImplementedError):
            return False

    def _forget_ahead(self) -> None:
        if self._overlap is not None and self._binding is not None:
            self._overlap.forget()
            self._binding.run.discard_ahead()

    # --- groups and state ----------------------------------------------------------------------------------------

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """As torch's. Once there is a run, it is replaced, whole or not at all, by one with the new group too."""
        if self._made:  # by the constructor, which adds its groups in this way too
            self._check_usable()
        torch_groups.check_members(len(self.param_groups), param_group)
        super().add_param_group(param_group)
        try:
            index = len(self.param_groups) - 1
            torch_groups.check_supported(param_group)
            if len(set(param_group["params"])) != len(param_group["params"]):
                raise ValueError(f"parameter group {index} has the same parameter twice")
            for position, param in enumerate(param_group["params"]):
                check_parameter(f"{index}.{position}", param)
            if self._binding is not None:
                overlap = self._overlap is not None
                self._forget_ahead()
                grown = self._bound.grown(self._server, self.param_groups, self._preset, self._creation)
                if self._overlap is not None:
                    self._overlap.close()
                self._bind(grown, overlap)
        except BaseException:
            self.param_groups.pop()
            raise

    def state_dict(self) -> dict[str, Any]:
        """The whole state, read from the server, in the format of ``torch.optim.Adam``, which can load it."""
        self.state = defaultdict(dict, self._bound.states())  # torch packs what it finds here
        try:
            return super().state_dict()
        finally:
            self.state = defaultdict(dict)

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Puts a state of this class, of ``torch.optim.Adam`` or ``AdamW`` on the server, whole or not at all.

        Hyperparameters become those of the state, as in torch. Raises ValueError for one that does not fit: other
        groups, shapes, or another variant (``amsgrad``, ``maximize``, decoupled weight decay, ...).
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
        self._forget_ahead()
        self._bound.load(state["state"], saved)
        self.param_groups[:] = loaded
        for post_hook in self._optimizer_load_state_dict_post_hooks.values():
            post_hook(self)

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        raise TypeError(
            "a RemoteOptimizer cannot be pickled or copied: it holds a connection, and its state is on a server. "
            "Save state_dict(), make a new one and load_state_dict() into it"
        )

    def close(self) -> None:
        """Gives the run back to the server, where it stays, and closes the connection if it is this optimizer's own."""
        if self._overlap is not None:
            self._overlap.close()
        self._binding = None
        self._closing()

    def __enter__(self) -> RemoteOptimizer:
        self._check_usable()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
