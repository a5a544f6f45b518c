"""``optimizer.state`` as torch has it, of a state that is on a server.

Reading fetches the state, once between two steps; what is written, and what is done to the tensors that were read, goes
to the server before the next step. Where nobody looks, a step costs nothing more. Keys that are not the optimizer's,
which wrappers keep beside them, stay here and are never fetched for.
"""

from __future__ import annotations

import copy
import weakref
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch

from gradwire.client.torch.held_tensors import HeldTensors, refilled
from gradwire.client.torch.state_entry import Entry, asking
from gradwire.client.torch.tensors import Look

States = dict[torch.Tensor, dict[str, Any]]


@asking
class StateView(defaultdict[Any, Any]):
    """Parameter -> `Entry`; other keys belong to others.

    Args:
        params: those of the run, now.
        fetch: the state of those of them that were stepped, from the server, in new tensors.
        own: see `Entry`.
    """

    def __init__(
        self, params: Callable[[], Iterable[torch.Tensor]], fetch: Callable[[], States], own: Sequence[str]
    ) -> None:
        super().__init__(dict)
        self._own = own
        self._params = params
        self._fetch = fetch
        self._fresh = False
        self._written_off = False  # cleared or assigned: what the server has is of no interest
        self._looks: dict[torch.Tensor, dict[str, _Seen]] = {}
        """How the server's values looked when they came; a parameter that is not in here has no state there."""
        self._held = HeldTensors()
        """Tensors that were read before the last step."""

    # --- what others see -----------------------------------------------------------------------------------------

    def __getitem__(self, key: Any) -> Any:
        if not dict.__contains__(self, key):
            dict.__setitem__(self, key, Entry((), self._own, self.load) if isinstance(key, torch.Tensor) else {})
        return dict.__getitem__(self, key)

    def __setitem__(self, key: Any, value: Any) -> None:
        self.load()
        self._put(key, value)

    def __delitem__(self, key: Any) -> None:
        self.load()
        dict.__delitem__(self, key)

    def __contains__(self, key: object) -> bool:
        self.load()
        return dict.__contains__(self, key)

    def __iter__(self) -> Iterator[Any]:
        self.load()
        return dict.__iter__(self)

    def __len__(self) -> int:
        self.load()
        return dict.__len__(self)

    def get(self, key: Any, default: Any = None) -> Any:
        return self[key] if key in self else default  # noqa: SIM401 - it is this method

    def pop(self, key: Any, *default: Any) -> Any:
        self.load()
        return dict.pop(self, key, *default)

    def popitem(self) -> tuple[Any, Any]:
        self.load()
        return dict.popitem(self)

    def setdefault(self, key: Any, default: Any = None) -> Any:
        if key not in self:
            self[key] = default
        return self[key]

    def clear(self) -> None:
        dict.clear(self)
        self._held.clear()
        self._fresh = self._written_off = True

    def copy(self) -> defaultdict[Any, Any]:  # type: ignore[override]
        return defaultdict(dict, self.items())

    __copy__ = copy  # type: ignore[assignment]

    def __reduce_ex__(self, protocol: Any) -> Any:
        return defaultdict, (dict, dict(self.items()))

    # --- what the optimizer does ---------------------------------------------------------------------------------

    def load(self) -> None:
        """Brings what the server has, unless it is here. Raises ValueError as `edits` does."""
        if not self._fresh:
            self._fill(self._fetch())

    def begin(self, states: States) -> None:
        """These are on the server, although no step has been made."""
        self._fill(states)

    def replace(self, values: Mapping[Any, Any]) -> None:
        """Somebody has assigned a whole new state."""
        values = dict(values)  # it may be made of this one
        self.clear()
        for key, value in values.items():
            self._put(key, value)

    def keep(self, others: Mapping[Any, Any]) -> None:
        """A state was loaded: the server has it, but for what is others'."""
        self.replace(others)
        self._fresh = self._written_off = False
        self._looks.clear()

    def edits(self) -> States:
        """The parameters whose state is not what the server has, with all of theirs; an empty one is a reset.

        Raises ValueError for a tensor that was changed in part after a step had made its values old.
        """
        if not self._fresh:
            if not self._held.changed():
                return {}
            self.load()
        found = {}
        for param in self._params():
            entry = dict.get(self, param)
            ours, seen = entry.raw() if isinstance(entry, Entry) else {}, self._looks.get(param, {})
            if self._written_off or ours.keys() != seen.keys() or any(seen[k].changed(v) for k, v in ours.items()):
                found[param] = ours
        return found

    def note(self) -> None:
        """The server has what is here now."""
        self._written_off = False
        if self._fresh:
            self._looks = {
                param: {key: _Seen(value) for key, value in entry.raw().items()}
                for param, entry in dict.items(self)
                if isinstance(entry, Entry) and entry.raw()
            }

    def outdate(self) -> None:
        """A step has begun: what was read is not what the server has any more."""
        if not self._fresh:
            return
        read = []
        for param, entry in dict.items(self):
            if isinstance(entry, Entry):
                for key, value in entry.raw().items():
                    if isinstance(value, torch.Tensor):
                        read.append((param, key, weakref.ref(value)))
                    dict.__delitem__(entry, key)
                    del value
        self._looks.clear()
        self._fresh = self._written_off = False
        for param, key, reference in read:
            held = reference()
            if held is not None:
                self._held.add((param, key), held)

    def saved(self) -> dict[Any, Any]:
        """A copy of everything; nothing of what is read for it stays here."""
        kept = self._fresh or bool(self._held.changed())
        if kept:
            self.load()
        states = {} if kept else self._fetch()
        found: dict[Any, Any] = {}
        for key in dict.fromkeys([*states, *dict.keys(self)]):
            value = dict.get(self, key, {})
            if isinstance(value, Entry):
                value = {name: dict.__getitem__(value, name) for name in dict.keys(value)}
            if key in states:
                value = {**states[key], **value}
            if value or not isinstance(key, torch.Tensor):
                found[key] = _copied(value)
        return found

    # --- inside --------------------------------------------------------------------------------------------------

    def _put(self, key: Any, value: Any) -> None:
        if isinstance(key, torch.Tensor) and isinstance(value, Mapping):
            value = Entry(value, self._own, self.load)
        dict.__setitem__(self, key, value)

    def _fill(self, states: States) -> None:
        edited, held = self._held.changed(), self._held.alive()
        self._held.clear()
        self._fresh = True
        for param, parts in states.items():
            entry = self[param]
            for key, value in parts.items():
                place = param, key
                kept = edited[place] if place in edited else refilled(held.get(place), value)
                dict.__setitem__(entry, key, kept)
                self._looks.setdefault(param, {})[key] = _Seen(value if place in edited else kept)


class _Seen:
    """A value of the state, as it was."""

    def __init__(self, value: Any) -> None:
        self._value = value
        self._look = Look(value) if isinstance(value, torch.Tensor) else None

    def changed(self, value: Any) -> bool:
        if value is not self._value:
            return True
        return self._look is not None and self._look.changed(value)


def _copied(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value.detach().clone()
    if type(value) is dict:
        return {key: _copied(part) for key, part in value.items()}
    return copy.deepcopy(value)
