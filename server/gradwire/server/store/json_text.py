"""JSON as ``json.dumps`` writes it, in pieces: over a long list that would let no other thread run until its end."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from itertools import islice
from typing import Any

_TOGETHER = 1000
"""Items that become text at once: a fraction of a millisecond."""


def list_text(items: Iterable[Any]) -> str:
    """Of a long list."""
    rest = iter(items)
    pieces = iter(lambda: list(islice(rest, _TOGETHER)), [])
    return joined("[]", (json.dumps(piece)[1:-1] for piece in pieces))


def object_text(items: Mapping[str, Any]) -> str:
    """Of an object with many keys."""
    rest = iter(items.items())
    pieces = iter(lambda: dict(islice(rest, _TOGETHER)), {})
    return joined("{}", (json.dumps(piece)[1:-1] for piece in pieces))


def joined(brackets: str, texts: Iterable[str]) -> str:
    """Of a list or an object whose items are text already."""
    return f"{brackets[0]}{', '.join(texts)}{brackets[1]}"
