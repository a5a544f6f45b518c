"""``gradwire runs`` against a live server."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

import numpy as np
import pytest
from click.testing import CliRunner, Result
from safetensors.numpy import load_file

from gradwire.client import AMSGrad, Server, Shared, connect
from gradwire.server.cli.commands import cli
from tests.faults.hosted import HostedServer, InBackground, eventually


@pytest.fixture(scope="module")
def hosted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HostedServer]:
    with HostedServer(data_dir=str(tmp_path_factory.mktemp("cli"))) as server:
        yield server


@pytest.fixture
def server(hosted: HostedServer) -> Iterator[Server]:
    with connect(hosted.target) as connection:
        run = connection.create_run("x", {"w": np.ones((2, 3))}, AMSGrad(lr=0.1))
        run.step({"w": np.ones((2, 3))})
        run.close()
        yield connection
        for summary in connection.list_runs():
            connection.delete_run(summary.name)


def runs(hosted: HostedServer, *arguments: str, code: int = 0) -> Result:
    result = CliRunner().invoke(cli, ["runs", arguments[0], "--target", hosted.target, *arguments[1:]])
    assert result.exit_code == code, result.output
    return result


def test_list_and_show(hosted: HostedServer, server: Server) -> None:
    header, line = runs(hosted, "list").output.splitlines()
    assert header.split() == [
        "NAME",
        "STATE",
        "STEP",
        "STEPS/S",
        "WORKERS",
        "SIZE",
        "DURABILITY",
        "PROGRESS",
        "WAITS",
        "FOR",
    ]
    assert re.fullmatch(r"x +idle +1 +\S+ +- +6 float64 +JOURNAL +\d+ s ago +-", line)
    shown = json.loads(runs(hosted, "show", "x").output)
    assert (shown["step"], shown["spec"]["name"], shown["durability"]) == ("1", "runs/x", "DURABILITY_JOURNAL")
    assert shown["digest"] == server.attach("x").digest()
    assert [snapshot["step"] for snapshot in shown["snapshots"]] == [0]
    (listed,) = json.loads(runs(hosted, "list", "--json").output)
    assert (listed["name"], listed["step"], listed["workers"], listed["waits_for"]) == ("x", 1, 1, "block 1")
    assert listed["worker_id"].startswith("worker-")
    (worker,) = json.loads(runs(hosted, "show", "x").output)["workers"]
    assert worker["wait"].items() >= {"kind": "WAITS_FOR_BLOCK", "text": "block 1"}.items()
    assert worker["wait"]["seconds"] >= 0


def test_show_says_of_a_shared_run_who_is_waited_for(hosted: HostedServer, server: Server) -> None:
    params = {"w": np.ones((2, 3))}
    a = server.create_run("many", params, AMSGrad(), workers=Shared(deadline_seconds=300), worker_id="a")
    b = server.attach("many", worker_id="b")
    with InBackground(lambda: a.step(params)) as waiting:
        eventually(lambda: any(worker.waiting for worker in b.workers()), "the contribution of a is there")
        shown = json.loads(runs(hosted, "show", "many").output)
        b.step(params)
        assert waiting.result().applied
    assert re.fullmatch(r"1 of 2; waits for b, last heard \d+ s ago", shown["waiting_for"])
    assert [(worker["worker_id"], worker.get("waiting", False)) for worker in shown["workers"]] == [
        ("a", True),
        ("b", False),
    ]
    counted = json.loads(runs(hosted, "show", "many").output)["workers"]
    assert [(worker["accepted"], worker["share"]) for worker in counted] == [("1", 0.5), ("1", 0.5)]


def test_what_a_saved_snapshot_outlives_is_said(hosted: HostedServer, server: Server) -> None:
    kept = runs(hosted, "save", "x")
    assert (json.loads(kept.stdout)["durability"], kept.stderr) == ("SNAPSHOT", "")
    server.attach("x").fork("light", durability="MEMORY")
    fleeting = runs(hosted, "save", "light")
    assert json.loads(fleeting.stdout).items() >= {"durability": "MEMORY", "label": "in memory"}.items()
    assert fleeting.stderr == "light lives in the server's memory, and so does its snapshot: both end with the server\n"
    assert [found["durability"] for found in json.loads(runs(hosted, "show", "light").output)["snapshots"]] == [
        "MEMORY"
    ]


def test_save_fork_and_rollback(hosted: HostedServer, server: Server) -> None:
    saved = json.loads(runs(hosted, "save", "x", "--label", "good").output)
    assert (saved["step"], saved["label"]) == (1, "good")
    run = server.attach("x")
    digest = run.digest()
    run.step({"w": np.ones((2, 3))})
    assert runs(hosted, "fork", "x", "now", "--lr", "0.5").output == "now is at step 2, JOURNAL\n"
    assert server.attach("now").describe().spec.groups[0].adam.lr == 0.5
    output = runs(hosted, "fork", "x", "then", "--snapshot", str(saved["id"]), "--durability", "memory").output
    assert output == "then is at step 1, MEMORY\n"
    assert server.attach("then").digest() == digest
    assert runs(hosted, "rollback", "x", str(saved["id"])).output == "x is at step 1\n"
    assert run.digest() == digest
    assert "exists already" in runs(hosted, "fork", "x", "now", code=1).output
    runs(hosted, "fork", "x", "now", "--replace")


def test_export_import_and_delete(hosted: HostedServer, server: Server, tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    output = runs(hosted, "export", "x", str(path)).output
    assert output == f"wrote step 1 to {path}, {path.stat().st_size} bytes\n"
    assert runs(hosted, "import", "y", str(path), "--durability", "snapshot").output == "y is at step 1, SNAPSHOT\n"
    assert server.attach("y").digest() == server.attach("x").digest()
    runs(hosted, "export", "x", str(path), "--weights-only")
    assert set(load_file(path)) == {"w"}
    assert "import its weights only" in runs(hosted, "import", "z", str(path), code=1).output
    runs(hosted, "import", "z", str(path), "--weights-only", "--amsgrad", "--lr", "0.25")
    adam = server.attach("z").describe().spec.groups[0].adam
    assert (adam.amsgrad, adam.lr) == (True, 0.25)
    weights = ("import", "q", str(path), "--weights-only")
    runs(hosted, *weights, "--optimizer", "SGD", "--lr", "1", "--set", "momentum=0.9", "--set", "nesterov=true")
    sgd = server.attach("q").describe().spec.groups[0].sgd
    assert (sgd.lr, sgd.momentum, sgd.nesterov) == (1.0, 0.9, True)
    for options, error, code in (
        (["--optimizer", "Lion"], "'Lion' is not one of 'Adam', 'AMSGrad', ", 2),
        (["--optimizer", "Yogi", "--amsgrad"], "and --optimizer is Yogi; expected one of them", 2),
        (["--lr", "1", "--set", "lr=2"], "lr is given twice", 2),
        (["--set", "tau=2"], "'--set': Adam has no 'tau'; expected one of ", 2),
        (["--set", "betas=0.9,1"], "beta2 is 1.0; expected 0 <= beta2 < 1", 1),
    ):
        assert error in runs(hosted, *weights, "--replace", *options, code=code).output.replace("\n", "")
    for options in (["--lr", "1"], ["--optimizer", "SGD"], ["--set", "lr=1"]):
        assert "need --weights-only" in runs(hosted, "import", "q", str(path), *options, code=2).output
    assert runs(hosted, "delete", "x").output == "deleted x, which was at step 1\n"
    assert "there is no run 'runs/x'" in runs(hosted, "delete", "x", code=1).output


def test_names_of_others_cannot_add_lines(hosted: HostedServer, server: Server) -> None:
    forged = "me\nmade-up   step 999\x1b[2J\u202e"
    with server.create_run("real", {"w": np.ones(1)}, AMSGrad(), worker_id=forged) as run:
        run.step({"w": np.ones(1)})
        lines = runs(hosted, "list").output.splitlines()
        (real, _) = json.loads(runs(hosted, "list", "--json").output)
    assert [line.split()[0] for line in lines] == ["NAME", "real", "x"]
    assert r"me\nmade-up   step 999\x1b[2J\u202e" in lines[1]
    assert real["worker_id"] == forged


def test_an_export_needs_not_read_what_it_writes(
    hosted: HostedServer, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file or a pipe of somebody else's, say. Root may read everything, hence the stand-in."""
    path = tmp_path / "x.safetensors"
    path.touch()
    with monkeypatch.context() as patch:
        patch.setattr(os, "access", lambda path, mode: mode != os.R_OK)
        runs(hosted, "export", "x", str(path))
    assert load_file(path)


