"""Texts in pieces are those of ``json.dumps``: what is stored, and hashed, does not depend on how it was written."""

from __future__ import annotations

import json
from typing import Any

import pytest

from gradwire.server.store.json_text import joined, list_text, object_text


@pytest.mark.parametrize("length", [0, 1, 999, 1000, 1001, 2500])
def test_pieces_make_the_text_of_the_whole(length: int) -> None:
    items: list[Any] = [["é" * (index % 3), [index, 0.1], None, float("inf")] for index in range(length)]
    assert list_text(items) == json.dumps(items)
    assert list_text(tuple(items)) == json.dumps(items)
    named = {f"ü{index}": item for index, item in enumerate(items)}
    assert object_text(named) == json.dumps(named)
    assert joined("[]", map(json.dumps, items)) == json.dumps(items)
