"""Local steps here, and now and then a step of a run on a server with what they have come to."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import nn

from gradwire.client.connection import Server, connect
from gradwire.client.optimizers import optimizer as presets
from gradwire.client.optimizers.sgd import SGD
from gradwire.client.options import Receipt
from gradwire.client.run import Run
from gradwire.client.torch.arguments import check_place, checked_on_existing
from gradwire.client.torch.closing import Closing
from gradwire.client.torch.tensors import Array, as_array, check_parameter
from gradwire.client.training.contribution import check_weight
from gradwire.client.workers.shared import Shared
from gradwire.wire.errors import Fenced, GradwireError, NonFiniteGradient
from gradwire.wire.tls import TLS


class DiLoCo:
    """Distributed low-communication training (Douillard et al. 2023, Algorithm 1): each worker makes ``every`` local
    steps; what they have changed, before minus after, is the gradient of one outer step, whose result all go on from.

    Example::

        inner = torch.optim.AdamW(model.parameters())
        with DiLoCo(model, inner, every=100, run="lm", target="host:50051", workers=Shared(quorum="all")) as diloco:
            for batch in batches:
                loss(model, batch).backward()
                diloco.step(weight=len(batch))
                inner.zero_grad()

    Local steps whose outcome is not ``"accepted"`` are lost, see `Receipt.outcome`: the next ones begin at the newest
    parameters too. The inner optimizer keeps its state over outer steps; buffers, as BatchNorm has, stay each worker's
    own.

    Args:
        model: its parameters that need a gradient are the run's. The first worker's initial values count, and the
            others take those.
        inner_optimizer: of torch's, over them.
        outer: the update rule of the run. None: ``SGD(lr=0.7, momentum=0.9, nesterov=True)``.
        every: local steps between two outer ones.
        run, target, tls, token, workers, on_existing: see `RemoteOptimizer`.
        options: see `RunOptions` and `Server.create_run`.

    Raises ValueError or TypeError for malformed arguments, and as `Server.create_run` does.
    """

    def __init__(
        self,
        model: nn.Module,
        inner_optimizer: torch.optim.Optimizer,
        outer: presets.Optimizer | None = None,
        *,
        every: int,
        run: str,
        target: str | Server | None = None,
        workers: Shared | None = None,
        on_existing: str | None = None,
        tls: TLS | None = None,
        token: str | None = None,
        **options: Any,
    ) -> None:
        if isinstance(every, bool) or not isinstance(every, int):
            raise TypeError(f"every is {every!r}; expected a whole number of local steps")
        if every < 1:
            raise ValueError(f"every is {every}; expected 1 or more local steps")
        check_place(run, target, tls, token, False)
        existing = checked_on_existing(on_existing, workers)
        self._params = {name: param for name, param in model.named_parameters() if param.requires_grad}
        if not self._params:
            raise ValueError("the model has no parameter that needs a gradient; expected at least one")
        for name, param in self._params.items():
            check_parameter(name, param)
        self.inner_optimizer = inner_optimizer
        self.every = every
        self.local_steps = 0
        """Since the last outer step."""
        self._weight = 0.0
        self._unknown = False
        doubles = any(param.dtype is torch.float64 for param in self._params.values())
        server = target if isinstance(target, Server) else connect(target, tls=tls, token=token)
        self._closing = Closing(None if server is target else server)
        try:
            self.run: Run = server.create_run(
                run,
                {name: as_array(param) for name, param in self._params.items()},
                SGD(lr=0.7, momentum=0.9, nesterov=True) if outer is None else outer,
                # What local steps began with must outlive a step that fails: the next one is going to need it.
                **{"dtype": "float64" if doubles else "float32", "double_buffer": True, **options},
                workers=workers,
                on_existing=existing,
            )
            self._closing.run = self.run
            self._take()
        except BaseException:
            self._closing()
            raise

    @property
    def last_receipt(self) -> Receipt | None:
        """What the last outer step answered."""
        return self.run.last_receipt

    def step(self, closure: Callable[[], Any] | None = None, *, weight: float = 1.0) -> Any:
        """A step of the inner optimizer; after each ``every`` of them an outer one. Returns what the inner one does.

        Args:
            closure: see the inner optimizer.
            weight: with ``workers``, how much this local step counts, usually its number of examples: an outer step
                has the sum of them.

        Raises as `outer_step` does.
        """
        checked = check_weight(weight, shared=self.run.shared)
        self._resolve()
        found: Any = self.inner_optimizer.step() if closure is None else self.inner_optimizer.step(closure)
        self.local_steps += 1
        self._weight += checked
        if self.local_steps >= self.every:
            self.outer_step()
        return found

    def outer_step(self) -> Receipt:
        """Contributes the local steps since the last one, and goes on from the run's parameters. Without any the
        contribution is one of no tensor, for which nobody else has to wait.

        Raises NonFiniteGradient where the run refuses what the local steps have come to; they are lost then. Others,
        see `Run.step`, say in ``applied`` whether it was: where it was not, the local steps stay, and the next one
        tries again. Where that is not known, also after Ctrl-C, they are not sent twice: the next step begins anew.
        """
        self._resolve()
        try:
            receipt = self._contribute()
        except NonFiniteGradient:
            self._go_on()
            raise
        except BaseException as error:
            refused = isinstance(error, GradwireError) and error.applied is False
            self._unknown = not refused and not isinstance(error, (ValueError, TypeError))  # those before it is sent
            raise
        self._go_on()
        return receipt

    def _resolve(self) -> None:
        """After an outer step of which nobody can say whether it was applied: on from where the run is."""
        if self._unknown:
            self.run.refresh()
            self._take()
            self.local_steps, self._weight, self._unknown = 0, 0.0, False

    def _contribute(self) -> Receipt:
        if not self.local_steps:
            if not self.run.shared:
                raise ValueError("there has been no local step since the last outer one; expected at least one")
            return self.run.step({})
        local = {name: self._local(name, param) for name, param in self._params.items()}
        weight = self._weight if self.run.shared else 1.0
        try:
            return self.run.contribute_delta(local, weight=weight)
        except Fenced as error:
            if error.applied is not False or not self.run.shared:
                raise
            # Whoever leads has written. Sent once more, it is told so, and brings the newest parameters.
            return self.run.contribute_delta(local, weight=weight)

    def _local(self, name: str, param: torch.Tensor) -> Array:
        """A parameter in the run's precision: where its own is another, with the digits that it does not have."""
        after = as_array(param)
        before = self.run.params[name]
        if after.dtype == before.dtype:
            return after
        began = as_array(torch.from_numpy(before).to(param.dtype)).astype(before.dtype)
        return np.asarray(before - (began - after.astype(before.dtype)))

    def _go_on(self) -> None:
        if self.run.stale:
            self.run.refresh()
        self._take()
        self.local_steps, self._weight = 0, 0.0

    def _take(self) -> None:
        with torch.no_grad():
            for name, param in self._params.items():
                param.copy_(torch.from_numpy(self.run.params[name]))

    def close(self) -> None:
        """Gives the run back to the server, where it stays. Local steps since the last outer one stay here."""
        self._closing()

    def __enter__(self) -> DiLoCo:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