@pytest.mark.parametrize("command", ["list", "show x", "save x", "fork x f", "export x /dev/stdout"])
def test_who_stops_reading_ends_a_command_in_silence(
    hosted: HostedServer, server: Server, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    """As in ``gradwire runs list | head``."""
    name, *arguments = command.split()
    monkeypatch.setattr(sys, "argv", ["gradwire", "runs", name, "--target", hosted.target, *arguments])
    reader, writer = os.pipe()
    os.close(reader)
    said = io.StringIO()
    with open(writer, "w") as nobody, monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", nobody)
        patch.setattr(sys, "stderr", said)
        if command.endswith("/dev/stdout"):
            sys.argv[-1] = f"/dev/fd/{writer}"
        with pytest.raises(SystemExit) as caught:
            cli()
        nobody_knows(nobody)
    assert (caught.value.code, said.getvalue()) == (1, "")


def nobody_knows(stream: TextIO) -> None:
    """What is still to be written to a pipe that nobody reads."""
    with contextlib.suppress(BrokenPipeError):
        stream.close()


def test_snapshot_ids_are_refused_by_name(hosted: HostedServer, server: Server, tmp_path: Path) -> None:
    for command in (["export", "x", str(tmp_path / "f")], ["fork", "x", "y"]):
        output = runs(hosted, *command, "--snapshot", "-1", code=2).output
        assert "Invalid value for '--snapshot'" in output


def test_errors_are_messages(hosted: HostedServer, server: Server, tmp_path: Path) -> None:
    assert "RUN_NOT_FOUND" in runs(hosted, "show", "nothing", code=1).output
    assert "is no run name" in runs(hosted, "save", "no/name", code=1).output
    assert "SNAPSHOT_NOT_FOUND" in runs(hosted, "rollback", "x", "99999", code=1).output
    result = CliRunner().invoke(cli, ["runs", "list", "--target", f"unix:{tmp_path}/nobody"])
    assert result.exit_code == 1
    assert "UNAVAILABLE" in result.output
    assert not list(tmp_path.iterdir())
