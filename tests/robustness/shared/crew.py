"""A process of workers, one of each shared run. The zygote forks it; it can be killed and stopped at any moment."""

from __future__ import annotations

import os
import sys
import threading
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.robustness.shared.contributor import Contributor
from tests.robustness.shared.events import Notes, Reader
from tests.robustness.shared.moments import Orders, Recklessness
from tests.robustness.shared.setting import Setting


def notes_of(directory: Path, setting: Setting, rank: int) -> Path:
    """Where a worker's events are."""
    return directory / f"{setting.name}.{rank}.events"


def become_crew(order: Mapping[str, Any]) -> None:
    """In the forked process: lets its workers go on, until nobody gives orders any more. An order is a line: the
    number of one to come to rest, or 0."""
    orders = Orders()
    directory = Path(order["directory"])
    for fields in order["settings"]:
        setting = Setting(**fields)
        if order["rank"] >= setting.workers:
            continue
        path = notes_of(directory, setting, order["rank"])
        past = Reader(path).read()
        contributor = Contributor(
            setting,
            order["rank"],
            order["direct"] if setting.is_near(order["rank"]) else order["target"],
            Notes(path),
            past,
            orders,
            Recklessness(*order["recklessness"]),
        )
        threading.Thread(target=_work, args=(contributor,), daemon=True).start()
    sys.stdout.write("works\n")
    sys.stdout.flush()
    for line in sys.stdin:
        orders.settle = int(line)
    os._exit(0)


def _work(contributor: Contributor) -> None:
    try:
        while True:
            contributor.turn()
    except BaseException:
        traceback.print_exc()
        contributor.wrong(f"the worker itself has failed: {traceback.format_exc()[-400:]}")
