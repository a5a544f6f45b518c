"""Parameters of a torch program bound to a run that other processes train too."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from math import isclose, sqrt
from typing import Any, NoReturn

from gradwire.client.connection import Server
from gradwire.client.optimizers.optimizer import Optimizer
from gradwire.client.options import Receipt
from gradwire.client.torch import groups as torch_groups
from gradwire.client.torch.binding import Binding, ParamGroups, members_of
from gradwire.client.torch.state import run_state
from gradwire.client.torch.tensors import Array, RemoteTensor
from gradwire.wire.errors import Fenced, LeaderBusy, NonFiniteGradient

STEPS_OF_ANOTHER_RATE = 3
"""After so many in a row this process's learning rate is not only late."""


class SharedBinding(Binding):
    """As `Binding`. What holds for all, hyperparameters, edits and loaded state, comes from the worker that leads."""

    _wanted: tuple[Mapping[str, Any], ...] = ()
    """The groups as they were at this step."""
    _rates_differ = 0
    """In how many steps in a row."""

    def overrides(self, param_groups: ParamGroups) -> dict[int, dict[str, Any]]:
        """Of a worker that does not lead none: its groups are compared with what is in force, see `step`."""
        changed = super().overrides(param_groups)
        self._wanted = tuple(dict(group) for group in members_of(param_groups).values())
        return changed if self.run.leads else {}

    def step(
        self,
        gradients: Mapping[str, Array],
        overrides: Mapping[int, Mapping[str, Any]],
        ahead: Collection[str],
        weight: float = 1.0,
    ) -> Receipt:
        """As `Binding.step`. Raises LeaderBusy where a worker that does not lead has had another learning rate than the
        run for some steps in a row."""
        try:
            receipt = super().step(gradients, overrides, ahead, weight)
        except NonFiniteGradient:
            self._take(self.tensors)  # its answer, too, brought the newest
            raise
        if receipt.applied and not self.run.leads:
            self._compare_rates(receipt)
        return receipt

    def _send(
        self,
        gradients: Mapping[str, Array],
        overrides: Mapping[int, Mapping[str, Any]],
        ahead: Collection[str],
        weight: float,
    ) -> Receipt:
        try:
            return super()._send(gradients, overrides, ahead, weight)
        except Fenced as error:
            if error.applied is not False:
                raise
            # Somebody has written, or put the run back, which shall not end the training of the others. Where that has
            # left the parameters alone, as when rank 0 loads an optimizer state, the gradient is as good as it was.
            # Else, sent once more as what it is, it is told so, and brings the newest parameters.
            if self._still_the_run_s():
                self.run.refresh()
            return super()._send(gradients, overrides, (), weight)

    def _still_the_run_s(self) -> bool:
        """Whether the parameters here, to the last bit, are those of the run now."""
        return all(here.tobytes() == self.run.params[name].tobytes() for name, here in self.run.read().items())

    def _answered(self, gradients: Mapping[str, Array]) -> list[RemoteTensor]:
        return self.tensors

    def _compare_rates(self, receipt: Receipt) -> None:
        wanted = [_rate(group, receipt.step) for group in self._wanted]
        same = all(isclose(*pair, rel_tol=1e-6) for pair in zip(wanted, receipt.learning_rates, strict=False))
        self._rates_differ = 0 if same else self._rates_differ + 1
        if self._rates_differ >= STEPS_OF_ANOTHER_RATE:
            raise LeaderBusy(
                f"the learning rates of worker {self.run.worker_id} are {wanted}, and those of run {self.run.name!r} "
                f"have been {list(receipt.learning_rates)}, for {self._rates_differ} steps. Only the worker that leads "
                "changes them; expected the same schedule here as there, or none",
                applied=True,
            )

    def write_edits(self) -> None:
        """Raises LeaderBusy where a worker that does not lead has some."""
        if self.run.leads:
            super().write_edits()
            return
        self.wrote = False
        looked_at = [tensor for tensor in self.tensors if tensor.edited]
        for tensor in looked_at:
            tensor.check()
        edited = looked_at
        if not self._behind and not self.run.stale:
            edited = [tensor for tensor in looked_at if tensor.differences(self.run.params[tensor.name]).any()]
        if edited:
            named = ", ".join(repr(tensor.name) for tensor in edited[:5])
            raise LeaderBusy(
                f"parameters were changed here between steps ({named}), and worker {self.run.worker_id} does not lead "
                f"run {self.run.name!r}; expected that from the worker that leads"
            )
        for tensor in looked_at:
            tensor.note()

    def load(self, state: Mapping[Any, Any], param_groups: ParamGroups) -> None:
        """A worker that does not lead only looks whether it fits."""
        if self.run.leads:
            super().load(state, param_groups)
            return
        groups = self._checked(param_groups)
        run_state(self.run, self.run.describe().spec.groups, {"state": state, "param_groups": groups})

    def grown(
        self, server: Server, param_groups: ParamGroups, optimizer: Optimizer, creation: Mapping[str, Any]
    ) -> NoReturn:
        """Raises ValueError."""
        raise ValueError(
            f"run {self.run.name!r} is shared: its groups and parameters cannot change, for other workers hold them; "
            "expected a new run, made by all of them"
        )


def _rate(group: Mapping[str, Any], step: int) -> float:
    """What the run's learning rate is at this step if the group's ``lr`` is in force."""
    lr = float(group["lr"])
    return lr / sqrt(step) if torch_groups.choices(group)["schedule"] == "inverse-sqrt" else lr
