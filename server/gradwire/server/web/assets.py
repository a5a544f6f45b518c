"""The files that browsers load: read once, and known by what is in them."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".svg": "image/svg+xml",
    ".txt": "text/plain; charset=utf-8",
}


@dataclass(frozen=True)
class Asset:
    """One file."""

    data: bytes
    content_type: str
    tag: str
    """Changes with the data, as HTTP's ``ETag``."""


def load() -> dict[str, Asset]:
    """All files, by name. Raises OSError where the package is not whole."""
    found = {}
    for path in sorted((Path(__file__).parent / "static").iterdir()):
        if path.suffix in _TYPES:
            data = path.read_bytes()
            found[path.name] = Asset(data, _TYPES[path.suffix], f'"{hashlib.sha256(data).hexdigest()[:16]}"')
    return found
