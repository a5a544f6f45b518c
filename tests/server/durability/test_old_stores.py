"""Data directories of older versions are opened by this one; what only a newer one understands is refused by name."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path
from typing import Any

import pytest

from gradwire.client import AMSGrad, RunDamaged, connect
from gradwire.server.durability.records import VERSION, NewerRecord, read_record
from gradwire.server.store.base import EMPTY
from gradwire.server.store.chain import digest
from gradwire.server.store.schema import SCHEMA
from tests.server.durability.lasting import LastingServer, everything, gradient
from tests.server.durability.write_old_store import ARCHIVES, seen, write
from tests.server.store.older import database, to_schema_3, version_of


@pytest.mark.parametrize("schema", range(3, SCHEMA + 1))
def test_a_data_directory_of_an_older_version_is_as_it_was_left(schema: int, tmp_path: Path) -> None:
    """Those that `write_old_store` has written, and what it would write today."""
    path = ARCHIVES / f"schema{schema}.tar.gz"
    if schema == SCHEMA:
        path = tmp_path / path.name
        write(path)
    with tarfile.open(path) as archive:
        archive.extractall(tmp_path, filter="data")
    assert version_of(tmp_path / "data") == schema
    expected: dict[str, Any] = json.loads((tmp_path / "expected.json").read_text())
    with LastingServer(tmp_path) as server, connect(server.target) as connection:
        assert sorted(run.name for run in connection.list_runs()) == sorted(expected)
        assert "ERROR" not in server.said
        for name, left in expected.items():
            run = connection.attach(name, worker_id="first")
            assert json.loads(json.dumps(seen(run))) == left
            assert run.describe().loss == ""
        journaled = connection.attach("journaled", worker_id="first")
        assert journaled.last_sequence == 4
        assert [journaled.roll_back(info) for info in journaled.list_snapshots() if info.label] == [3]
        assert journaled.step({"w": gradient(1, 4, 3), "b": gradient(2, 5)}).step == 4
        saved = connection.attach("saved", worker_id="first")
        assert saved.step({"w": gradient(1, 6).astype("f8")}).step == 6
        after = {name: everything(connection.attach(name, worker_id="first")) for name in expected}
        server.stop()
        server.start()
        assert "ERROR" not in server.said
        assert {name: everything(connection.attach(name, worker_id="first")) for name in expected} == after


def test_a_journal_of_schema_3_that_was_not_saved_is_applied(tmp_path: Path) -> None:
    with LastingServer(tmp_path) as server, connect(server.target) as connection:
        run = connection.create_run("x", {"w": gradient(0, 4)}, AMSGrad(lr=0.1), durability="JOURNAL", worker_id="w")
        for step in range(4):
            run.step({"w": gradient(step, 4)})
        expected = everything(run)
        server.kill()
        to_schema_3(server.data)
        with database(server.data) as opened:
            assert opened.execute("SELECT max(step) FROM snapshots").fetchone() == (0,)
            assert opened.execute("SELECT max(step) FROM journal").fetchone() == (4,)
        server.start()
        assert everything(run) == expected
        assert run.step({"w": gradient(5, 4)}).step == 5


@pytest.mark.parametrize("version", [VERSION + 1, 0, "2", None])
def test_a_text_of_another_version_is_refused_by_name(version: object) -> None:
    text = json.dumps({"version": version})
    with pytest.raises(NewerRecord, match=rf"its spec needs a server that knows version .*; this one knows {VERSION}"):
        read_record(text, "its spec")
    assert read_record(json.dumps({"version": VERSION}), "it") == {"version": VERSION}
    assert read_record(EMPTY, "it") == {}
    with pytest.raises(ValueError, match="its spec is no JSON object"):
        read_record("[]", "its spec")


def test_a_run_that_only_a_newer_server_understands_is_refused_and_the_others_are_served(tmp_path: Path) -> None:
    with LastingServer(tmp_path) as server, connect(server.target) as connection:
        for name in ("x", "y"):
            connection.create_run(name, {"w": gradient(0, 4)}, AMSGrad(), durability="JOURNAL").close()
        server.stop()
        with database(server.data) as opened:
            extra = json.dumps({"version": VERSION + 1, "quota": 1})
            row = opened.execute("SELECT uid, name, spec, request_id, epoch FROM runs WHERE name = 'runs/x'").fetchone()
            opened.execute("UPDATE runs SET extra = ?, digest = ? WHERE name = 'runs/x'", (extra, digest(*row, extra)))
        server.start()
        with pytest.raises(
            RunDamaged,
            match=f"what is stored of it needs a server that knows version {VERSION + 1}; this one knows {VERSION}",
        ):
            connection.attach("x")
        assert connection.attach("y").step({"w": gradient(0, 4)}).step == 1
        server.stop()
        with database(server.data) as opened:
            assert opened.execute("SELECT extra FROM runs WHERE name = 'runs/x'").fetchone() == (extra,)
