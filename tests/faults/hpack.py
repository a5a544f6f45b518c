"""Headers of HTTP/2 without tables and without Huffman's code: each field as it is, there and back."""

from __future__ import annotations

from collections.abc import Sequence

_LITERAL = (0x00, 0x10, 0x40)
"""A field whose name and value follow: not to be put into a table, never, or put there."""


def encode(fields: Sequence[tuple[str, str]]) -> bytes:
    return b"".join(b"\0" + _string(name.encode()) + _string(value.encode()) for name, value in fields)


def decode(block: bytes) -> dict[str, bytes]:
    """What a peer says that has been told to keep no table. Raises ValueError for what needs more than that."""
    fields: dict[str, bytes] = {}
    at = 0
    while at < len(block):
        first, at = block[at], at + 1
        if first & 0xE0 == 0x20:  # how large a table may be
            _, at = _number(block, at - 1, 0x1F)
            continue
        if first & 0x80:  # of the table that all have: none of gRPC's own are in it
            continue
        if first not in _LITERAL:
            raise ValueError(f"the name of a field that begins with {first:#x} stands in a table")
        name, at = _text(block, at)
        fields[name.decode()], at = _text(block, at)
    return fields


def _string(data: bytes) -> bytes:
    size = len(data)
    if size < 127:
        return bytes([size]) + data
    rest, prefix = size - 127, b"\x7f"
    while rest >= 128:
        prefix, rest = prefix + bytes([rest % 128 + 128]), rest // 128
    return prefix + bytes([rest]) + data


def _text(block: bytes, at: int) -> tuple[bytes, int]:
    if block[at] & 0x80:
        raise ValueError("a text in Huffman's code")
    size, at = _number(block, at, 0x7F)
    return block[at : at + size], at + size


def _number(block: bytes, at: int, mask: int) -> tuple[int, int]:
    number, at = block[at] & mask, at + 1
    if number < mask:
        return number, at
    shift = 0
    while True:
        byte, at = block[at], at + 1
        number += (byte & 0x7F) << shift
        if not byte & 0x80:
            return number, at
        shift += 7
