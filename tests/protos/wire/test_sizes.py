"""Sizes as people read them."""

from __future__ import annotations

import pytest

from gradwire.wire.sizes import amount


@pytest.mark.parametrize(
    ("part", "whole", "text"),
    [
        (0, 4, "0 of 4 bytes"),
        (1023, 1023, "1023 of 1023 bytes"),
        (512, 1024, "0.5 of 1 KiB"),
        (1, 25 * 2**20, "0 of 25 MiB"),
        (3 * 2**29, 5 * 2**40, "1.5 of 5120 GiB"),
    ],
)
def test_amounts(part: int, whole: int, text: str) -> None:
    assert amount(part, whole) == text
