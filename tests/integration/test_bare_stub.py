"""A client written from the .proto alone works: the generated stub, grpc and numpy, nothing of gradwire's Python."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import grpc
import numpy as np
import numpy.typing as npt
import pytest

from gradwire.v1 import run_pb2, service_pb2, train_pb2
from tests.contract import bare
from tests.contract.bare import BareClient, Refusal, group, pack, slices, unpack
from tests.contract.test_architecture import imports_of, under
from tests.serving import ServerProcess

Vector = npt.NDArray[np.float64]

LR, BETA1, BETA2, EPS = 0.05, 0.9, 0.99, 1e-16
SIZES = {"w": 12, "b": 4, "s": 1}
TENSORS = [slice(0, 12), slice(12, 16), slice(16, 17)]
N = 17
GROUPS = [
    group(bare.amsgrad(lr=LR, beta1=BETA1, beta2=BETA2), w=[3, 4], b=[4]),
    group(bare.amsgrad(lr=LR, beta1=BETA1, beta2=BETA2, low=-0.5, high=0.5), s=[]),
]
START = np.linspace(-1, 1, N)


class HandWritten:
    """AMSGrad over a flat vector, float64, t for each tensor; the last tensor is clamped."""

    def __init__(self) -> None:
        self.p: Vector = START.copy()
        self.m, self.v, self.u = np.zeros(N), np.zeros(N), np.zeros(N)
        self.t = [0, 0, 0]

    def step(self, g: Vector, absent: tuple[int, ...] = ()) -> Vector:
        for index, part in enumerate(TENSORS):
            if index in absent:
                continue
            self.t[index] += 1
            t = self.t[index]
            self.m[part] = BETA1 * self.m[part] + (1 - BETA1) * g[part]
            self.v[part] = BETA2 * self.v[part] + (1 - BETA2) * g[part] ** 2
            self.u[part] = np.maximum(self.u[part], self.v[part])
            rate = LR * np.sqrt(1 - BETA2**t) / (1 - BETA1**t)
            self.p[part] -= rate * self.m[part] / (np.sqrt(self.u[part]) + EPS)
        self.p[16] = np.clip(self.p[16], -0.5, 0.5)
        return self.p.copy()


def gradient(seed: int, rows: int | None = None) -> Vector:
    """Numbers that float32 holds exactly."""
    shape = (N,) if rows is None else (rows, N)
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32).astype(np.float64)


def assert_close(found: npt.ArrayLike, expected: Vector) -> None:
    np.testing.assert_allclose(np.asarray(found), expected, rtol=2e-6, atol=2e-7)


@pytest.fixture
def client(server_process: ServerProcess) -> Iterator[BareClient]:
    with BareClient(server_process.target) as opened:
        yield opened


@pytest.fixture
def name(request: pytest.FixtureRequest, client: BareClient) -> str:
    """A run of this test's own, created in slices that come last first."""
    return created(client, f"bare-{request.node.originalname}")


def created(client: BareClient, name: str) -> str:
    response = client.create(name, GROUPS, slices(START.tolist(), 1, 13, 14), request_id=name)
    assert response.created
    return name


def test_this_client_uses_nothing_of_ours_but_the_generated_code() -> None:
    for path in (Path(__file__), Path(bare.__file__)):
        ours = under(imports_of(path.read_text(), ""), "gradwire")
        assert ours
        assert not {module for module in ours if not module.startswith("gradwire.v1")}


