"""A run as its client sees it."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy.typing as npt

from gradwire.client.encodings.parameters import DeltaParameters
from gradwire.client.encodings.pseudo_gradient import pseudo_gradient
from gradwire.client.options import REFUSED, Receipt, decode_receipt
from gradwire.client.stored_run import StoredRun
from gradwire.client.training.block import RETURNS, Block, one_step, several_steps
from gradwire.client.training.contribution import check_weight, contribution
from gradwire.client.training.early_gradients import Source
from gradwire.client.training.logged import Parts, joined, scalar_messages, values_between_blocks, values_of_block
from gradwire.client.training.shared_delivery import delivery_of
from gradwire.wire.errors import NonFiniteGradient


class Run(StoredRun):
    """Parameters in ``params``; `step` sends gradients and updates them in place. Made by `Server`; methods take turns.

    ``stale`` is true after a failure in the middle of a step: ``params`` may then mix old and new values, and the next
    step reads them anew first. In a shared run its answer does, whole, and the gradient counts as one of the older
    values; where those are a mixture, `step` raises ValueError until `refresh`. In a process that is forked from the
    one that made it all calls raise ForkedProcess, and `close` does nothing. A run that was closed attaches again when
    it is used; once its connection is closed all calls raise ConnectionClosed.
    """

    @property
    def last_sequence(self) -> int:
        """Number of the last block that has been answered; keep it, with `worker_id`, to go on after a restart."""
        assert self._attachment.sequence is not None
        return self._attachment.sequence

    def step(
        self,
        grads: Mapping[str, Any],
        *,
        lr: float | Sequence[float] | None = None,
        overrides: Mapping[int, Mapping[str, Any]] | None = None,
        ahead: Collection[str] = (),
        weight: float = 1.0,
        log: Mapping[str, Any] | None = None,
    ) -> Receipt:
        """One optimizer step; ``params`` hold the new values when it returns.

        In a shared run this contributes to a round and returns when that has closed, however long it takes;
        `Receipt.outcome` says what became of the gradient, which was computed from ``params`` as they are now.

        Args:
            grads: name -> array of the tensor's shape. A tensor that is missing or None stays as it is, its t too.
            lr: a new learning rate from this step on, for all groups or one for each.
            overrides: group index -> new ``lr``, ``betas``, ``eps``, ``weight_decay``, ``bounds``, ``momentum``,
                ``dampening``, ``lr_decay``, ``tau`` from this step on, as far as the group's optimizer has them.
            ahead: tensors whose gradients `send_ahead` was given and which have not changed since.
            weight: in shared runs, how much this gradient counts, usually its number of examples; finite, > 0.
            log: series -> number, such as ``{"loss": 0.3}``: goes with this step, see `Run.log`. In a shared run each
                series gets the mean of a round's accepted contributions, by their weights.

        Raises ValueError or TypeError for malformed gradients (nothing is sent), LeaderBusy for new numbers from a
        worker that does not lead, GradwireError as the error table says; in a shared run ValueError where a step that
        has failed has left a mixture of old and new values in ``params``. A shared run's NonFiniteGradient is its
        answer, too: ``params`` are the newest, and the receipt is in ``last_receipt``.
        """
        checked = check_weight(weight, shared=self.shared)
        with self._lock:
            if self.shared and self._parameters.mixed and not self._trained_elsewhere:
                raise ValueError(
                    "params mix old and new values since a step has failed, so of which parameters a gradient is, is "
                    "not known; expected refresh() first, and a gradient of what it brings, or a run with "
                    "double_buffer=True"
                )
            if lr is not None or overrides:
                self._require_lead("a change of hyperparameters")
            said = contribution(self._parameters, checked) if self.shared else None
            block = one_step(self.layout, grads, lr, overrides, ahead, said)
            return self._deliver(block, values_of_block(log, self.step_count + 1, None))

    def contribute_delta(
        self, local_params: Mapping[str, Any], *, weight: float = 1.0, log: Mapping[str, Any] | None = None
    ) -> Receipt:
        """One step with the pseudo-gradient ``before - after``: ``params``, as they came from the server, minus what
        local steps have made of them. ``params`` hold the new values when it returns.

        With ``SGD(lr=1)`` the run is then where the local steps went; a shared run at their mean by weights (FedAvg).

        Args:
            local_params: name -> array, all of them; copies, not ``params`` themselves.
            weight, log: see `step`.

        Raises ValueError where ``local_params`` have another layout or lie in ``params``, and where a step that has
        failed has left a mixture of old and new values in ``params``, or may have been applied; and as `step` does.
        """
        check_weight(weight, shared=self.shared)
        with self._lock:
            if self._parameters.mixed:
                raise ValueError(
                    "params mix old and new values since a step has failed, so what local steps began with is not "
                    "known; expected them to begin anew after refresh(), or a run with double_buffer=True"
                )
            if self._attachment.unresolved and not self._attachment.resumes:
                raise ValueError(
                    "the last step was interrupted, and whether it was applied is not known: local steps from before "
                    "it might count twice; expected them to begin anew after refresh()"
                )
            delta = pseudo_gradient(self.layout, self._parameters.vector, local_params)
            return self.step(delta, weight=weight, log=log)

    def send_ahead(
        self, sources: Mapping[str, Source], overrides: Mapping[int, Mapping[str, Any]] | None = None
    ) -> bool:
        """Sends gradients of the next `step` now, in the background, while others are still being computed.

        `step` must be given all gradients all the same, and may name in ``ahead`` those that it need not send again. A
        tensor sent a second time replaces the first. Nothing is applied before `step`, and `discard_ahead`, or the end
        of this process, forgets what has left.

        Args:
            sources: name -> function that returns the gradient, flat, ``[1, size]``; called in another thread.
            overrides: those that `step` will be given, as far as is known: with them the server computes ahead. They
                count in the first call of a step only, and bind nobody.

        Returns False, and sends nothing, while there is no connection: `step` will repair that. So with INT8.
        """
        with self._lock:
            if overrides:
                self._require_lead("a change of hyperparameters")
            said = contribution(self._parameters, 1.0) if self.shared else None  # what `step` says holds
            return self._attachment.send_early(sources, overrides, said)

    def discard_ahead(self) -> None:
        """Forgets what `send_ahead` has sent."""
        if not self._attachment.owner.here:
            return  # nothing of it has left this process
        with self._attachment.lock:
            self._attachment.early.forget()

    def step_many(
        self,
        grads: Mapping[str, Any],
        *,
        returns: str = "last",
        lr: float | Sequence[float] | None = None,
        overrides: Mapping[int, Mapping[str, Any]] | None = None,
        log: Mapping[str, Any] | None = None,
    ) -> dict[str, npt.NDArray[Any]]:
        """K steps, applied strictly one after another, in one exchange; the receipt is in ``last_receipt``.

        Args:
            grads: name -> array ``[K, *shape]``, the same K for all.
            returns: ``"last"``: name -> ``[*shape]`` after the block. ``"trajectory"``: name -> ``[K, *shape]``, the
                parameters after each step. ``"none"``: nothing; ``params`` keep old values until `refresh` or `step`.
            log: series -> array ``[K]``, a value for each step, sent as at most 2,048 buckets; or a number, of the last
                step. See `Run.log`.

        Raises as `step` does, and ValueError for a shared run: a contribution is one gradient.
        """
        if self.shared:
            raise ValueError("step_many is not for shared runs, whose rounds are one step each (K = 1); expected step")
        if returns not in RETURNS:
            raise ValueError(f"returns is {returns!r}; expected one of {', '.join(map(repr, RETURNS))}")
        if returns == "trajectory" and isinstance(self._encodings.parameters, DeltaParameters):
            raise ValueError(
                "returns is 'trajectory', which parameter_encoding='int8' does not have; "
                "expected 'last' or 'none', or another encoding"
            )
        with self._lock:
            block = several_steps(self.layout, self.dtype, grads, returns, lr, overrides)
            self._deliver(block, values_of_block(log, self.step_count + 1, block.header.steps))
            if returns == "none":
                return {}
            if block.trajectory is None:
                return {name: view.copy() for name, view in self.params.items()}
            steps = len(block.trajectory)
            return {t.name: block.trajectory[:, t.start : t.stop].reshape(steps, *t.shape) for t in self.layout.tensors}

    def log(self, values: Mapping[str, Any] | None = None, /, *, at: Any = None, **more: Any) -> None:
        """Keeps values for the next `step` or `step_many`, whose last step they are of: ``run.log(loss=0.3)``.

        They belong to that block: journaled with it, counted once however often it is sent, gone if it is refused. What
        is left when the run is closed is sent then. The run keeps at most 64 series, each in at most 2,048 buckets,
        however long it is; `series` reads them. Needs no turn: it may be called while another thread steps.

        Args:
            values, more: series -> number, NaN and infinities too; or an array with a value for each of the last steps
                that were taken. Names have 1 to 64 bytes; ``gradient_norm``, ``steps_per_second``, ``lr`` and what
                begins with ``lr/`` are the server's own.
            at: the steps that the values are of, numbers that do not fall, up to ``step_count``.

        Raises ValueError, TypeError for what cannot be logged, and ServerTooOld.
        """
        attachment = self._attachment
        attachment.require_usable()
        attachment.log(values_between_blocks(values, at, self.step_count, more))

    def _deliver(self, block: Block, log: Parts) -> Receipt:
        attachment = self._attachment
        if log:
            attachment.require_series()
        waiting: Parts = {}
        delivery = None
        try:
            waiting = attachment.logged.take()
            if log or waiting:
                parts = joined(waiting, log)
                block.header.scalars.extend(scalar_messages(parts, self.step_count, block.header.steps))
            delivery = delivery_of(block, attachment, self._remote.attempts())
            message = delivery.complete()
        except BaseException:
            if delivery is None or not delivery.left:
                attachment.logged.put_back(waiting)
            raise
        self.last_receipt = receipt = decode_receipt(message)
        if receipt.outcome == REFUSED and receipt.reason == NonFiniteGradient.reason:
            raise NonFiniteGradient(receipt.message, applied=False)
        return receipt
