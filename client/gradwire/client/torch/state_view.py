"""``optimizer.state`` as torch has it, of a state that is on a server.

Reading fetches the state, once between two steps; what is written, and what is done to the tensors that were read, goes
to the server before the next step. Where nobody looks, a step costs nothing more. Keys that are not Adam's, which
wrappers keep beside them, stay here and are never fetched for.
"""

from __future__ import annotations

import copy
import weakref
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping
from typing import Any, TypeVar

import torch

from gradwire.client.torch.tensors import Look

SLOTS = ("step", "exp_avg", "exp_avg_sq", "max_exp_avg_sq")
"""The keys of Adam's own; all others are somebody else's."""

States = dict[torch.Tensor, dict[str, Any]]

_Kind = TypeVar("_Kind", bound=type)


def _asking(kind: _Kind) -> _Kind:
    """The methods of dict look at its memory; those of MutableMapping ask ``__getitem__``, ``__iter__``."""
    for name in (
        "get",
        "items",
        "keys",
        "values",
        "__eq__",
        "__ne__",
        "pop",
        "popitem",
        "clear",
        "update",
        "setdefault",
    ):
        if name not in vars(kind):
            setattr(kind, name, getattr(MutableMapping, name))
    return kind


@_asking
class Entry(dict[Any, Any]):
    """The state of one parameter. ``owner``: loads what the server has; without one this is a dict."""

    def __init__(self, values: Any = (), owner: StateView | None = None) -> None:
        super().__init__(values)
        self._owner = owner

    def _load(self) -> None:
        if self._owner is not None:
            self._owner.load()

    def __getitem__(self, key: Any) -> Any:
        if key in SLOTS:
            self._load()
        return super().__getitem__(key)

    def __setitem__(self, key: Any, value: Any) -> None:
        if key in SLOTS:
            self._load()
        super().__setitem__(key, value)

    def __delitem__(self, key: Any) -> None:
        if key in SLOTS:
            self._load()
        super().__delitem__(key)

    def __contains__(self, key: object) -> bool:
        if key in SLOTS:
            self._load()
        return super().__contains__(key)

    def __iter__(self) -> Iterator[Any]:
        self._load()
        return super().__iter__()

    def __len__(self) -> int:
        self._load()
        return super().__len__()

    def __repr__(self) -> str:
        return repr(self.copy())

    def copy(self) -> dict[Any, Any]:
        return dict(self.items())

    def __or__(self, other: Any) -> Any:
        return self.copy() | other

    def __reduce_ex__(self, protocol: Any) -> Any:
        return dict, (self.copy(),)

    def raw(self) -> dict[str, Any]:
        """The keys of Adam's as they lie here."""
        return {key: dict.__getitem__(self, key) for key in SLOTS if dict.__contains__(self, key)}


@_asking
class StateView(defaultdict[Any, Any]):
    """Parameter -> `Entry`; other keys belong to others.

    Args:
        params: those of the run, now.
        fetch: the state of those of them that were stepped, from the server, in new tensors.
    """

    def __init__(self, params: Callable[[], Iterable[torch.Tensor]], fetch: Callable[[], States]) -> None:
        super().__init__(dict)
        self._params = params
        self._fetch = fetch
        self._fresh = False
        self._written_off = False  # cleared or assigned: what the server has is of no interest
        self._looks: dict[torch.Tensor, dict[str, _Seen]] = {}
        """How the server's values looked when they came; a parameter that is not in here has no state there."""
        self._held: list[tuple[torch.Tensor, str, weakref.ref[torch.Tensor], Look]] = []
        """Tensors that were read before the last step, and which somebody still has: they change as torch's do."""

    # --- what others see -----------------------------------------------------------------------------------------

    def __getitem__(self, key: Any) -> Any:
        if not dict.__contains__(self, key):
            dict.__setitem__(self, key, Entry((), self) if isinstance(key, torch.Tensor) else {})
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

    def __repr__(self) -> str:
        return repr(self.copy())

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
            if not self._changed_since():
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
        self._fresh = False
        for param, key, reference in read:
            held = reference()
            if held is not None:
                self._held.append((param, key, reference, Look(held)))

    def saved(self) -> dict[Any, Any]:
        """A copy of everything; nothing of what is read for it stays here."""
        kept = self._fresh or bool(self._changed_since())
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
            value = Entry(value, self)
        dict.__setitem__(self, key, value)

    def _fill(self, states: States) -> None:
        edited = self._changed_since()
        held = {(param, key): reference() for param, key, reference, _ in self._held}
        self._held.clear()
        self._fresh = True
        for param, parts in states.items():
            entry = self[param]
            for key, value in parts.items():
                old = held.get((param, key))
                kept = value
                if (param, key) in edited:
                    kept = edited[param, key]
                elif old is not None and not old.is_inference() and _kind(old) == _kind(value):
                    kept = old.copy_(value)
                dict.__setitem__(entry, key, kept)
                self._looks.setdefault(param, {})[key] = _Seen(value if (param, key) in edited else kept)

    def _changed_since(self) -> dict[tuple[torch.Tensor, str], torch.Tensor]:
        """Held tensors that were changed when their values were old already, if what they mean can be known."""
        found = {}
        for param, key, reference, look in self._held:
            held = reference()
            if held is not None and look.changed(held):
                if held.numel() and not bool((held == held.reshape(-1)[0]).all()):
                    self._held.clear()
                    raise ValueError(
                        f"a tensor {key!r} of optimizer.state was changed that had been read before the last step, "
                        "whose values were old; expected optimizer.state[param] to be read anew after each step"
                    )
                found[param, key] = held
        return found


class _Seen:
    """A value of the state, as it was."""

    def __init__(self, value: Any) -> None:
        self._value = value
        self._look = Look(value) if isinstance(value, torch.Tensor) else None

    def changed(self, value: Any) -> bool:
        if value is not self._value:
            return True
        return self._look is not None and self._look.changed(value)


def _kind(tensor: torch.Tensor) -> tuple[Any, ...]:
    return tensor.shape, tensor.dtype, tensor.device


def _copied(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value.detach().clone()
    if type(value) is dict:
        return {key: _copied(part) for key, part in value.items()}
    return copy.deepcopy(value)
