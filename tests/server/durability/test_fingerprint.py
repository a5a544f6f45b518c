"""A journal is replayed by another build only while the sources that compute the bits are the same, to the letter."""

from __future__ import annotations

import ast
import hashlib
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from gradwire.server.devices import chunks, cpu, driver
from gradwire.server.durability import fingerprint as fingerprint_module
from gradwire.server.durability.fingerprint import computing_text, fingerprint
from gradwire.server.engine import clipping
from gradwire.server.optimizers import adam, schedules
from gradwire.server.optimizers.adagrad import AdagradHyperparameters
from gradwire.server.optimizers.adam import AdamHyperparameters
from gradwire.server.optimizers.known import OPTIMIZERS
from gradwire.server.optimizers.sgd import SgdHyperparameters

KNOWN = "2252f320aa6f111e"
"""As of 2026-11-28."""


def test_sources_that_compute_are_those_of_the_journals_that_are_out_there() -> None:
    """A changed comment is enough: a run whose server was killed before the upgrade would be refused by the new build.

    Where that cannot be helped, the changelog says so, and the new value stands here.
    """
    text = computing_text(adam, schedules, clipping, driver, chunks, cpu)
    assert hashlib.sha256(text.encode()).hexdigest()[:16] == KNOWN


def test_an_optimizer_s_text_counts_for_the_runs_that_have_it_and_for_no_others() -> None:
    """A new optimizer, or a changed one, must not refuse the journals of the others."""
    device = cpu.CpuDevice(1)
    adams, other = fingerprint(device, [AdamHyperparameters()]), fingerprint(device, [SgdHyperparameters()])
    assert fingerprint(device, []) == adams
    assert len({adams, other, fingerprint(device, [AdagradHyperparameters()])}) == 3
    assert fingerprint(device, [AdamHyperparameters(), SgdHyperparameters(momentum=0.5)]) == other


def test_sources_are_parsed_by_one_thread_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Python 3.11 fails now and then where two do: "AST constructor recursion depth mismatch"."""
    parse, busy, found = ast.parse, threading.Lock(), []

    def alone(source: str) -> ast.Module:
        found.append(busy.acquire(blocking=False))
        time.sleep(0.01)
        tree = parse(source)
        busy.release()
        return tree

    monkeypatch.setattr(ast, "parse", alone)
    modules = [sys.modules[kind.__module__] for kind in OPTIMIZERS.values()]
    fingerprint_module._text_of.cache_clear()
    with ThreadPoolExecutor(len(modules)) as pool:
        list(pool.map(fingerprint_module.computing_text, modules))
    assert found == [True] * len(modules)