def test_created_run_says_every_default(client: BareClient, name: str) -> None:
    run = client.get(name)
    assert (run.step, run.epoch, run.elements) == (0, 0, N)
    assert list(run.slots) == ["exp_avg", "exp_avg_sq", "max_exp_avg_sq"]
    assert [(p.address, p.offset, p.length) for p in run.placements] == [("", 0, N)]
    assert (run.durability, run.attached_worker_id) == (run_pb2.DURABILITY_MEMORY, "")
    assert run.server_instance
    assert (run.spec.dtype, run.spec.non_finite_policy) == (run_pb2.DTYPE_FLOAT32, run_pb2.NON_FINITE_POLICY_REJECT)
    first, second = run.spec.groups
    assert [(t.name, list(t.shape)) for g in run.spec.groups for t in g.tensors] == [
        ("w", [3, 4]),
        ("b", [4]),
        ("s", []),
    ]
    assert (first.adam.eps, first.adam.bias_correction, first.adam.weight_decay) == (1e-16, True, 0)
    assert first.adam.epsilon_placement == run_pb2.Adam.EPSILON_PLACEMENT_EPS_HAT
    assert not first.adam.HasField("low")
    assert (second.adam.low, second.adam.high) == (-0.5, 0.5)
    assert_close(client.read(name)[1], START)


def test_steps_of_one_message(client: BareClient, name: str) -> None:
    expected = HandWritten()
    with client.attach(name) as stream:
        assert (stream.attached.step, stream.attached.last_sequence, stream.attached.epoch) == (0, 0, 1)
        for sequence in (1, 2, 3):
            g = gradient(sequence)
            answer, receipt = stream.step(sequence, g.tolist())
            assert list(answer) == [0]
            assert_close(answer[0], expected.step(g))
            assert receipt.step == sequence
            assert receipt.gradient_norm == pytest.approx(np.linalg.norm(g), rel=1e-12)
            assert list(receipt.learning_rates) == [LR, LR]
            assert (receipt.repeated, receipt.durability) == (False, run_pb2.DURABILITY_MEMORY)
        assert client.get(name).attached_worker_id == "worker"


def test_a_step_in_slices_out_of_order_is_answered_while_it_is_written(far_process: ServerProcess) -> None:
    """Each slice's answer is there before the next slice is sent: nothing needs to be held back, where the client is of
    another host."""
    expected = HandWritten()
    g = gradient(1)
    found = np.full(N, np.nan)
    with BareClient(far_process.target) as client, client.attach(created(client, "bare-early")) as stream:
        parts = [(14, 17), (0, 5), (10, 14), (5, 10)]
        for index, (start, stop) in enumerate(parts):
            last = index == len(parts) - 1
            header = train_pb2.BlockHeader() if index == 0 else None
            stream.send(
                train_pb2.Gradients(
                    sequence=1, offset=start, data=pack(g[start:stop].tolist()), last=last, header=header
                )
            )
            part = stream.receive().parameters
            assert (part.sequence, part.offset, part.steps, part.HasField("receipt")) == (1, start, 1, last)
            found[start:stop] = unpack(part.data)
        assert part.receipt.step == 1
        assert_close(found, expected.step(g))
        assert_close(client.read("bare-early")[1], expected.p)


