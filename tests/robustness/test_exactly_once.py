"""Exactly once, across everything: at each moment of a block something ends, and it is applied once all the same."""

from __future__ import annotations

import contextlib
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from gradwire.client import Fenced, GradwireError, Run, Server, connect
from gradwire.wire.encoding import SLICE_BYTES
from tests.faults.proxy import Direction
from tests.robustness.model import Block, Reference, Shape, apply, bytes_of, fingerprint
from tests.robustness.proxy import RoughProxy
from tests.robustness.servers import ForkedServer, Zygote
from tests.robustness.trainer import RETRY

WORKER = "one worker"
LARGE = 300_000
"""Two slices at K=1."""


@dataclass(frozen=True)
class Moment:
    """A failpoint, and at which hit it lies in the second block. ``per_slice``: it is hit by each slice."""

    point: str
    hit: int = 2
    per_slice: bool = False


MOMENTS = {
    "between two slices": Moment("stage.after", per_slice=True),
    "after the last slice": Moment("commit.before-journal"),
    "before it is on disk": Moment("journal.commit", hit=4),  # the creation, the attachment and the first block before
    "when it is on disk": Moment("journal.after-commit", hit=4),
    "after the commit": Moment("commit.after-apply"),
    "before the receipt": Moment("reply.before"),
    "after the receipt": Moment("reply.after"),
}


class Scene:
    """A server that stops or dies at a moment of the second block, a proxy before it, and a client."""

    def __init__(self, directory: Path, zygote: Zygote, shape: Shape, failpoints: str) -> None:
        self.shape = shape
        self._zygote = zygote
        self._directory = directory
        socket = f"unix:{directory}/socket"
        self._flags = ("--data-dir", str(directory / "data"), "--listen", socket, "--snapshot-interval", "1000")
        self.server = self.started(failpoints)
        self.proxy = RoughProxy(socket)
        self.connections: list[Server] = []
        self.run = self.connected().create_run(
            shape.name, shape.initial(), shape.optimizer(), durability="JOURNAL", worker_id=WORKER, retry=RETRY
        )

    def started(self, failpoints: str = "") -> ForkedServer:
        log = self._directory / "log"
        server = ForkedServer(self._zygote, *self._flags, log=log, failpoints=failpoints)
        assert server.wait_ready(), log.read_text()
        return server

    def connected(self) -> Server:
        # The moments count the slices of messages, and the proxy cuts in them.
        self.connections.append(connect(self.proxy.target, shared_memory=False))
        return self.connections[-1]

    def come_back(self) -> Run:
        """The same worker once more, in what could be another process; it knows that it had made the first block."""
        return self.connected().attach(self.shape.name, worker_id=WORKER, last_sequence=1, retry=RETRY)

    def wait_stopped(self) -> None:
        """Until the server stands still at its failpoint."""
        deadline = time.monotonic() + 30
        stat = Path(f"/proc/{self.server.pid}/stat")
        while stat.read_text().rpartition(")")[2].split()[0] != "T":
            assert time.monotonic() < deadline, "the server does not come to its failpoint"
            time.sleep(0.005)

    def close(self) -> None:
        for connection in self.connections:
            connection._link.channel.close()
        self.proxy.close()
        if not self.server.dead:
            self.server.kill()


@pytest.fixture
def scene(tmp_path: Path, zygote: Zygote) -> Iterator[Callable[[Shape, str], Scene]]:
    made: list[Scene] = []

    def make(shape: Shape, failpoints: str) -> Scene:
        made.append(Scene(tmp_path, zygote, shape, failpoints))
        return made[-1]

    yield make
    for one in made:
        one.close()


def server_is_killed(scene: Scene, block: Block) -> Run:
    def start_again() -> None:
        assert scene.server.wait_dead(30)
        scene.server = scene.started()

    helper = threading.Thread(target=start_again)
    helper.start()
    apply(scene.run, scene.shape, block)
    helper.join()
    return scene.run


def connection_is_cut(scene: Scene, block: Block) -> Run:
    def cut() -> None:
        scene.wait_stopped()
        scene.proxy.cut()
        scene.server.send(signal.SIGCONT)

    helper = threading.Thread(target=cut)
    helper.start()
    apply(scene.run, scene.shape, block)
    helper.join()
    return scene.run


