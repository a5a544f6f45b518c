"""Writes a data directory as this version leaves it, for later versions to open: `old_stores/schemaN.tar.gz`.

``python -m tests.server.durability.write_old_store``, to be run once for each schema of the store, by the last version
that writes it; what it has written is never written again. The server is stopped in order, so nothing has to be
computed when the directory is opened: a journal that is not saved yet can be applied by the same build only.

In the archive: ``data/``, the directory; ``expected.json``, what a client could read of it before the server stopped.
"""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from gradwire.client import AMSGrad, ParamGroup, Run, Server, TorchAdamW, connect
from gradwire.server.store.schema import SCHEMA
from tests.server.durability.lasting import LastingServer, everything, gradient

ARCHIVES = Path(__file__).parent / "old_stores"


def seen(run: Run) -> dict[str, Any]:
    """What a client can read of a run, as JSON has it."""
    found = everything(run)
    message = run.describe()
    return {
        "step": found["step"],
        "tensors": {name: _plain(fields) for name, fields in found["tensors"].items()},
        "params": _plain(found["params"]),
        "digest": run.digest(),
        "uid": message.uid,
        "durability": message.durability,
        "labelled": [[info.id, info.step, info.label, info.size_bytes] for info in run.list_snapshots() if info.label],
    }


def _plain(fields: dict[str, Any]) -> dict[str, Any]:
    return {
        name: hashlib.sha256(value).hexdigest() if isinstance(value, bytes) else value for name, value in fields.items()
    }


def fill(server: Server) -> dict[str, dict[str, Any]]:
    """Makes the runs; returns what is to be found of each."""
    groups = [ParamGroup({"w": gradient(0, 4, 3)}), ParamGroup({"b": gradient(1, 5), "none": gradient(2, 0)}, lr=0.3)]
    server.create_run("deleted", {"w": gradient(0, 2)}, AMSGrad(), durability="JOURNAL").close()
    server.delete_run("deleted")
    journaled = server.create_run("journaled", groups, AMSGrad(lr=0.1), durability="JOURNAL", worker_id="first")
    for step in range(3):
        journaled.step({"w": gradient(step, 4, 3), "b": gradient(step, 5)} if step else {"w": gradient(step, 4, 3)})
    journaled.save_snapshot("three steps")
    journaled.write({"w": gradient(7, 4, 3)}, partial=True)
    journaled.step_many({"w": gradient(8, 2, 4, 3), "b": gradient(9, 2, 5)}, returns="trajectory")
    values = {"w": gradient(3, 6).astype(np.float64)}
    saved = server.create_run("saved", values, TorchAdamW(lr=0.01), durability="SNAPSHOT", worker_id="first")
    for step in range(5):
        saved.step({"w": gradient(step, 6).astype(np.float64)})
    forked = journaled.fork("forked", durability="JOURNAL")
    return {run.name: seen(run) for run in (journaled, saved, forked)}


def write(archive: Path) -> None:
    """Raises FileExistsError: what an older version has left stays."""
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        with LastingServer(directory) as server:
            with connect(server.target) as connection:
                expected = fill(connection)
            server.stop()
        with tarfile.open(archive, "x:gz") as out:
            out.add(directory / "data", "data", filter=_anonymous)
            text = json.dumps(expected, indent=1).encode()
            member = tarfile.TarInfo("expected.json")
            member.size = len(text)
            out.addfile(member, io.BytesIO(text))


def _anonymous(member: tarfile.TarInfo) -> tarfile.TarInfo:
    member.uid = member.gid = 0
    member.uname = member.gname = ""
    return member


if __name__ == "__main__":
    write(ARCHIVES / f"schema{SCHEMA}.tar.gz")
