"""Snapshots, forks, going back, files and hashes, through the Python client."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file
from safetensors.torch import load_file as load_torch

from gradwire.client import (
    Adam,
    AMSGrad,
    Fenced,
    InvalidHyperparameter,
    InvalidSpec,
    ParamGroup,
    RetryPolicy,
    Run,
    RunAlreadyExists,
    Server,
    SnapshotNotFound,
    connect,
)
from gradwire.v1 import run_pb2
from tests.server.durability.lasting import LastingServer, everything, gradient

CHOICES = {"on disk": "JOURNAL", "snapshots": "SNAPSHOT", "in memory": "MEMORY"}


@pytest.fixture(scope="module")
def lasting(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LastingServer]:
    with LastingServer(tmp_path_factory.mktemp("operations")) as server:
        yield server


@pytest.fixture
def server(lasting: LastingServer) -> Iterator[Server]:
    with connect(lasting.target) as connection:
        yield connection
        for run in connection.list_runs():
            connection.delete_run(run.name)


@pytest.fixture(params=list(CHOICES.values()), ids=list(CHOICES))
def run(server: Server, request: pytest.FixtureRequest) -> Run:
    """Three steps in; ``b`` has taken part in two of them."""
    groups = [ParamGroup({"w": gradient(0, 4, 3)}), ParamGroup({"b": gradient(1, 5), "none": gradient(2, 0)}, lr=0.3)]
    made = server.create_run("x", groups, AMSGrad(lr=0.1), durability=request.param)
    for step in range(3):
        made.step({"w": gradient(step, 4, 3), "b": gradient(step, 5)} if step else {"w": gradient(step, 4, 3)})
    return made


def step(run: Run, seed: int, **options: Any) -> None:
    run.step({"w": gradient(seed, 4, 3), "b": gradient(seed, 5)}, **options)


def test_snapshots_are_listed_the_newest_first_and_stay(run: Run) -> None:
    first = run.save_snapshot("before")
    step(run, 3)
    second = run.save_snapshot()
    found = [info for info in run.list_snapshots() if info.label]
    assert found == [second, first]
    lives, name = (
        ("MEMORY", "in memory") if run.describe().durability == run_pb2.DURABILITY_MEMORY else ("SNAPSHOT", "saved")
    )
    assert [(info.step, info.label, info.durability) for info in found] == [(4, name, lives), (3, "before", lives)]
    assert all(info.size_bytes >= 4 * 17 * 4 for info in found)
    assert abs(first.created.timestamp() - second.created.timestamp()) < 60


def test_rolling_back_brings_everything_back_but_the_sequences(run: Run) -> None:
    saved, info = everything(run), run.save_snapshot()
    for seed in (3, 4):
        step(run, seed, lr=0.5)
    assert everything(run) != saved
    epoch = run.describe().epoch
    assert run.roll_back(info) == 3
    assert run.describe().epoch > epoch
    assert everything(run) == saved
    assert {name: value.tobytes() for name, value in run.params.items()} == saved["params"]
    step(run, 3)
    assert run.step_count == 4
    assert run.describe().loss == ""
    once = everything(run)
    run.roll_back(info.id)
    step(run, 3)
    assert everything(run) == once, "the same step from the same point"


def test_whoever_trains_is_fenced_by_going_back(run: Run, server: Server) -> None:
    info = run.save_snapshot()
    step(run, 3)
    with connect(server.target) as other:
        stub = other._link.stub
        from gradwire.v1 import service_pb2

        stub.RollBack(service_pb2.RollBackRequest(name="runs/x", snapshot_id=info.id))
    with pytest.raises(Fenced, match="the values of runs/x have been replaced"):
        step(run, 4)
    step(run, 3)
    assert run.step_count == 4


def test_a_snapshot_that_is_not_there(run: Run) -> None:
    before = everything(run)
    for wrong in (0, 10**6):
        with pytest.raises(SnapshotNotFound, match=f"runs/x has no snapshot {wrong}"):
            run.roll_back(wrong)
    with pytest.raises(SnapshotNotFound):
        run.fork("y", snapshot=10**6)
    with pytest.raises(SnapshotNotFound):
        run.export("/tmp/never", snapshot=10**6)
    assert everything(run) == before


def test_a_fork_goes_its_own_way_from_the_same_point(run: Run) -> None:
    info = run.save_snapshot()
    step(run, 3)
    now = run.fork("now")
    then = run.fork("then", snapshot=info, lr=0.7)
    assert now.digest() == run.digest() != then.digest()
    assert (now.step_count, then.step_count) == (4, 3)
    assert now.describe().durability == run.describe().durability
    assert [group.adam.lr for group in then.describe().spec.groups] == [0.7, 0.7]
    assert [group.adam.lr for group in run.describe().spec.groups] == [0.1, 0.3]
    step(then, 3, lr=[0.1, 0.3])
    assert then.digest() == run.digest(), "with the old rates it takes the same step"
    step(now, 4)
    assert now.digest() != run.digest()


def test_a_fork_may_have_another_optimizer_of_the_same_state(run: Run) -> None:
    other = run.fork("y", optimizer=AMSGrad(lr=0.2, schedule="inverse-sqrt"), overrides={1: {"eps": 1e-3}})
    groups = other.describe().spec.groups
    assert [(group.adam.lr, group.adam.eps) for group in groups] == [(0.2, 1e-16), (0.2, 1e-3)]
    with pytest.raises(InvalidHyperparameter, match=r"would have the slots .* expected"):
        run.fork("z", optimizer=Adam())
    with pytest.raises(InvalidHyperparameter, match="lr is -1"):
        run.fork("z", lr=-1)
    with pytest.raises(RunAlreadyExists):
        run.fork("y")
    assert run.fork("y", on_existing="replace").digest() == run.digest()


def test_the_digest_is_what_the_contract_says(run: Run) -> None:
    state = run.state_dict()
    vectors = [run.read(), *({n: t[slot] for n, t in state["tensors"].items()} for slot in run.slots)]
    data = b"".join(vector[name].astype("<f4").tobytes() for vector in vectors for name in ("w", "b", "none"))
    data += np.array([3, 2, 0], "<u8").tobytes() + b"float32"
    assert [state["tensors"][name]["step"] for name in ("w", "b", "none")] == [3, 2, 0]
    assert run.digest() == hashlib.sha256(data).hexdigest()


def test_an_exported_run_is_imported_as_it_was(run: Run, server: Server, tmp_path: Path) -> None:
    step(run, 3, lr=[0.4, 0.2])
    path = tmp_path / "x.safetensors"
    assert run.export(path) == 4
    assert [file.name for file in tmp_path.iterdir()] == ["x.safetensors"]
    again = server.import_run("y", path)
    assert everything(again) == everything(run)
    assert again.digest() == run.digest()
    step(run, 5)
    step(again, 5)
    assert again.digest() == run.digest()


def test_a_snapshot_may_be_exported(run: Run, server: Server, tmp_path: Path) -> None:
    info, digest = run.save_snapshot(), run.digest()
    step(run, 3)
    assert run.export(tmp_path / "old", snapshot=info) == 3
    assert server.import_run("y", tmp_path / "old", durability="MEMORY").digest() == digest


def test_the_file_opens_as_a_torch_state_dict(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    run.export(path)
    tensors = load_torch(path)
    assert set(tensors) >= {"w", "b", "none", "optimizer.exp_avg.w", "optimizer.max_exp_avg_sq.b"}
    assert np.array_equal(tensors["w"].numpy(), run.params["w"])
    run.export(path, weights_only=True)
    module = torch.nn.Module()
    for name, value in run.params.items():
        module.register_parameter(name, torch.nn.Parameter(torch.zeros(value.shape)))
    module.load_state_dict(load_torch(path))
    assert all(np.array_equal(dict(module.named_parameters())[n].detach(), v) for n, v in run.params.items())


@pytest.mark.parametrize("weights_only", [False, True])
def test_a_run_is_not_exported_to_a_file_that_nobody_can_read(
    server: Server, tmp_path: Path, weights_only: bool
) -> None:
    run = server.create_run("x", {"__metadata__": np.ones(3, np.float32)}, AMSGrad(), durability="MEMORY")
    with pytest.raises(InvalidSpec, match="'__metadata__' has a name that safetensors keeps for itself"):
        run.export(tmp_path / "x", weights_only=weights_only)
    assert list(tmp_path.iterdir()) == []


def test_a_run_is_exported_through_a_link_and_into_a_fifo(run: Run, tmp_path: Path) -> None:
    run.export(tmp_path / "x")
    (tmp_path / "link").symlink_to("x")
    os.mkfifo(tmp_path / "fifo")
    with ThreadPoolExecutor(1) as pool:
        exported = pool.submit(run.export, tmp_path / "fifo")
        assert (tmp_path / "fifo").read_bytes() == (tmp_path / "x").read_bytes()
        assert exported.result() == 3
    step(run, 3)
    assert run.export(tmp_path / "link") == 4
    assert (tmp_path / "link").is_symlink()
    assert b'\\"step\\": 4' in (tmp_path / "x").read_bytes()


def test_a_run_is_imported_from_a_fifo(run: Run, server: Server, tmp_path: Path) -> None:
    run.export(tmp_path / "x")
    os.mkfifo(tmp_path / "fifo")
    with ThreadPoolExecutor(1) as pool:
        written = pool.submit((tmp_path / "fifo").write_bytes, (tmp_path / "x").read_bytes())
        assert server.import_run("y", tmp_path / "fifo").digest() == run.digest()
        assert written.result()
        with pytest.raises(FileNotFoundError):
            server.import_run("z", tmp_path / "none")


def test_weights_alone_may_be_imported(run: Run, server: Server, tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    for weights_only in (False, True):
        run.export(path, weights_only=weights_only)
        fresh = server.import_run("y", path, weights_only=Adam(lr=0.5), on_existing="replace")
        assert fresh.step_count == 0
        assert {n: v.tobytes() for n, v in fresh.params.items()} == {n: v.tobytes() for n, v in run.params.items()}
        assert fresh.describe().spec.groups[0].adam.lr == 0.5
    with pytest.raises(InvalidSpec, match="import its weights only"):
        server.import_run("z", path)
    save_file({"v": np.arange(3.0), "u": np.ones((2, 2))}, path)
    wide = server.import_run("z", path, weights_only=AMSGrad())
    assert (wide.dtype.name, wide.params["u"].shape) == ("float64", (2, 2))


def test_files_that_make_no_sense_are_refused(run: Run, server: Server, tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    run.export(path)
    good = path.read_bytes()
    tensors = load_file(path)
    description = json.loads(good[8 : 8 + int.from_bytes(good[:8], "little")])["__metadata__"]["gradwire"]
    data = json.loads(description)

    def with_description(**changes: Any) -> bytes:
        save_file(tensors, path, {"gradwire": json.dumps({**data, **changes})})
        return path.read_bytes()

    missing = dict(tensors)
    del missing["optimizer.exp_avg.b"]
    save_file(missing, path, {"gradwire": description})
    lacking = path.read_bytes()
    bad = [
        b"",
        b"nonsense" * 100,
        good[:-1],
        lacking,
        with_description(format=2),
        with_description(step=-1),
        with_description(step=2.5),
        with_description(tensor_steps=[1]),
        with_description(tensor_steps=[99, 0, 0]),
        with_description(spec={}),
        with_description(groups=[{**data["groups"][0], "lr": "fast"}, data["groups"][1]]),
        with_description(groups=[{**data["groups"][0], "speed": 1}, data["groups"][1]]),
        with_description(groups=data["groups"][:1]),
        with_description(spec={**data["spec"], "tensors": [[["w", [2.0, 6]]], data["spec"]["tensors"][1]]}),
        with_description(spec={**data["spec"], "tensors": [[["w", [2, 6]]], data["spec"]["tensors"][1]]}),
    ]
    runs = [info.name for info in server.list_runs()]
    for index, content in enumerate(bad):
        path.write_bytes(content)
        with pytest.raises((InvalidSpec, InvalidHyperparameter)) as caught:
            server.import_run("y", path, retry=RetryPolicy(deadline_seconds=0))
        assert caught.value.applied is False, index
    with pytest.raises(OSError, match="No such file"):
        server.import_run("y", tmp_path / "nothing")
    assert [info.name for info in server.list_runs()] == runs
    path.write_bytes(with_description())
    assert server.import_run("y", path).digest() == run.digest(), "what the library has written is good"


def test_what_was_done_outlives_the_server(lasting: LastingServer, server: Server, tmp_path: Path) -> None:
    run = server.create_run("x", {"w": gradient(0, 4, 3), "b": gradient(1, 5)}, AMSGrad(lr=0.1), durability="JOURNAL")
    step(run, 1)
    info = run.save_snapshot("good")
    step(run, 2)
    fork = run.fork("fork", lr=0.9)
    step(fork, 3)
    run.export(tmp_path / "x")
    copy = server.import_run("copy", tmp_path / "x", durability="SNAPSHOT")
    run.roll_back(info)
    step(run, 4)
    expected = [everything(each) for each in (run, fork, copy)]
    lasting.restart()
    assert [everything(each) for each in (run, fork, copy)] == expected
    assert info in run.list_snapshots()
    step(run, 5)
    assert run.step_count == 3, "who rolled back itself is not told that it was rolled back"
    assert run.roll_back(info) == 1
    copy.close()
    fork.close()


def test_snapshots_in_memory_are_counted_and_freed(server: Server) -> None:
    run = server.create_run("m", {"w": np.zeros(1000, np.float32)}, Adam(), durability="MEMORY")
    assert run.list_snapshots() == []
    infos = [run.save_snapshot(f"n{i}") for i in range(5)]
    assert {info.id for info in infos} == {info.id for info in run.list_snapshots()}
    run.close()
    server.delete_run("m")
    again = server.create_run("m", {"w": np.zeros(1000, np.float32)}, Adam(), durability="MEMORY")
    assert again.list_snapshots() == []
