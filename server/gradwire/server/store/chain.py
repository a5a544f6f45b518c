"""Hashes: of what is written, and of all that was written before it.

Each journal row's hash covers the row and the hash before it. A row that was changed, lost, repeated or moved breaks
the chain at its place, whatever SQLite thinks of the page that it lies on.
"""

from __future__ import annotations

import hashlib
import json

import xxhash

from gradwire.server.store.base import Entry, JournalBroken, Position

_encode = json.JSONEncoder(default=repr).encode


def digest(*fields: object) -> bytes:
    """SHA-256 of some strings and numbers; of anything else, which only damage puts there, something."""
    return hashlib.sha256(_encode(fields).encode()).digest()


def first_link(uid: str, spec: str) -> bytes:
    """Where the chain of a run begins."""
    return digest("run", uid, spec)


def next_link(previous: bytes, entry: Entry) -> bytes:
    """The hash of a journal row that follows ``previous``."""
    # SHA-256 of the gradients would take a quarter of a commit. What is looked for is damage, not forgery: who can
    # write to the file can write a whole new chain, whatever the hash.
    content = xxhash.xxh3_128_digest(entry.gradients)
    worker_id, block, fingerprint = entry.worker_id, entry.block, entry.fingerprint
    numbers = (entry.sequence, entry.step, len(entry.gradients), len(worker_id), len(block), len(fingerprint))
    text = f"{numbers}{worker_id}{block}{fingerprint}"
    return hashlib.sha256(previous + content + text.encode()).digest()


def verify(before: Position, found: Position, entry: Entry) -> None:
    """Raises JournalBroken unless a row that was found is the one that follows ``before``."""
    expected = before.number + 1
    if found.number != expected:
        raise JournalBroken(f"block {expected} of the journal is missing, block {found.number} is there")
    if found.chain != next_link(before.chain, entry):
        raise JournalBroken(f"block {expected} of the journal is not what was written")


def barrier_link(previous: bytes, sha256: str) -> bytes:
    """The hash of values that were put in place, where the chain does not go on from the ones before."""
    return digest("barrier", previous.hex(), sha256)
