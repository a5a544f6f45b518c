"""A ``torch.optim.Optimizer`` whose state and arithmetic are on a server."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from typing import Any, NoReturn

import torch
from torch.optim import Optimizer

from gradwire.client.connection import Server
from gradwire.client.optimizers import optimizer as presets
from gradwire.client.options import Receipt
from gradwire.client.run import Run
from gradwire.client.torch import groups as torch_groups
from gradwire.client.torch.arguments import check_place, checked_on_existing, preset_of
from gradwire.client.torch.binding import ParamGroups
from gradwire.client.torch.bound_run import BoundRun
from gradwire.client.torch.checkpoints import packed, unpacked
from gradwire.client.torch.loss_scale import unscaled
from gradwire.client.torch.state_view import StateView
from gradwire.client.torch.uncompiled import uncompiled
from gradwire.client.workers.shared import Shared
from gradwire.wire.tls import TLS


class RemoteOptimizer(Optimizer):
    """Adam, AdamW, AMSGrad, SGD or Adagrad with the state and the arithmetic on a server; otherwise as torch's own.

    The server holds parameters and state of the run (float32; float64 if any parameter is): 16-bit parameters have
    float32 master weights there. A step sends the gradients and writes the new values into the parameters, once all of
    them are here. Parameters that were changed in between (``clamp_``, ``load_state_dict``) are sent first.

    Args:
        params: parameters, ``named_parameters()``, or groups (dicts) as every torch optimizer takes them; the keys of a
            group win over ``optimizer``.
        optimizer: a preset of Adam's, `SGD` or `Adagrad`, such as ``TorchAdam(lr=1e-3, amsgrad=True)``; default
            ``TorchAdam()``, with those of
            ``options`` that are hyperparameters (``lr``, ``betas``, ...), which win over a preset, too.
        target, tls, token: see `gradwire.client.connect`; or a `Server` to share, which is not closed with this.
        run: name of the run on the server.
        on_existing: ``"error"``; ``"resume"``: go on with the run of this name, its values, state and hyperparameters,
            which are put into the parameters and ``param_groups``; ``"replace"``. None: ``"error"``; with ``workers``
            ``"resume"``.
        workers: several processes that make the same optimizer train one run together, see `Shared`. The first one
            creates it, with its values, and the others take those. Rank 0 leads, or who has created it (see
            `RunOptions.leads`): its ``param_groups``, its edits of parameters and its loaded state count. In the others
            ``load_state_dict`` only looks whether the state fits, edited parameters raise, and so does an ``lr`` that
            is not the run's for three steps in a row. Buffers, as BatchNorm has, stay each process's own.
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
        optimizer: presets.Optimizer | None = None,
        *,
        run: str,
        target: str | Server | None = None,
        on_existing: str | None = None,
        workers: Shared | None = None,
        maximize: bool | None = None,
        overlap: bool = False,
        clip_norm: float | None = None,
        clip_value: float | None = None,
        non_finite: str = "reject",
        tls: TLS | None = None,
        token: str | None = None,
        **options: Any,
    ) -> None:
        preset = preset_of(optimizer, maximize, options)
        check_place(run, target, tls, token, overlap)
        on_existing = checked_on_existing(on_existing, workers)
        options = {**options, "workers": workers}
        creation = {"name": run, "clip_norm": clip_norm, "clip_value": clip_value, "non_finite": non_finite, **options}
        self._remote: BoundRun | None = None
        if workers is not None:
            self._step_supports_amp_scaling = True  # see loss_scale
        super().__init__(params, torch_groups.defaults(preset))
        remote = BoundRun(target, tls, token, preset, creation, _groups_of(self))
        self._remote = remote
        weakref.finalize(self, remote.closing.in_background).atexit = False
        try:
            remote.begin(on_existing, overlap=overlap)
        except BaseException:
            remote.drop()
            raise

    @property
    def _bound(self) -> BoundRun:
        assert self._remote is not None, "only the constructor has none"
        return self._remote

    # --- steps ---------------------------------------------------------------------------------------------------

    @uncompiled
    @Optimizer.profile_hook_step  # its hooks, too, run uncompiled
    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None, *, weight: float = 1.0) -> Any:
        """One step over all parameters that have a gradient; they hold the new values when it returns.

        With ``workers`` it contributes to a round, and returns when that has closed; `last_receipt` says what became of
        the gradient. Without any gradient it passes: nobody waits for it, and it adds nothing. So it does where a
        GradScaler has found some that are not finite.

        Parameters and ``state`` that were changed since the last one are written first. Compiled code calls it by a
        graph break. A step of zero gradients with ``lr`` 0 before any other is how torch.distributed.checkpoint makes
        a state: it makes that of no step, here.

        Args:
            closure: computes the loss and the gradients; its result is returned.
            weight: with ``workers``, how much this gradient counts, usually its number of examples.

        Raises ValueError or TypeError for gradients, parameters and states that do not fit (nothing is sent),
        GradwireError as the error table says. The parameters are then as they were.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        passes = not unscaled(self, (param for group in self.param_groups for param in group["params"]))
        self._bound.step(weight, passes=passes)
        return loss

    step.hooked = True  # type: ignore[attr-defined]  # torch's mark: nothing is to be wrapped around it any more

    @uncompiled
    def zero_grad(self, set_to_none: bool = True) -> None:
        """As torch's; gradients that were sent ahead are forgotten too."""
        super().zero_grad(set_to_none)
        self._bound.forget_ahead()

    def no_sync(self) -> AbstractContextManager[None]:
        """Inside, gradients accumulate and nothing is sent: for all backwards of a step but the last, with overlap."""
        return self._bound.paused()

    @property
    def run(self) -> Run:
        """The run. It belongs to this optimizer: step it through nothing else.

        Reading it, exporting it and its snapshots write what was changed here since the last step first.
        """
        return self._bound.binding.run

    @uncompiled
    def log(self, values: Mapping[str, Any] | None = None, /, *, at: Any = None, **more: Any) -> None:
        """Keeps values, such as ``loss=0.3``, for the next step, and with it; see `gradwire.client.Run.log`."""
        self.run.log(values, at=at, **more)

    @property
    def last_receipt(self) -> Receipt | None:
        """What the last step answered."""
        return self.run.last_receipt

    # --- groups and state ----------------------------------------------------------------------------------------

    @property
    def state(self) -> StateView:
        """As torch's, of what is on the server: reading fetches it, changes are written before the next step."""
        return self._bound.view

    @state.setter
    def state(self, values: Mapping[Any, Any]) -> None:
        if self._remote is not None and values is not self._remote.view:
            self._remote.view.replace(values)

    @uncompiled
    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """As torch's. Once there is a run, it is replaced, whole or not at all, by one with the new group too.

        Ctrl-C in between is raised when that has been done.
        """
        if self._remote is None:  # called by the constructor
            self._add(param_group)
        else:
            self._remote.change(lambda: self._add(param_group))

    def _add(self, param_group: dict[str, Any]) -> None:
        torch_groups.check_members(len(self.param_groups), param_group)
        super().add_param_group(param_group)
        try:
            torch_groups.check_added(len(self.param_groups) - 1, param_group)
            if self._remote is not None:
                self._remote.grow()
        except BaseException:
            self.param_groups.pop()
            raise

    @uncompiled
    def state_dict(self) -> dict[str, Any]:
        """The whole state, read from the server, in the format of torch's optimizer, which can load it.

        What wrappers keep in ``state`` is in it too. A copy; nothing is changed by it, here or there.
        """
        self._bound.check_usable()
        for pre_hook in self._optimizer_state_dict_pre_hooks.values():
            pre_hook(self)
        found = packed(self._bound.view.saved(), self.param_groups)
        for post_hook in self._optimizer_state_dict_post_hooks.values():
            replaced = post_hook(self, found)
            found = found if replaced is None else replaced
        return found

    @uncompiled
    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Puts a state of this class or of torch's optimizer of the same kind on the server, whole or not at all.

        Hyperparameters become those of the state, as in torch; other keys of its entries than torch's are kept here.
        Where ``param_groups`` was assigned with other parameters, the run becomes one of those first. Raises ValueError
        for a state that does not fit: other groups, shapes, or another variant (``amsgrad``, ``maximize``, decoupled
        weight decay, ...).
        """
        state: Any = dict(state_dict) if isinstance(state_dict, Mapping) else state_dict
        for pre_hook in self._optimizer_load_state_dict_pre_hooks.values():
            replaced = pre_hook(self, state)
            state = state if replaced is None else replaced
        checkpoint = unpacked(state, self.param_groups)

        def load() -> None:
            self._bound.load(checkpoint)
            self.param_groups[:] = checkpoint.groups

        self._bound.change(load)
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
        self._bound.close()

    def __enter__(self) -> RemoteOptimizer:
        self._bound.check_usable()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.close()
        else:
            self._bound.drop()


def _groups_of(optimizer: Optimizer) -> Callable[[], ParamGroups]:
    """``param_groups``, which may be assigned, without keeping the optimizer alive."""
    alive = weakref.ref(optimizer)

    def groups() -> ParamGroups:
        found = alive()
        return () if found is None else found.param_groups

    return groups
