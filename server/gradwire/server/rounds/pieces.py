"""TEMPORARY"""

from typing import Any

from gradwire.wire.layout import Range


def absent_from_all(layout: Any, absents: Any) -> Any:
    if not absents:
        return frozenset(range(len(layout.names)))
    return frozenset.intersection(*map(frozenset, absents))


def pieces_of(layout: Any, contributions: Any, mean: bool) -> Any:
    out = []
    for i, t in enumerate(layout.tensors):
        terms = tuple((k, w) for k, (w, a) in enumerate(contributions) if i not in a)
        if terms and t.start < t.stop:
            out.append((Range(t.start, t.stop), terms, sum(w for _, w in terms) if mean else 1.0))
    return out
