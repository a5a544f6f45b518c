"""Processes that tests start. None outlives its test, however the test ends."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any


@contextmanager
def child(command: Sequence[str], **options: Any) -> Iterator[subprocess.Popen[str]]:
    """A process with its three streams as pipes of text, unless ``options`` of Popen say otherwise.

    Afterwards it is over: killed, if it has not ended before. Popen's own context manager would wait for it.
    """
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    with subprocess.Popen(command, text=True, **{**pipes, **options}) as process:
        try:
            yield process
        finally:
            process.kill()