def test_many_slices_written_by_one_thread_and_read_by_another(client: BareClient) -> None:
    """A vector far larger than flow control lets through: about 12 MB each way."""
    n, piece = 3_000_000, 100_000
    values = np.full(n, 0.5, "<f4").tobytes()
    parts = [run_pb2.Slice(offset=i, data=values[4 * i : 4 * (i + piece)]) for i in range(0, n, piece)]
    client.create("bare-large", [group(bare.amsgrad(lr=0.25), w=[n])], parts)
    order = np.random.default_rng(0).permutation(n // piece) * piece
    gradients = np.where(np.arange(n) % 3 == 0, 2, -2).astype("<f4").tobytes()
    found = np.full(n, np.nan, np.float32)
    with client.attach("bare-large") as stream:
        for index, start in enumerate(order.tolist()):
            message = train_pb2.Gradients(
                sequence=1,
                offset=start,
                data=gradients[4 * start : 4 * (start + piece)],
                last=index == len(order) - 1,
                header=train_pb2.BlockHeader() if index == 0 else None,
            )
            stream.send(message)
        for part in stream.answer():
            found[part.offset : part.offset + len(part.data) // 4] = np.frombuffer(part.data, "<f4")
    # At the first step the update is lr times the sign of the gradient.
    np.testing.assert_allclose(found, np.where(np.arange(n) % 3 == 0, 0.25, 0.75), rtol=1e-6)
    client.call("DeleteRun", service_pb2.DeleteRunRequest(name="runs/bare-large"))


def test_a_trajectory_holds_the_parameters_after_each_step(client: BareClient, name: str) -> None:
    expected = HandWritten()
    block = gradient(5, rows=4)
    with client.attach(name) as stream:
        stream.send(bare.whole(1, block.ravel().tolist(), steps=4, returns=train_pb2.RETURNS_TRAJECTORY))
        found = np.full((4, N), np.nan)
        for part in stream.answer():
            rows = np.array(unpack(part.data)).reshape(part.steps, -1)
            found[part.first_step : part.first_step + part.steps, part.offset : part.offset + rows.shape[1]] = rows
        assert part.receipt.step == 4
    assert_close(found, np.array([expected.step(row) for row in block]))


def test_a_receipt_alone(client: BareClient, name: str) -> None:
    with client.attach(name) as stream:
        answer, receipt = stream.step(1, gradient(1).tolist(), returns=train_pb2.RETURNS_NONE)
        assert answer == {}
        assert receipt.step == 1


def test_an_absent_tensor_and_its_t_stay(client: BareClient, name: str) -> None:
    expected = HandWritten()
    with client.attach(name) as stream:
        g = gradient(1)
        stream.step(1, g.tolist())
        expected.step(g)
        g = gradient(2)
        stream.send(
            train_pb2.Gradients(
                sequence=2,
                data=pack(g[:12].tolist()),
                header=train_pb2.BlockHeader(absent_tensors=[1]),
            ),
            train_pb2.Gradients(sequence=2, offset=16, data=pack(g[16:].tolist()), last=True),
        )
        covered = [(part.offset, part.offset + len(part.data) // 4) for part in stream.answer()]
        assert covered == [(0, 12), (16, 17)]
        expected.step(g, absent=(1,))
        g = gradient(3)
        answer, _ = stream.step(3, g.tolist())
        assert_close(answer[0], expected.step(g))
    header, *_ = client.call("ReadState", service_pb2.ReadStateRequest(name=f"runs/{name}"))
    assert (header.header.step, list(header.header.tensor_steps)) == (3, expected.t) == (3, [3, 2, 3])


def test_state_can_be_read(client: BareClient, name: str) -> None:
    expected = HandWritten()
    with client.attach(name) as stream:
        for sequence in (1, 2, 3):
            stream.step(sequence, gradient(sequence).tolist())
            expected.step(gradient(sequence))
    header, *parts = client.call("ReadState", service_pb2.ReadStateRequest(name=f"runs/{name}"))
    found = {slot: np.full(N, np.nan) for slot in header.header.slots}
    for part in parts:
        values = unpack(part.slice.data)
        slot = header.header.slots[part.slice.slot]
        found[slot][part.slice.offset : part.slice.offset + len(values)] = values
    assert header.header.step == 3
    for slot, vector in (("exp_avg", expected.m), ("exp_avg_sq", expected.v), ("max_exp_avg_sq", expected.u)):
        assert_close(found[slot], vector)


def test_parameters_and_state_can_be_written(client: BareClient, name: str) -> None:
    """From a checkpoint of 7 steps the next step is the eighth; the slots may come in any order."""
    expected = HandWritten()
    for seed in range(7):
        expected.step(gradient(seed))
    parameters = service_pb2.WriteParametersHeader(name=f"runs/{name}")
    response = client.call(
        "WriteParameters",
        iter(
            [service_pb2.WriteParametersRequest(header=parameters)]
            + [service_pb2.WriteParametersRequest(slice=part) for part in slices(expected.p.tolist(), 4, 11)]
        ),
    )
    assert (response.step, response.epoch) == (0, 1)
    slots = {"max_exp_avg_sq": expected.u, "exp_avg": expected.m, "exp_avg_sq": expected.v}
    state = service_pb2.StateHeader(step=7, tensor_steps=[7, 7, 7], slots=slots)
    requests = [service_pb2.WriteStateRequest(header=service_pb2.WriteStateHeader(name=f"runs/{name}", state=state))]
    for slot, vector in reversed(list(enumerate(slots.values()))):
        for part in slices(vector.tolist(), 9):
            piece = service_pb2.SlotSlice(slot=slot, offset=part.offset, data=part.data)
            requests.append(service_pb2.WriteStateRequest(slice=piece))
    response = client.call("WriteState", iter(requests))
    assert (response.step, response.epoch) == (7, 2)
    with client.attach(name) as stream:
        assert (stream.attached.step, stream.attached.last_sequence) == (7, 0)
        answer, receipt = stream.step(1, gradient(8).tolist())
        assert receipt.step == 8
        assert_close(answer[0], expected.step(gradient(8)))


def test_a_write_fences_the_attached_stream(client: BareClient, name: str) -> None:
    with client.attach(name) as stream:
        stream.step(1, gradient(1).tolist())
        header = service_pb2.WriteParametersHeader(name=f"runs/{name}")
        requests = [service_pb2.WriteParametersRequest(header=header)]
        requests += [service_pb2.WriteParametersRequest(slice=part) for part in slices(START.tolist())]
        assert client.call("WriteParameters", iter(requests)).epoch > stream.attached.epoch
        with pytest.raises(Refusal) as caught:
            stream.step(2, gradient(2).tolist())
        assert (caught.value.code, caught.value.reason) == (grpc.StatusCode.ABORTED, "FENCED")
    header_of_read, values = client.read(name)
    assert header_of_read.step == 1
    assert_close(values, START)


def test_runs_are_listed_in_order_and_in_pages(client: BareClient, name: str) -> None:
    names = [f"bare-page-{i}" for i in range(5)]
    for other in reversed(names):
        client.create(other, [group(w=[2])], [0.0, 0.0])
    found, token, pages = [], "", 0
    while True:
        page = client.call("ListRuns", service_pb2.ListRunsRequest(page_size=2, page_token=token))
        assert len(page.runs) <= 2
        found += [run.name for run in page.runs]
        token, pages = page.next_page_token, pages + 1
        if not token:
            break
    assert found == sorted(set(found))
    assert {f"runs/{other}" for other in [name, *names]} <= set(found)
    assert pages == -(-len(found) // 2)
    whole = client.call("ListRuns", service_pb2.ListRunsRequest())
    assert [run.name for run in whole.runs] == found
    (summary,) = [run for run in whole.runs if run.name == f"runs/{name}"]
    assert (summary.elements, summary.step, summary.dtype) == (N, 0, run_pb2.DTYPE_FLOAT32)


def test_a_deleted_run_is_gone_and_its_stream_ends(client: BareClient, name: str) -> None:
    with client.attach(name) as stream:
        stream.step(1, gradient(1).tolist())
        assert client.call("DeleteRun", service_pb2.DeleteRunRequest(name=f"runs/{name}")).step == 1
        with pytest.raises(Refusal, match="NOT_FOUND"):
            stream.receive()
    with pytest.raises(Refusal) as caught:
        client.get(name)
    assert (caught.value.code, caught.value.reason) == (grpc.StatusCode.NOT_FOUND, "RUN_NOT_FOUND")


def test_the_last_block_sent_again_is_answered_and_not_applied_again(client: BareClient, name: str) -> None:
    block = gradient(3, rows=2).ravel().tolist()
    trajectory = {"steps": 2, "returns": train_pb2.RETURNS_TRAJECTORY}
    with client.attach(name) as stream:
        first, receipt = stream.step(1, block, **trajectory)
    with client.attach(name) as stream:
        assert (stream.attached.last_sequence, stream.attached.step) == (1, 2)
        again, repeated = stream.step(1, block, **trajectory)
        assert again == first
        assert (receipt.repeated, repeated.repeated) == (False, True)
        assert repeated.step == receipt.step == client.get(name).step == 2
