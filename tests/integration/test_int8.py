"""INT8 both ways, end to end: it trains as float32 does, and the worker's copy is the one that the server counts on."""

from __future__ import annotations

import gc
import itertools
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from gradwire.client import AMSGrad, MemoryLimitExceeded, NonFiniteGradient, Run, Server, TorchAdam, connect
from gradwire.client.encodings.gradients import DenseGradients, Int8Gradients
from gradwire.client.encodings.parameters import DeltaParameters
from gradwire.client.torch import RemoteOptimizer
from gradwire.server.encodings.encoders import DeltaEncoder
from gradwire.wire.int8 import Blocks
from gradwire.wire.layout import Layout, Range
from tests.faults.hosted import HostedServer
from tests.integration.test_digits import batch, digits, forward_and_gradients
from tests.serving import ServerProcess

__all__ = ["digits"]  # a fixture

Params = dict[str, npt.NDArray[Any]]

INT8: dict[str, Any] = {"gradient_encoding": "int8", "parameter_encoding": "int8"}
SHAPES = {"w": (30, 40), "none": (0,), "b": (7,), "v": (512,)}
SIZE = 30 * 40 + 7 + 512
BLOCKS = 5 + 1 + 2
_names = itertools.count()


@pytest.fixture
def hosted() -> Iterator[HostedServer]:
    """A server in this process, whose encoders can be looked at."""
    with HostedServer(max_memory=2**26) as server:
        yield server


@pytest.fixture
def near(hosted: HostedServer) -> Iterator[Server]:
    with connect(hosted.target) as connection:
        yield connection


def tensors(seed: int, steps: int | None = None, dtype: Any = np.float32) -> Params:
    random = np.random.default_rng(seed)
    rows = () if steps is None else (steps,)
    return {name: random.standard_normal((*rows, *shape)).astype(dtype) for name, shape in SHAPES.items()}


def create(server: Server, seed: int = 0, dtype: Any = np.float32, **options: Any) -> Run:
    return server.create_run(
        f"int8-{next(_names)}", tensors(seed, dtype=dtype), AMSGrad(lr=0.01), **{**INT8, **options}
    )


def flat(params: Params) -> npt.NDArray[Any]:
    return np.concatenate([params[name].reshape(-1) for name in SHAPES])


def copy_of(run: Run) -> npt.NDArray[np.float32]:
    """What the client believes that the server counts on."""
    assert isinstance(run._encodings.parameters, DeltaParameters)
    return run._encodings.parameters.copy.held


def baseline_of(hosted: HostedServer, elements: int = SIZE) -> npt.NDArray[np.float32]:
    """What the server counts on, where one stream of one run is open."""

    def find() -> npt.NDArray[np.float32]:
        gc.collect()
        (encoder,) = [
            found
            for found in gc.get_objects()
            if type(found) is DeltaEncoder and found.baseline is not None and found.baseline.held(Range(0, 1)).size
        ]
        assert encoder.baseline is not None
        return encoder.baseline.held(Range(0, elements))

    return hosted.call(find)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
    return port


# --- training --------------------------------------------------------------------------------------------------------


def train(run: Run, data: tuple[Any, Any], steps: int) -> tuple[list[float], float]:
    """Losses on the way, and the share of pictures that the server's parameters get right."""
    images, labels = data[0].astype(np.float32), data[1]
    losses = []
    for step in range(steps):
        chosen = batch(step, len(labels))
        loss, grads = forward_and_gradients(run.params, images[chosen], labels[chosen])
        losses.append(loss)
        run.step(grads)
    params = run.read()
    hidden = np.maximum(images @ params["w1"] + params["b1"], 0)
    return losses, float(((hidden @ params["w2"] + params["b2"]).argmax(1) == labels).mean())


@pytest.mark.parametrize("options", [INT8, {"gradient_encoding": "int8"}, {"parameter_encoding": "int8"}], ids=str)
def test_it_trains_as_float32_does(server: Server, digits: tuple[Any, Any], options: dict[str, Any]) -> None:
    """The mean loss of the last 50 of 300 steps is within 5% of float32's, and the accuracy within 1%."""
    random = np.random.default_rng(0)
    start = {
        "w1": (random.normal(size=(64, 32)) / 8).astype(np.float32),
        "b1": np.zeros(32, np.float32),
        "w2": (random.normal(size=(32, 10)) / 6).astype(np.float32),
        "b2": np.zeros(10, np.float32),
    }
    found = []
    for encoding in (options, {}):
        name = f"int8-digits-{next(_names)}"
        with server.create_run(name, start, TorchAdam(lr=3e-3, amsgrad=True), **encoding) as run:
            found.append(train(run, digits, 300))
    (losses, accuracy), (exact_losses, exact_accuracy) = found
    assert losses[0] == exact_losses[0] > 2
    assert np.mean(losses[-50:]) == pytest.approx(np.mean(exact_losses[-50:]), rel=0.05)
    assert exact_accuracy > 0.95
    assert accuracy == pytest.approx(exact_accuracy, abs=0.01)


