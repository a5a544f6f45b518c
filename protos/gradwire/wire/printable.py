"""Words of others, as they may be shown on a terminal or in a log."""

from __future__ import annotations


def printable(text: str) -> str:
    """``text`` with everything escaped that a terminal would obey or not show: a newline in a name would add a line."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in text)
