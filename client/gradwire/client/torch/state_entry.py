"""One parameter's part of ``optimizer.state``, which is fetched when somebody looks at it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, MutableMapping, Sequence
from typing import Any, TypeVar

_Kind = TypeVar("_Kind", bound=type)


class _Asking(MutableMapping[Any, Any]):
    """Methods that ask ``__getitem__``, ``__iter__`` and their like; those of dict look at its memory."""

    def __or__(self, other: Any) -> Any:
        return self.copy() | other  # type: ignore[attr-defined]

    def __ror__(self, other: Any) -> Any:
        return other | self.copy()  # type: ignore[attr-defined]

    def __ior__(self, other: Any) -> Any:
        self.update(other)
        return self

    def __repr__(self) -> str:
        return repr(self.copy())  # type: ignore[attr-defined]


def asking(kind: _Kind) -> _Kind:
    """Gives a kind of dict the methods of `_Asking` in place of dict's, but for those that it has of its own."""
    for name in (
        *("get", "items", "keys", "values", "__eq__", "__ne__", "__or__", "__ror__", "__repr__"),
        *("pop", "clear", "update", "setdefault", "__ior__"),
    ):
        if name not in vars(kind):
            setattr(kind, name, getattr(_Asking, name))
    return kind


@asking
class Entry(dict[Any, Any]):
    """The state of one parameter.

    Args:
        own: the keys of the optimizer's own; all others are somebody else's.
        load: puts what the server has into it; without one this is a dict.
    """

    def __init__(self, values: Any = (), own: Sequence[str] = (), load: Callable[[], None] | None = None) -> None:
        super().__init__(values)
        self._own = own
        self._load = load or (lambda: None)

    def __getitem__(self, key: Any) -> Any:
        if key in self._own:
            self._load()
        return super().__getitem__(key)

    def __setitem__(self, key: Any, value: Any) -> None:
        if key in self._own:
            self._load()
        super().__setitem__(key, value)

    def __delitem__(self, key: Any) -> None:
        if key in self._own:
            self._load()
        super().__delitem__(key)

    def __contains__(self, key: object) -> bool:
        if key in self._own:
            self._load()
        return super().__contains__(key)

    def __iter__(self) -> Iterator[Any]:
        self._load()
        return super().__iter__()

    def __len__(self) -> int:
        self._load()
        return super().__len__()

    def popitem(self) -> tuple[Any, Any]:
        self._load()
        return super().popitem()

    def copy(self) -> dict[Any, Any]:
        return dict(self.items())

    def __reduce_ex__(self, protocol: Any) -> Any:
        return dict, (self.copy(),)

    def raw(self) -> dict[str, Any]:
        """The keys of the optimizer's as they lie here."""
        return {key: dict.__getitem__(self, key) for key in self._own if dict.__contains__(self, key)}
