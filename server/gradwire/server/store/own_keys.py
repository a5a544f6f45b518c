"""What the store itself keeps in the JSON texts of its rows; who reads the texts above it does not see these keys."""

from __future__ import annotations

import json

NEXT_SNAPSHOT = "next_snapshot"
"""Of a run: the id that its next snapshot gets. It only rises: what has been deleted gives its id to no other."""

NUMBER = "number"
"""Of a snapshot: its id among its run's own. One that has none has its row's: so were they numbered once."""


def with_key(extra: str, key: str, number: int) -> str:
    """The text as it is stored. Raises ValueError where ``extra`` is no JSON object."""
    data = json.loads(extra)
    if not isinstance(data, dict):
        raise ValueError("what is stored besides must be a JSON object")
    return json.dumps(data | {key: number})


def without_key(text: str, key: str) -> tuple[str, int | None]:
    """(the text without the key, its number); what is not as `with_key` writes it stays, and has None."""
    try:
        data = json.loads(text)
        number = data.pop(key)
    except (ValueError, KeyError, AttributeError, TypeError):
        return text, None
    return (json.dumps(data), number) if type(number) is int else (text, None)
