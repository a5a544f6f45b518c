"""Failpoints do nothing unless they are asked to, and then exactly that."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from gradwire.server.failpoints import arm, arm_from, disarm, failpoint


@pytest.fixture(autouse=True)
def clean() -> Iterator[None]:
    yield
    disarm()


def test_off_they_do_nothing() -> None:
    failpoint("anything")
    arm("something", "raise")
    failpoint("anything")


@pytest.mark.parametrize(("action", "number"), [("raise", errno.EIO), ("full", errno.ENOSPC)])
def test_errors(action: str, number: int) -> None:
    arm_from(f" here={action}@2; there=sleep:0.01")
    failpoint("here")
    with pytest.raises(OSError, match="failpoint here") as caught:
        failpoint("here")
    assert caught.value.errno == number
    failpoint("here")


def test_sleep_waits() -> None:
    arm("here", "sleep:0.05")
    started = time.monotonic()
    failpoint("here")
    assert time.monotonic() - started >= 0.05


def test_the_environment_can_kill() -> None:
    program = (
        "from gradwire.server.failpoints import failpoint; failpoint('here'); print(1, flush=True); failpoint('here')"
    )
    environment = {**os.environ, "GRADWIRE_FAILPOINTS": "here=kill@2"}
    result = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, timeout=60)
    assert (result.returncode, result.stdout) == (-signal.SIGKILL, b"1\n")


@pytest.mark.parametrize("text", ["here", "here=explode", "here=sleep", "here=kill:3", "here=sleep:x", "here=kill@x"])
def test_nonsense_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"here|float|int"):
        arm_from(text)
