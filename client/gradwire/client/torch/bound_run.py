"""The run behind an optimizer: what steps, edits, gradients sent ahead and new groups do to one another."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

from gradwire.client.connection import Server, connect
from gradwire.client.optimizers.optimizer import Optimizer
from gradwire.client.torch.binding import Binding, ParamGroups
from gradwire.client.torch.checkpoints import Checkpoint
from gradwire.client.torch.closing import Closing
from gradwire.client.torch.overlap import Overlap
from gradwire.client.torch.shared_binding import SharedBinding
from gradwire.client.torch.shield import Shield
from gradwire.client.torch.state_view import States, StateView
from gradwire.client.torch.words import state_keys, words_for
from gradwire.client.training.contribution import check_weight
from gradwire.client.training.early_gradients import Source
from gradwire.wire.errors import GradwireError
from gradwire.wire.tls import TLS


class BoundRun:
    """Usable once `begin` has returned, until it is closed, in the process that made it.

    Args:
        target, tls, token: see `RemoteOptimizer`.
        preset, creation: see `Binding`.
        groups: the optimizer's ``param_groups`` as they are when it is called.
    """

    def __init__(
        self,
        target: str | Server | None,
        tls: TLS | None,
        token: str | None,
        preset: Optimizer,
        creation: Mapping[str, Any],
        groups: Callable[[], ParamGroups],
    ) -> None:
        self.server = target if isinstance(target, Server) else connect(target, tls=tls, token=token)
        self.closing = Closing(None if isinstance(target, Server) else self.server)
        self.view = StateView(_weakly(self._params, []), _weakly(self._read_states, {}), state_keys(words_for(preset)))
        self.overlap: Overlap | None = None
        self._preset = preset
        self._creation = creation
        self._groups = groups
        self._binding: Binding | None = None
        self._shield = Shield()
        self._lock = threading.RLock()  # of what the parameters and the state are compared with
        self._settling = False

    def begin(self, on_existing: str, *, overlap: bool) -> None:
        """Makes the run, or goes on with it. Raises as `RemoteOptimizer` does."""
        creation = {**self._creation, "on_existing": on_existing}
        kind = Binding if creation.get("workers") is None else SharedBinding
        self._bind(kind(self.server, self._groups(), self._preset, creation), overlap=overlap)
        if on_existing == "resume":
            self.binding.resume(self._groups())
        self.closing.last_words = _weakly(self._write_last_changes, None)

    @property
    def binding(self) -> Binding:
        """Raises as `check_usable` does."""
        self.check_usable()
        assert self._binding is not None
        return self._binding

    def check_usable(self) -> None:
        """Raises RuntimeError in a forked process and after `close`."""
        if not self.closing.here:
            raise RuntimeError("this optimizer belongs to the process that made it; a forked one cannot use it")
        self._shield.wait()
        if self._binding is None:
            raise RuntimeError("this optimizer is closed; expected the call before close(), or a new RemoteOptimizer")

    def change(self, change: Callable[[], None]) -> None:
        """Calls ``change``, which Ctrl-C cannot cut in half."""
        self.check_usable()
        self._shield.run(change)

    # --- steps ---------------------------------------------------------------------------------------------------

    def step(self, weight: float = 1.0, *, passes: bool = False) -> None:
        """See `RemoteOptimizer.step`. ``passes``: as if there were no gradient."""
        bound = self.binding
        check_weight(weight, shared=bound.run.shared)
        with self._lock:
            overrides = bound.overrides(self._groups())
            gradients = {} if passes else bound.gradients()
            if not gradients and not bound.run.shared:  # as in torch; but other workers wait for one that passes
                pass
            elif self._only_makes_state(gradients):
                self.view.begin(bound.empty_states())
            else:
                self.write_changes()
                ahead = self.overlap.still_holding(gradients) if self.overlap is not None else ()
                try:
                    bound.step(gradients, overrides, ahead, weight)
                finally:
                    self.view.outdate()
                    self.forget_ahead()
        if self.overlap is not None:
            self.overlap.watch()

    def _only_makes_state(self, gradients: Mapping[str, Any]) -> bool:
        return (
            bool(gradients)
            and self.binding.run.step_count == 0
            and all(float(group["lr"]) == 0 for group in self._groups())
            and not any(gradient.any() for gradient in gradients.values())
            and not self.view
        )

    def write_changes(self) -> None:
        """Brings what was done to ``state`` and to the parameters to the server."""
        with self._lock:
            if self._binding is None or self._settling or not self.closing.here:
                return
            self._settling = True  # what is read for it needs no writing before
            try:
                edits = self.view.edits()
                if edits:
                    self._binding.write_states(edits)
                    self.view.note()
                self._binding.write_edits()
            finally:
                self._settling = False

    def _write_last_changes(self) -> None:
        """At the end. Of a worker that does not lead they are its own affair."""
        if self._binding is not None and self._binding.run.leads:
            self.write_changes()

    def _replaced(self, values: bool) -> None:
        """Somebody has put the run back, or given it another state, through `Run`: what is here is of no more worth."""
        with self._lock:
            if self._binding is None or self._settling or not self.closing.here:
                return
            self.view.outdate()
            if values:
                self._binding.resume(self._groups())

    # --- gradients sent ahead ------------------------------------------------------------------------------------

    def paused(self) -> AbstractContextManager[None]:
        """Nothing is sent ahead inside."""
        return nullcontext() if self.overlap is None else self.overlap.paused()

    def _send_ahead(self, sources: Mapping[str, Source]) -> bool:
        """Called in the middle of a backward pass, which it must not end: what fails here, `step` meets again."""
        if self._binding is None or self.overlap is None or not self.closing.here:
            return False
        try:
            # Edits are not written here: weights may be others for a backward pass alone. Where the last step had some,
            # this one will, too, and its write would end the stream on which these gradients left.
            overrides: dict[int, dict[str, Any]] = {}
            if not self.overlap.begun:
                if self._binding.wrote and self._binding.edited:
                    return False
                overrides = self._binding.overrides(self._groups())
            return self._binding.run.send_ahead(sources, overrides)
        except (GradwireError, ValueError, TypeError, NotImplementedError):
            return False

    def forget_ahead(self) -> None:
        """What has been sent ahead is of no use."""
        if self.overlap is not None and self._binding is not None:
            self.overlap.forget()
            self._binding.run.discard_ahead()

    # --- groups and state ----------------------------------------------------------------------------------------

    def grow(self) -> None:
        """Puts a run of the groups as they are now in the place of the one there is."""
        overlap = self.overlap is not None
        self.forget_ahead()
        self.write_changes()
        with self._lock:
            self._settling = True
            try:
                grown = self.binding.grown(self.server, self._groups(), self._preset, self._creation)
            finally:
                self._settling = False
        if self.overlap is not None:
            self.overlap.close()
        self._bind(grown, overlap=overlap)

    def load(self, checkpoint: Checkpoint) -> None:
        """Puts a state on the server, whole or not at all. Raises ValueError where it does not fit."""
        self.forget_ahead()
        if not self.binding.has(self._groups()):
            self.grow()
        self.binding.load(checkpoint.states, checkpoint.saved_groups)
        self.view.keep(checkpoint.others)

    def _bind(self, binding: Binding, *, overlap: bool) -> None:
        if overlap:
            self.overlap = Overlap(binding.tensors, _weakly(self._send_ahead, False))
        binding.run._before_reading = _weakly(self.write_changes, None)
        binding.run._after_replacing = _weakly(self._replaced, None)
        self.closing.run = binding.run
        self._binding = binding

    def _params(self) -> list[torch.Tensor]:
        return [tensor.param for tensor in self.binding.tensors]

    def _read_states(self) -> States:
        with self._lock:
            before, self._settling = self._settling, True
            try:
                return self.binding.states()
            finally:
                self._settling = before

    # --- the end -------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Writes what is not there yet, and gives the run back; whatever that raises, it is closed."""
        try:
            if self.closing.here:
                self._shield.wait()
                self._write_last_changes()
        finally:
            self.drop()

    def drop(self) -> None:
        """Gives the run back as it is."""
        if self.overlap is not None:
            self.overlap.close()
        if self._binding is not None:
            self._binding.run._before_reading = self._binding.run._after_replacing = None
        self._binding = None
        self.closing()


def _weakly(method: Callable[..., Any], otherwise: Any) -> Callable[..., Any]:
    """A method that does not keep its object alive: the optimizer ends when its user drops it, and this with it.

    ``otherwise``: what it returns without the object.
    """
    alive = weakref.WeakMethod(method)

    def call(*args: Any) -> Any:
        found = alive()
        return otherwise if found is None else found(*args)

    return call
