"""Promise 3: nothing acknowledged is lost. Servers are killed between steps; runs go on, to the last bit, as if not."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gradwire.client import Adam, AMSGrad, ParamGroup, Run, RunNotFound, RunRolledBack, Server, TorchAdamW, connect
from gradwire.v1 import run_pb2, service_pb2_grpc, train_pb2
from tests.faults.bare import BareStream, channel_to, spec_of, values_of
from tests.faults.bare import create as create_bare
from tests.server.durability.lasting import LastingServer, everything, gradient

Script = Callable[[Run, int], object]


@pytest.fixture
def lasting(tmp_path: Path) -> Iterator[LastingServer]:
    with LastingServer(tmp_path) as server:
        yield server


@pytest.fixture
def server(lasting: LastingServer) -> Iterator[Server]:
    with connect(lasting.target) as connection:
        yield connection


def plain(run: Run, step: int) -> None:
    run.step({name: gradient(step, *value.shape) for name, value in run.params.items()})


def with_absent_tensors(run: Run, step: int) -> None:
    names = list(run.params)
    run.step({names[step % 2]: gradient(step, *run.params[names[step % 2]].shape)})


def with_overrides(run: Run, step: int) -> None:
    lr = 0.1 / step if step % 2 else None
    overrides = {0: {"betas": (0.5, 0.9), "bounds": (-0.5, 0.5)}} if step == 2 else None
    run.step({name: gradient(step, *value.shape) for name, value in run.params.items()}, lr=lr, overrides=overrides)


def in_blocks(run: Run, step: int) -> None:
    grads = {name: gradient(step, 7, *value.shape) for name, value in run.params.items()}
    run.step_many(grads, returns=("last", "trajectory", "none")[step % 3])


def with_nan(run: Run, step: int) -> None:
    grads = {name: gradient(step, 5, *value.shape) for name, value in run.params.items()}
    grads["w"][step % 5, 0] = np.nan
    run.step_many(grads)
    assert run.last_receipt is not None
    assert run.last_receipt.skipped_steps == (step % 5,)


def with_infinities(run: Run, step: int) -> None:
    grads = {name: gradient(step, *value.shape) for name, value in run.params.items()}
    grads["b"][0] = np.inf if step == 3 else 0
    run.step(grads)


CASES: dict[str, tuple[Script, Any, dict[str, Any]]] = {
    "plain": (plain, AMSGrad(lr=0.1), {}),
    "schedule": (plain, Adam(lr=0.5, schedule="inverse-sqrt", bounds=(-1, 1)), {}),
    "decay": (plain, TorchAdamW(lr=0.01, weight_decay=0.1, amsgrad=True), {}),
    "absent": (with_absent_tensors, AMSGrad(lr=0.1), {}),
    "overrides": (with_overrides, Adam(lr=0.1), {}),
    "blocks": (in_blocks, AMSGrad(lr=0.1), {}),
    "skip": (with_nan, AMSGrad(lr=0.1), {"non_finite": "skip"}),
    "allow": (with_infinities, AMSGrad(lr=0.1), {"non_finite": "allow"}),
    "clipped": (in_blocks, Adam(lr=0.1), {"clip_norm": 0.5, "clip_value": 0.3}),
    "float64": (plain, Adam(lr=0.1), {"dtype": "float64"}),
    "int8": (plain, AMSGrad(lr=0.1), {"gradient_encoding": "int8"}),
    "bfloat16": (plain, Adam(lr=0.1), {"gradient_encoding": "bfloat16", "parameter_encoding": "bfloat16"}),
}


def params() -> list[ParamGroup]:
    return [ParamGroup({"w": gradient(1, 300, 3)}), ParamGroup({"b": gradient(2, 11), "empty": gradient(3, 0)}, lr=0.3)]


@dataclass
class Outcome:
    """What became of one case on the server, with kills and without, and what its client holds."""

    killed: dict[str, Any]
    spared: dict[str, Any]
    killed_again: dict[str, Any]
    killed_params: dict[str, bytes]
    spared_params: dict[str, bytes]
    durability: str
    loss: str


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Outcome]]:
    """All cases side by side on one server, which is killed three times."""
    with LastingServer(tmp_path_factory.mktemp("promise")) as lasting, connect(lasting.target) as server:
        killed, spared = (
            {
                case: server.create_run(f"{case}-{durability}", params(), optimizer, durability=durability, **options)
                for case, (_, optimizer, options) in CASES.items()
            }
            for durability in ("JOURNAL", "MEMORY")
        )
        for case, run in spared.items():
            for step in range(1, 7):
                CASES[case][0](run, step)
        expected = {case: everything(run) for case, run in spared.items()}
        for step in range(1, 7):
            for case, run in killed.items():
                CASES[case][0](run, step)
            if step in (2, 3, 5):
                lasting.restart()
        found = {case: everything(run) for case, run in killed.items()}
        lasting.restart()
        yield {
            case: Outcome(
                found[case],
                expected[case],
                everything(run),
                held(run),
                held(spared[case]),
                run.last_receipt.durability if run.last_receipt else "",
                run.describe().loss,
            )
            for case, run in killed.items()
        }


def held(run: Run) -> dict[str, bytes]:
    return {name: value.tobytes() for name, value in run.params.items()}


@pytest.mark.timeout(300)
@pytest.mark.parametrize("case", CASES)
def test_promise_3_nothing_acknowledged_is_lost(outcomes: dict[str, Outcome], case: str) -> None:
    outcome = outcomes[case]
    assert outcome.killed == outcome.spared
    assert outcome.killed_again == outcome.spared
    assert (outcome.durability, outcome.loss) == ("JOURNAL", "")
    assert outcome.killed["step"] > 0
    if case not in ("blocks", "clipped"):  # their last blocks return nothing
        assert outcome.killed_params == outcome.spared_params


def test_a_large_run_in_many_slices(lasting: LastingServer, server: Server) -> None:
    values = gradient(0, 300_000)
    run = server.create_run("large", {"w": values}, AMSGrad(lr=0.1), durability="JOURNAL")
    other = server.create_run("spared", {"w": values}, AMSGrad(lr=0.1), durability="MEMORY")
    for step in range(4):
        run.step({"w": gradient(step, 300_000)})
        other.step({"w": gradient(step, 300_000)})
        if step == 1:
            lasting.restart()
            other = server.create_run("spared", {"w": values}, AMSGrad(lr=0.1), durability="MEMORY")
            for again in range(2):
                other.step({"w": gradient(again, 300_000)})
    assert everything(run) == everything(other)


@pytest.mark.parametrize("snapshot", [False, True], ids=["journal", "snapshot"])
@pytest.mark.parametrize("returns", ["LAST", "TRAJECTORY", "NONE"])
def test_a_remembered_result_outlives_the_server(tmp_path: Path, returns: str, snapshot: bool) -> None:
    flags = ("--snapshot-steps", "1", "--snapshot-interval", "0.1") if snapshot else ()
    with LastingServer(tmp_path, *flags) as lasting:
        rows = gradient(1, 3, 1000)
        channel = channel_to(lasting.target)
        stub = service_pb2_grpc.OptimizerServiceStub(channel)
        create_bare(stub, spec_of("x", 1000), gradient(0, 1000))
        stream = BareStream(stub, "x", "worker")
        stream.send_block(1, rows, returns=getattr(train_pb2, f"RETURNS_{returns}"))
        parts, receipt = stream.answer()
        assert receipt.durability == run_pb2.DURABILITY_JOURNAL
        stream.cancel()
        if snapshot:
            lasting.stop()
            lasting.start()
        else:
            lasting.restart()
        again = BareStream(stub, "x", "worker")
        assert (again.attached.step, again.attached.last_sequence) == (3, 1)
        again.send_message(train_pb2.Gradients(sequence=1, last=True))
        parts_again, receipt_again = again.answer()
        assert receipt_again.repeated
        receipt_again.repeated = False
        assert receipt_again == receipt
        if returns != "NONE":
            assert np.array_equal(values_of(parts_again, 1000), values_of(parts, 1000))
        assert again.step(2, gradient(2, 1000)).step == 4
        again.cancel()
        channel.close()


def test_values_that_were_written_outlive_the_server(lasting: LastingServer, server: Server) -> None:
    for durability in ("JOURNAL", "SNAPSHOT"):
        run = server.create_run(
            f"w-{durability}", {"w": gradient(0, 10), "b": gradient(1, 2)}, Adam(), durability=durability
        )
        run.step({"w": gradient(2, 10)})
        run.write({"b": np.array([7.0, 8.0])}, partial=True)
        written = everything(run)
        lasting.restart()
        assert everything(run) == written
        run.step({"w": gradient(3, 10), "b": gradient(4, 2)})
        state = run.state_dict()
        state["step"] += 5
        run.load_state_dict(state)
        written = everything(run)
        lasting.restart()
        assert everything(run) == written
        run.step({"w": gradient(5, 10)})
        assert run.step_count == state["step"] + 1
        run.close()


def test_runs_come_and_go_for_good(lasting: LastingServer, server: Server) -> None:
    for name in ("kept", "deleted", "replaced"):
        server.create_run(name, {"w": gradient(1, 4)}, Adam(), durability="JOURNAL").step({"w": gradient(2, 4)})
    server.create_run("gone", {"w": gradient(1, 4)}, Adam(), durability="MEMORY")
    server.delete_run("deleted")
    server.create_run("replaced", {"v": gradient(3, 6)}, Adam(), durability="SNAPSHOT", on_existing="replace").close()
    lasting.restart()
    found = {run.name: (run.step, run.elements, run.durability, run.damage) for run in server.list_runs()}
    assert found == {"kept": (1, 4, "JOURNAL", ""), "replaced": (0, 6, "SNAPSHOT", "")}
    with pytest.raises(RunNotFound):
        server.attach("deleted")
    server.create_run("replaced", {"u": gradient(3, 1)}, Adam(), durability="MEMORY", on_existing="replace").close()
    lasting.restart()
    assert [run.name for run in server.list_runs()] == ["kept"]


def test_resuming_after_the_server_was_killed(lasting: LastingServer, server: Server) -> None:
    run = server.create_run("r", {"w": gradient(1, 4)}, Adam(lr=0.1), worker_id="me")
    run.step({"w": gradient(2, 4)})
    expected = run.params["w"].copy()
    lasting.restart()
    with connect(lasting.target) as second:
        again = second.create_run("r", {"w": gradient(9, 4)}, Adam(), on_existing="resume", worker_id="me")
        assert np.array_equal(again.params["w"], expected)
        assert again.step({"w": gradient(3, 4)}).step == 2


def test_defaults_follow_from_the_size(server: Server) -> None:
    small = server.create_run("small", {"w": np.zeros(2**18, np.float32)}, Adam())
    large = server.create_run("large", {"w": np.zeros(2**18 + 1, np.float32)}, Adam())
    assert [run.describe().durability for run in (small, large)] == [
        run_pb2.DURABILITY_JOURNAL,
        run_pb2.DURABILITY_SNAPSHOT,
    ]
    assert small.step({"w": gradient(1, 2**18)}).durability == "JOURNAL"
    assert large.step({"w": gradient(1, 2**18 + 1)}).durability == "SNAPSHOT"


def test_a_snapshot_run_goes_back_to_its_last_snapshot_whole_and_says_so(
    lasting: LastingServer, server: Server
) -> None:
    run = server.create_run("s", {"w": gradient(1, 50)}, AMSGrad(lr=0.1), durability="SNAPSHOT")
    for step in range(3):
        run.step({"w": gradient(step, 50)})
    lasting.stop()
    lasting.start()
    saved = everything(run)
    assert saved["step"] == 3
    for step in range(3, 6):
        run.step({"w": gradient(step, 50)})
    lasting.restart()
    with pytest.raises(RunRolledBack, match=r"block 3 of worker .* has acknowledged block 6") as caught:
        run.step({"w": gradient(6, 50)})
    assert caught.value.applied is False
    assert everything(run) == saved
    assert run.describe().loss == "steps 4 to 6 are lost: the store does not have them"
    assert "runs/s goes on from step 3" in lasting.said
    assert run.step({"w": gradient(6, 50)}).step == 4, "who goes on after that goes on from there"


def test_a_server_that_stops_in_order_loses_nothing(lasting: LastingServer, server: Server) -> None:
    runs = [
        server.create_run(durability, {"w": gradient(1, 50)}, AMSGrad(lr=0.1), durability=durability)
        for durability in ("SNAPSHOT", "JOURNAL")
    ]
    for run in runs:
        run.step({"w": gradient(2, 50)})
    expected = [everything(run) for run in runs]
    lasting.stop()
    lasting.start()
    assert [everything(run) for run in runs] == expected
    assert lasting.said.count("0 blocks of its journal applied") == 2 or "JOURNAL" not in lasting.said
    for run in runs:
        assert run.step({"w": gradient(3, 50)}).step == 2