def test_a_torch_model_trains(server: Server) -> None:
    torch.manual_seed(0)
    model = torch.nn.Linear(300, 1)
    inputs, targets = torch.randn(64, 300), torch.randn(64, 1)
    optimizer = RemoteOptimizer(
        model.parameters(),
        TorchAdam(lr=1e-2),
        target=server.target,
        run=f"int8-torch-{next(_names)}",
        overlap=True,
        **INT8,
    )
    losses = []
    for _ in range(100):
        optimizer.zero_grad()
        loss = torch.nn.functional.mse_loss(model(inputs), targets)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    optimizer.close()
    assert losses[-1] < losses[0] / 100


# --- what travels ----------------------------------------------------------------------------------------------------


def test_the_first_answer_is_full_and_exact_and_the_next_are_differences(server: Server) -> None:
    with create(server) as run:
        first = run.step(tensors(1))
        assert np.array_equal(flat(run.params), flat(run.read()))
        second = run.step(tensors(2))
        assert (first.received_bytes, first.sent_bytes) == (SIZE + 4 * BLOCKS, 4 * SIZE)
        assert (second.received_bytes, second.sent_bytes) == (SIZE + 4 * BLOCKS, SIZE + 4 * BLOCKS)
        np.testing.assert_allclose(flat(run.params), flat(run.read()), atol=0.02 / 254)
        nothing = run.step_many(tensors(3, 2), returns="none")
        assert nothing == {}
        assert run.last_receipt is not None
        assert (run.last_receipt.received_bytes, run.last_receipt.sent_bytes) == (2 * (SIZE + 4 * BLOCKS), 0)


@pytest.mark.parametrize(
    ("options", "up", "down"),
    [
        ({}, 4 * SIZE, 4 * SIZE),
        ({"gradient_encoding": "bfloat16", "parameter_encoding": "float16"}, 2 * SIZE, 2 * SIZE),
        ({"gradient_encoding": "float32", "parameter_encoding": "int8"}, 4 * SIZE, SIZE + 4 * BLOCKS),
        ({"gradient_encoding": "int8", "parameter_encoding": "bfloat16"}, SIZE + 4 * BLOCKS, 2 * SIZE),
    ],
    ids=str,
)
def test_receipts_say_how_many_bytes_went_each_way(server: Server, options: dict[str, Any], up: int, down: int) -> None:
    name = f"int8-{next(_names)}"
    with server.create_run(name, tensors(0), AMSGrad(lr=0.01), **options) as run:
        for seed in (1, 2):
            receipt = run.step(tensors(seed))
        assert (receipt.received_bytes, receipt.sent_bytes) == (up, down)
        run.step_many(tensors(3, 3))
        assert run.last_receipt is not None
        assert (run.last_receipt.received_bytes, run.last_receipt.sent_bytes) == (3 * up, down)


def test_an_int8_block_is_its_single_steps_bit_for_bit(server: Server) -> None:
    """In the server's parameters and state: what one step lost is in the next, in a block as on its own."""
    block = tensors(1, 5)
    with create(server) as together, create(server) as singly:
        together.step_many(block)
        for step in range(5):
            singly.step({name: rows[step] for name, rows in block.items()})
        assert np.array_equal(flat(together.read()), flat(singly.read()))
        ours, theirs = together.state_dict()["tensors"], singly.state_dict()["tensors"]
        for name in SHAPES:
            assert np.array_equal(ours[name]["exp_avg_sq"], theirs[name]["exp_avg_sq"])


def test_float64_runs(server: Server) -> None:
    with create(server, dtype=np.float64) as run:
        assert run.dtype == np.float64
        for seed in range(1, 6):
            run.step(tensors(seed, dtype=np.float64))
            assert np.array_equal(flat(run.params), copy_of(run).astype(np.float64))
        np.testing.assert_allclose(flat(run.params), flat(run.read()), atol=0.02 / 254)
        assert not np.array_equal(flat(run.read()), flat(run.read()).astype(np.float32))


def test_trajectories_have_no_int8(server: Server) -> None:
    with create(server) as run:
        run.step(tensors(1))
        with pytest.raises(ValueError, match="parameter_encoding='int8' does not have"):
            run.step_many(tensors(2, 3), returns="trajectory")
        assert run.step(tensors(2)).step == 2
    with create(server, parameter_encoding="float32") as run:
        assert run.step_many(tensors(2, 3), returns="trajectory")["b"].shape == (3, 7)


# --- one copy, on both sides -----------------------------------------------------------------------------------------