def client_is_killed(scene: Scene, block: Block) -> Run:
    """Its connection is gone, and what it knew; it comes back with the same worker id."""

    def kill() -> None:
        scene.wait_stopped()
        scene.connections[0]._link.channel.close()
        scene.server.send(signal.SIGCONT)

    helper = threading.Thread(target=kill)
    helper.start()
    with contextlib.suppress(GradwireError, ValueError):  # unless its receipt was already on the way
        apply(scene.run, scene.shape, block)
    helper.join()
    again = scene.come_back()
    apply(again, scene.shape, block)
    return again


def another_has_its_worker_id(scene: Scene, block: Block) -> Run:
    """Two processes with one worker id make the same block: the newer one wins, the older one is fenced."""
    ended: list[BaseException | int] = []

    def older() -> None:
        try:
            ended.append(apply(scene.run, scene.shape, block))
        except GradwireError as error:
            ended.append(error)

    thread = threading.Thread(target=older)
    thread.start()
    scene.wait_stopped()
    scene.server.send(signal.SIGCONT)
    newer = scene.come_back()
    apply(newer, scene.shape, block)
    thread.join(30)
    (end,) = ended
    assert end == 2 * block.steps or isinstance(end, Fenced)
    return newer


FAULTS = {
    "kill": server_is_killed,
    "stop, cut": connection_is_cut,
    "stop, client": client_is_killed,
    "stop, rival": another_has_its_worker_id,
}


@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("fault", sorted(FAULTS))
@pytest.mark.parametrize("moment", sorted(MOMENTS))
def test_a_block_is_applied_once(
    scene: Callable[[Shape, str], Scene], reference: Reference, moment: str, fault: str, steps: int
) -> None:
    at = MOMENTS[moment]
    shape = Shape("once", "JOURNAL", 1, size=LARGE if at.per_slice else 40)
    hit = at.hit
    if at.per_slice:
        hit = 1 + math.ceil((shape.size + shape.bias) * 4 * steps / SLICE_BYTES)
    action = "kill" if fault == "kill" else "stop"
    here = scene(shape, f"{at.point}={action}@{hit}")
    blocks = [Block(seed, steps) for seed in (1, 2, 3)]
    assert apply(here.run, shape, blocks[0]) == steps
    run = FAULTS[fault](here, blocks[1])
    check(run, reference, shape, blocks[:2])
    assert apply(run, shape, blocks[2]) == 3 * steps
    check(run, reference, shape, blocks)
    here.server.kill()
    here.server = here.started()
    check(run, reference, shape, blocks)


@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("direction", list(Direction))
def test_a_connection_that_breaks_inside_a_message(
    scene: Callable[[Shape, str], Scene], reference: Reference, direction: Direction, steps: int
) -> None:
    shape = Shape("once", "JOURNAL", 1, size=LARGE)
    here = scene(shape, "")
    blocks = [Block(seed, steps) for seed in (1, 2, 3)]
    apply(here.run, shape, blocks[0])
    size = LARGE * 4 * (steps if direction is Direction.UP else 1)
    here.proxy.cut_after(direction, size * 2 // 3)
    apply(here.run, shape, blocks[1])
    assert here.proxy.was_cut.is_set()
    apply(here.run, shape, blocks[2])
    check(here.run, reference, shape, blocks)


def test_receipts_that_come_late(scene: Callable[[Shape, str], Scene], reference: Reference) -> None:
    shape = Shape("once", "JOURNAL", 1)
    here = scene(shape, "")
    here.proxy.delay(Direction.DOWN, 0.3)
    blocks = [Block(seed, 2) for seed in (1, 2, 3)]
    for block in blocks:
        apply(here.run, shape, block)
    check(here.run, reference, shape, blocks)


def check(run: Run, reference: Reference, shape: Shape, blocks: list[Block]) -> None:
    """The server holds what these blocks give, and so does the client."""
    assert fingerprint(run) == reference.after(shape, blocks)
    assert bytes_of(run.params) == reference.params(shape, blocks)
    assert not run.stale
