"""Bytes, as people read them."""

from __future__ import annotations

_UNITS = ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB"))


def amount(part: int, whole: int) -> str:
    """So many of so many, as in "3 of 25 MiB": both in the unit of the whole."""
    size, unit = next(((size, unit) for size, unit in _UNITS if whole >= size), (1, "bytes"))
    shown = [f"{number / size:.1f}".removesuffix(".0") for number in (part, whole)]
    return f"{shown[0]} of {shown[1]} {unit}"