def test_the_client_s_copy_is_the_server_s_baseline_after_every_step(hosted: HostedServer, near: Server) -> None:
    """Whatever else happens to ``params``, and whatever a step leaves out."""

    def absent(run: Run) -> None:
        run.step({name: value for name, value in tensors(3).items() if name != "w"})

    def edited(run: Run) -> None:
        run.params["w"][:] = 7.0
        run.step(tensors(4))
        assert np.abs(run.params["w"]).max() < 7

    def refreshed(run: Run) -> None:
        run.step_many(tensors(5, 2), returns="none")
        run.refresh()
        assert np.array_equal(flat(run.params), flat(run.read()))

    def behind_and_absent(run: Run) -> None:
        run.step_many(tensors(6, 2), returns="none")
        run.step({"b": tensors(7)["b"]})  # reads the others anew, exactly

    ways: list[Callable[[Run], object]] = [
        lambda run: run.step(tensors(1)),
        lambda run: run.step(tensors(2)),
        absent,
        edited,
        refreshed,
        lambda run: run.step_many(tensors(8, 4)),
        behind_and_absent,
        lambda run: run.step(tensors(9)),
    ]
    run = create(near)
    for way in ways:
        way(run)
        assert np.array_equal(copy_of(run), baseline_of(hosted))
        np.testing.assert_allclose(flat(run.params), flat(run.read()), atol=0.1 / 254)
    assert run.refreshes == 2
    run.close()


def test_tensors_that_come_late_come_in_full(server: Server) -> None:
    with create(server) as run:
        run.step({"w": tensors(1)["w"]})
        receipt = run.step(tensors(2))
        assert receipt.sent_bytes == 1200 + 4 * 5 + 4 * (7 + 512)
        assert np.array_equal(run.params["v"], run.read()["v"])
        assert run.step(tensors(3)).sent_bytes == SIZE + 4 * BLOCKS


def test_gradients_cut_elsewhere_are_answered_all_the_same(hosted: HostedServer, near: Server) -> None:
    """Float32 gradients may be cut anywhere, by another client; the ends that cut blocks are answered in full."""
    run = create(near, gradient_encoding="float32")
    gradients = run._encodings.gradients
    assert isinstance(gradients, DenseGradients)
    assert gradients.early_dtype == np.float32
    gradients._tiles = lambda ranges, row_bytes, slice_bytes: [Range(0, 300), Range(300, 301), Range(301, SIZE)]
    for seed in (1, 2, 3):
        receipt = run.step(tensors(seed))
        assert np.array_equal(copy_of(run), baseline_of(hosted))
        np.testing.assert_allclose(flat(run.params), flat(run.read()), atol=0.02 / 254)
    assert SIZE < receipt.sent_bytes < 2 * SIZE
    run.close()


def test_long_vectors_of_odd_tensors(hosted: HostedServer, near: Server) -> None:
    """Several slices each way, none of which ends where a block of 256 from the vector's start would."""
    shapes = {"a": 700_001, "b": 5, "c": 900_003, "d": 100}
    random = np.random.default_rng(0)
    start = {name: random.standard_normal(size, np.float32) for name, size in shapes.items()}
    blocks = Blocks(Layout([[(name, (size,)) for name, size in shapes.items()]]))
    elements = sum(shapes.values())
    run = near.create_run(f"int8-{next(_names)}", start, AMSGrad(lr=0.01), **INT8)
    for step in range(4):
        receipt = run.step({name: random.standard_normal(size, np.float32) for name, size in shapes.items()})
        assert np.array_equal(copy_of(run), baseline_of(hosted, elements))
        assert receipt.received_bytes == elements + 4 * blocks.count
        assert receipt.sent_bytes == (4 * elements if step == 0 else receipt.received_bytes)
        exact = run.read()
        for name in shapes:
            np.testing.assert_allclose(run.params[name], exact[name], atol=0.02 / 254)
    run.close()


# --- what drops it ---------------------------------------------------------------------------------------------------


def residual_of(run: Run) -> Any:
    assert isinstance(run._encodings.gradients, Int8Gradients)
    return run._encodings.gradients.feedback.residual


def test_an_attachment_drops_residual_and_baseline(server: Server) -> None:
    with create(server) as run:
        run.step(tensors(1))
        run.step(tensors(2))
        assert residual_of(run).any()
        run.close()
        run.hold()
        assert residual_of(run) is None
        assert run.step(tensors(3)).sent_bytes == 4 * SIZE
        assert np.array_equal(flat(run.params), flat(run.read()))
        assert run.step(tensors(4)).sent_bytes == SIZE + 4 * BLOCKS


