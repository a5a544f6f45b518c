"""Parameters of a torch program bound to a run: made, resumed, extended, edited, stepped."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from gradwire.client.connection import Server
from gradwire.client.errors import LayoutMismatch
from gradwire.client.optimizers import Adam, ParamGroup
from gradwire.client.run import Run
from gradwire.client.torch import groups as torch_groups
from gradwire.client.torch.state import run_state, tensor_states
from gradwire.client.torch.tensors import Array, RemoteTensor, as_array

ParamGroups = Sequence[dict[str, Any]]


class Binding:
    """One run and the parameters that it updates, in layout order.

    Args:
        param_groups: as torch has them; those without parameters are no groups of the run.
        optimizer: the preset that names the class of the update rule.
        creation: further arguments of `Server.create_run`.

    Raises as `Server.create_run` does, and ValueError where there is no parameter at all.
    """

    def __init__(self, server: Server, param_groups: ParamGroups, optimizer: Adam, creation: Mapping[str, Any]) -> None:
        groups = [group for group in param_groups if group["params"]]
        if not groups:
            raise ValueError("the parameter groups are all empty; expected at least one parameter")
        self.tensors = [RemoteTensor(name, param) for name, param in _names(groups)]
        values = dict(creation.get("values", {}))
        members = iter(self.tensors)
        parts = []
        for group in groups:
            arrays = {}
            for tensor in itertools.islice(members, len(group["params"])):
                arrays[tensor.name] = values[tensor.name] if tensor.name in values else as_array(tensor.param)
            parts.append(ParamGroup(arrays, **torch_groups.hyperparameters(group)))
        params = [tensor.param for tensor in self.tensors]
        doubles = any(param.dtype is torch.float64 for param in params)
        self.run: Run = server.create_run(
            params=parts,
            optimizer=optimizer,
            **{
                "dtype": "float64" if doubles else "float32",
                **_encodings(params),
                **{key: value for key, value in creation.items() if key != "values"},
            },
        )
        self._choices = [torch_groups.choices(group) for group in groups]
        self._in_force = [torch_groups.numbers(group) for group in groups]
        self._behind = False  # a step was interrupted between the server and the parameters
        self._refreshes = self.run.refreshes

    def resume(self, param_groups: ParamGroups) -> None:
        """Puts what the run has into the parameters and the groups. Raises LayoutMismatch for another optimizer."""
        groups = [group for group in param_groups if group["params"]]
        for index, (group, theirs) in enumerate(zip(groups, self.run.describe().spec.groups, strict=True)):
            try:
                torch_groups.check_choices(
                    index, torch_groups.choices(group), torch_groups.choices_of(theirs.adam), "here; the run has"
                )
            except ValueError as error:
                raise LayoutMismatch(f"run {self.run.name!r} exists with another optimizer: {error}") from None
            torch_groups.adopt(group, theirs.adam)
        self._in_force = [torch_groups.numbers(group) for group in groups]
        self._take(self.tensors)

    # --- steps ---------------------------------------------------------------------------------------------------

    def gradients(self) -> dict[str, Array]:
        """Those that there are. Raises ValueError or TypeError for parameters and gradients that do not fit."""
        for tensor in self.tensors:
            tensor.check()
        return {tensor.name: array for tensor in self.tensors if (array := tensor.gradient()) is not None}

    def overrides(self, param_groups: ParamGroups) -> dict[int, dict[str, Any]]:
        """What has changed in the groups since the last step. Raises ValueError for what cannot change."""
        overrides = {}
        for index, group in enumerate(group for group in param_groups if group["params"]):
            torch_groups.check_supported(group)
            torch_groups.check_choices(index, group, self._choices[index], "now; the run was made with")
            wanted = torch_groups.numbers(group)
            changed = {key: value for key, value in wanted.items() if self._in_force[index].get(key) != value}
            if changed:
                overrides[index] = changed
        return overrides

    def step(
        self, gradients: Mapping[str, Array], overrides: Mapping[int, Mapping[str, Any]], ahead: Collection[str]
    ) -> None:
        """One step on the server; then the parameters take the new values."""
        behind, self._behind = self._behind, True
        try:
            self.run.step(gradients, overrides=overrides, ahead=ahead)
        except BaseException:
            for known in self._in_force:
                known.clear()  # whether the overrides took effect is not known: the next step says all of them
            raise
        for index, changed in overrides.items():
            self._in_force[index].update(changed)
        everything = behind or self.run.refreshes != self._refreshes
        self._take([tensor for tensor in self.tensors if everything or tensor.name in gradients])

    def write_edits(self) -> bool:
        """Sends parameters that were changed since they were last equal to the server's; whether there were any."""
        edited = [tensor for tensor in self.tensors if tensor.edited]
        if edited:
            self.run.write({tensor.name: as_array(tensor.param) for tensor in edited}, partial=True)
            for tensor in edited:
                tensor.note()
        return bool(edited)

    def _take(self, tensors: Sequence[RemoteTensor]) -> None:
        for tensor in tensors:
            tensor.put(self.run.params[tensor.name])
        self._behind = False
        self._refreshes = self.run.refreshes

    # --- state ---------------------------------------------------------------------------------------------------

    def states(self) -> dict[torch.Tensor, dict[str, Any]]:
        """The state of each parameter that was stepped, in torch's words; 16-bit parameters have it in float32."""
        states = {}
        entries = tensor_states(self.run, [group.adam for group in self.run.describe().spec.groups])
        for tensor, entry in zip(self.tensors, entries, strict=True):
            if entry is not None:
                dtype = tensor.dtype if tensor.dtype is torch.float64 else torch.float32
                slots = {k: v.to(device=tensor.param.device, dtype=dtype) for k, v in entry.items() if k != "step"}
                states[tensor.param] = {"step": entry["step"], **slots}
        return states

    def load(self, state: Mapping[str, Any], param_groups: ParamGroups) -> None:
        """Puts a state of torch's on the server, whole or not at all. Raises ValueError where it does not fit."""
        groups = [group for group in param_groups if group["params"]]
        for index, group in enumerate(groups):
            torch_groups.check_choices(index, group, self._choices[index], "in the state; this optimizer has")
        specs = [group.adam for group in self.run.describe().spec.groups]
        packed = run_state(self.run, specs, {"state": state, "param_groups": groups})
        if packed["step"] or self.run.step_count:  # not zeros over zeros
            self.run.load_state_dict(packed)

    def grown(self, server: Server, param_groups: ParamGroups, optimizer: Adam, creation: Mapping[str, Any]) -> Binding:
        """A binding with further groups, whose run has taken the place of this one, whole.

        The tensors that were there keep their values and state to the last bit.
        """
        self.write_edits()
        state, values = self.run.state_dict(), self.run.read()
        groups = [group for group in param_groups if group["params"]]
        slots = ["exp_avg", "exp_avg_sq"]
        if any(group["amsgrad"] for group in groups):
            slots.append("max_exp_avg_sq")
        known = {tensor.param: tensor.name for tensor in self.tensors}
        tensors: dict[str, Any] = {}
        kept = {}
        for name, param in _names(groups):
            tensors[name] = {"step": 0, **{slot: np.zeros(tuple(param.shape)) for slot in slots}}
            if param in known:
                tensors[name].update(state["tensors"][known[param]])
                kept[name] = values[known[param]]
        more = {
            "on_existing": "replace",
            "state": {"step": state["step"], "tensors": tensors},
            "values": kept,
        }
        new = Binding(server, param_groups, optimizer, {**creation, **more})
        self.run.close()
        return new


def _names(groups: ParamGroups) -> Iterator[tuple[str, torch.Tensor]]:
    """Each parameter with its name in the run: its own where there are names, made unique, else its number."""
    seen: set[str] = set()
    for group in groups:
        for name, param in zip(group.get("param_names", [""] * len(group["params"])), group["params"], strict=True):
            number = len(seen)
            while not name or name in seen:
                name, number = f"{name or 'param'}_{number}", number + 1
            seen.add(name)
            yield name, param


def _encodings(params: Sequence[torch.Tensor]) -> dict[str, str]:
    """Where all parameters have the same 16 bits, so do their gradients, and no more needs to travel."""
    names = {torch.bfloat16: "bfloat16", torch.float16: "float16"}
    dtypes = {param.dtype for param in params}
    name = names.get(dtypes.pop()) if len(dtypes) == 1 else None
    return {} if name is None else {"gradient_encoding": name, "parameter_encoding": name}
