"""How a Python process of one's own is started: it imports what this process imports, and nothing that lies about."""

from __future__ import annotations

import os
import sys
from types import ModuleType


def python_command() -> list[str]:
    """The interpreter that runs this process, without the working directory on its path (``-P``)."""
    return [sys.executable, "-P", *(["-s"] if sys.flags.no_user_site else []), *(["-S"] if sys.flags.no_site else [])]


def python_environment() -> dict[str, str]:
    """This process's environment, with its module path.

    A PYTHONPATH of its own would not do: its relative entries, an empty one too, mean the working directory of whoever
    reads it, and this process may have been told to ignore it, or have changed ``sys.path`` since.
    """
    ignored = bool(sys.flags.ignore_environment)
    environment = {key: value for key, value in os.environ.items() if not (ignored and key.startswith("PYTHON"))}
    environment["PYTHONPATH"] = os.pathsep.join(module_path())
    return environment


def module_path() -> list[str]:
    """``sys.path``, absolute, without the directory that Python itself has put in front of it: the working directory's
    or the script's. A ``click.py`` there is the user's own and no part of the server.

    Whoever imports gradwire itself from that directory keeps it.
    """
    implied = _implied_directory()
    ours = {os.path.dirname(place) for place in sys.modules["gradwire"].__path__}
    found = []
    for entry in sys.path:
        try:
            place = os.path.abspath(entry)  # of "": the working directory
        except OSError:  # which has been deleted
            continue
        if (entry == "" or place == implied) and place not in ours:
            if entry:
                implied = None  # a second time it is there because somebody has asked for it
            continue
        if os.pathsep not in place:  # there is no way to write it
            found.append(place)
    return found


def _implied_directory() -> str | None:
    """What Python has put in front of ``sys.path``, beside the "" of ``-c`` and of a prompt."""
    main: ModuleType | None = sys.modules.get("__main__")
    if sys.flags.safe_path or main is None:
        return None
    spec = getattr(main, "__spec__", None)
    try:
        if spec is not None and spec.name != "__main__":  # python -m
            return os.getcwd()
        file = getattr(main, "__file__", None)
        return None if file is None else os.path.dirname(os.path.realpath(file))
    except OSError:
        return None