def test_a_write_does_too(server: Server) -> None:
    with create(server) as run:
        run.step(tensors(1))
        run.write(tensors(5))
        assert run.step(tensors(3)).sent_bytes == 4 * SIZE
        assert np.array_equal(flat(run.params), flat(run.read()))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_refused_step_drops_them_and_changes_nothing(server: Server, bad: float) -> None:
    with create(server) as run, create(server) as twin:
        for one in (run, twin):
            one.step(tensors(1))
            one.step(tensors(2))
        gradients = tensors(3)
        gradients["b"][3] = bad
        before = flat(run.read())
        with pytest.raises(NonFiniteGradient, match="'b'") as caught:
            run.step(gradients)
        assert caught.value.applied is False
        assert residual_of(run) is None
        assert np.array_equal(flat(run.read()), before)
        assert run.step(tensors(4)).sent_bytes == 4 * SIZE
        twin.close()  # which drops the residual of this one
        twin.step(tensors(4))
        assert np.array_equal(flat(run.read()), flat(twin.read()))


def test_a_skipped_step_drops_the_residual_and_changes_nothing(server: Server) -> None:
    with create(server, non_finite="skip") as run:
        run.step(tensors(1))
        before = flat(run.read())
        gradients = tensors(2)
        gradients["w"][0, 0] = np.nan
        receipt = run.step(gradients)
        assert receipt.skipped_steps == (0,)
        assert residual_of(run) is None
        assert np.array_equal(flat(run.read()), before)
        assert run.step(tensors(3)).step == 2
        assert residual_of(run).any()


def test_where_anything_is_allowed_a_nan_spreads_over_its_block_and_no_further(server: Server) -> None:
    with create(server, non_finite="allow") as run:
        run.step(tensors(1))
        gradients = tensors(2)
        gradients["v"][300] = np.nan
        run.step(gradients)
        for values in (run.params, run.read()):
            assert np.isfinite(values["w"]).all()
            assert np.isfinite(values["v"][:256]).all()
            assert np.isnan(values["v"][256:]).all()
        run.write(tensors(0))
        run.load_state_dict(fresh_state(run))
        run.step(tensors(3))
        assert np.isfinite(flat(run.params)).all()


def fresh_state(run: Run) -> dict[str, Any]:
    state = run.state_dict()
    for tensor in state["tensors"].values():
        for slot in run.slots:
            tensor[slot] = np.zeros_like(tensor[slot])
    return state


# --- memory ----------------------------------------------------------------------------------------------------------


def test_the_baseline_is_counted_while_the_stream_lives(hosted: HostedServer, near: Server) -> None:
    run = create(near)
    table = Blocks(run.layout)
    attached = hosted.used_bytes
    run.step(tensors(1))
    with_int8 = hosted.used_bytes - attached
    run.close()
    assert hosted.used_bytes == attached
    with near.attach(run.name, gradient_encoding="int8") as other:
        other.step(tensors(1))
        assert with_int8 - (hosted.used_bytes - attached) == 4 * SIZE + table.count + table.nbytes
    near.delete_run(run.name)
    assert hosted.used_bytes == 0


def test_without_room_for_the_baseline_the_step_is_refused_and_the_run_is_well(
    hosted: HostedServer, near: Server
) -> None:
    budget = hosted.registry.budget
    exact: dict[str, Any] = {"gradient_encoding": "float32", "parameter_encoding": "float32"}
    with create(near, **exact) as run:
        attached = hosted.used_bytes
        run.step(tensors(1))
        needed = hosted.used_bytes - attached
    with near.attach(run.name, parameter_encoding="int8") as again:
        rest = budget.reserve(budget.limit_bytes - budget.used_bytes - needed - 2 * SIZE, "something else")
        with pytest.raises(MemoryLimitExceeded, match="are free") as caught:
            again.step(tensors(2))
        assert caught.value.applied is False
        assert again.describe().step == 1
        rest.release()
        assert again.step(tensors(2)).step == 2
        assert np.array_equal(flat(again.params), flat(again.read()))


def test_a_server_that_is_killed_goes_on_where_it_was(tmp_path: Path, server: Server) -> None:
    """With a journal. The worker gets full values first, and the step that meets the new server is sent as it was."""
    address = f"127.0.0.1:{free_port()}"
    flags = ("--data-dir", str(tmp_path / "data"))
    twin = create(server)
    with ServerProcess(*flags, listen=address) as first, connect(first.target) as connection:
        run = create(connection, durability="JOURNAL")
        for seed in (1, 2):
            run.step(tensors(seed))
            twin.step(tensors(seed))
        first.kill()
        with ServerProcess(*flags, listen=address):
            assert run.step(tensors(3)).sent_bytes == 4 * SIZE
            assert run.step_count == 3
            assert np.array_equal(flat(run.params), flat(run.read()))
            twin.step(tensors(3))
            assert np.array_equal(flat(run.read()), flat(twin.read()))
            assert run.step(tensors(4)).sent_bytes == SIZE + 4 * BLOCKS
            run.close()
    twin.close()
