"""One data directory, one server after another on it, clients that go on all the time; and what is left is checked."""

from __future__ import annotations

import random
import re
import signal
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from tests.faults.proxy import Direction
from tests.robustness.branches import Branches
from tests.robustness.churn import Churn
from tests.robustness.damage import KINDS
from tests.robustness.disk import Disk, FileKind, Loss
from tests.robustness.model import Reference, Shape, TooLittleTraffic, Violation
from tests.robustness.plan import Life, Trouble
from tests.robustness.proxy import RoughProxy
from tests.robustness.rivals import Rival, rivals
from tests.robustness.servers import ForkedServer, Zygote
from tests.robustness.shared.fleet import Fleet
from tests.robustness.shared.inspection import SERVER_MARK
from tests.robustness.shared.moments import Recklessness
from tests.robustness.shared.setting import Setting
from tests.robustness.tally import Tally
from tests.robustness.trainer import SETTLE_SECONDS, Trainer, World
from tests.robustness.worker import Worker

LIFE_SECONDS = 60.0
"""A life that has not come to its end, or to some traffic, after so long is invalid."""

CHECK_EVERY = 10
"""After so many lives all values are compared; and at the end."""

FLAGS = ("--snapshot-steps", "9", "--snapshot-interval", "0.5", "--snapshots-kept", "2")


def usual_shapes(seed: int) -> list[Shape]:
    """Small runs, so that much happens to them; blocks of eight of the large one leave the event loop. Some of their
    clients are near."""
    return [
        Shape("journal-a", "JOURNAL", seed),
        Shape("journal-b", "JOURNAL", seed + 1, size=700, near=True),
        Shape("snapshot-a", "SNAPSHOT", seed + 2, near=seed % 2 == 0),
        Shape("journal-large", "JOURNAL", seed + 3, size=80_000, near=seed % 2 == 1),
    ]


class Episode:
    """A context manager. `play` raises Violation or TooLittleTraffic; ``tally`` holds what has happened so far.

    Args:
        shared: runs with many workers, which are processes of their own.
        recklessness: of those workers.
        shared_answers: so many are waited for in each life without a point at which it ends; 0: six for each run.
    """

    def __init__(
        self,
        directory: Path,
        seed: int,
        zygote: Zygote,
        reference: Reference,
        *,
        shapes: Sequence[Shape] | None = None,
        churns: bool = True,
        rivalry: bool = False,
        shared: Sequence[Setting] = (),
        recklessness: Recklessness | None = None,
        shared_answers: int = 0,
        bug: str = "",
        flags: Sequence[str] = FLAGS,
    ) -> None:
        self.tally = Tally()
        self._chance = random.Random(seed)
        self._zygote = zygote
        self._reference = reference
        self._bug = bug
        self._flags = flags
        self._log = directory / "log"
        self._log.touch()
        self.disk = Disk(directory)
        socket = f"unix:{directory}/socket"
        self._command = ("--data-dir", str(self.disk.root / "data"), "--listen", socket)
        self._stack = ExitStack()
        self._proxy = RoughProxy(socket)
        self._stack.callback(self._proxy.close)
        self.world = World(self._proxy.target, socket, self._log)
        self.trainers: list[Trainer | Churn | Branches | Rival | Fleet] = [
            Trainer(self.world, shape) for shape in (usual_shapes(seed) if shapes is None else shapes)
        ]
        if churns:
            self.trainers += [Churn(self.world, seed), Branches(self.world, seed + 5)]
        if rivalry:
            self.trainers += rivals(self.world, Shape("rivals", "JOURNAL", seed + 4))
        self._traffic = len(self.trainers) + (shared_answers or 6 * len(shared))
        if shared:
            self.trainers.append(Fleet(self.world, shared, zygote, directory, seed, reckless=recklessness))
        self._workers = [Worker(trainer) for trainer in self.trainers]
        self._server: ForkedServer | None = None

    def play(self, lives: Sequence[Life]) -> None:
        """Lives one after the other; then all is checked, twice: as it is, and after an orderly end and a new start."""
        for number, life in enumerate(lives, 1):
            self._live(life)
            if self.world.damaged and self._refused():
                return
            if number % CHECK_EVERY == 0 and number < len(lives):
                self.check()
        self.check()
        assert self._server is not None
        self._stop(self._server)
        for trainer in self.trainers:
            trainer.settled()
        self.disk.lose(Loss.UNFLUSHED, self._chance)
        self.world.power_cuts += 1
        self._server = None
        self.check()
        self._count()

    def _stop(self, server: ForkedServer) -> None:
        server.stop()
        self.world.orderly.add(self.world.lives)

    def _refused(self) -> bool:
        """Whether the server, or every run that was damaged, is refused now, with a word: a good end after damage."""
        begins_at = self._log.stat().st_size
        server = self._start()
        refused = server.exit_status == 1 and self.world.said("ClickException: ")
        for trainer in self.trainers:
            if isinstance(trainer, Trainer) and not server.dead:
                self._require_told(trainer, begins_at)
        refused |= any(isinstance(trainer, Trainer) and trainer.refused for trainer in self.trainers)
        self.tally.refused += refused
        return refused

    def _require_told(self, trainer: Trainer, begins_at: int) -> None:
        """Waits until a trainer has heard what its server has logged, that it cannot have its run. Raises Violation."""
        deadline = time.monotonic() + SETTLE_SECONDS
        name = f"runs/{trainer.shape.name}"
        if any(self.world.said(f"{name} {word}", begins_at) for word in ("cannot be brought back:", "is damaged:")):
            while not trainer.refused:
                for worker in self._workers:
                    self._raise(worker)
                if time.monotonic() > deadline:
                    raise Violation(f"{name} is damaged, and its worker is not told")
                time.sleep(0.01)

    def check(self) -> None:
        """Compares everything with the model, while nothing happens."""
        self._note("check")
        self._start()
        for worker in self._workers:
            worker.pause()
            self._raise(worker)
        for trainer in self.trainers:
            trainer.check(self._reference)
            self.tally.checks += len(trainer.trainers) if isinstance(trainer, Churn) else 1
            self.tally.checks += len(trainer.branches) if isinstance(trainer, Branches) else 0
            self.tally.checks += len(trainer.settings) - 1 if isinstance(trainer, Fleet) else 0
        self._require_undamaged()

    def _require_undamaged(self) -> None:
        """Where nothing was damaged, nothing may be found damaged."""
        if self.world.damaged:
            return
        for line in self._log.read_text(errors="replace").splitlines():
            if any(word in line for word in ("is damaged", "Traceback", "cannot be brought back", "has lost its last")):
                raise Violation(f"a server has said: {line}")
            lost = re.search(r"runs/(\S+) goes on from step", line)
            if lost and not self._may_go_back(lost.group(1)):
                raise Violation(f"a server has said of a journaled run: {line}")

    def _may_go_back(self, name: str) -> bool:
        """Whether the run may lose what has been acknowledged."""
        shapes: dict[str, Shape | Setting]
        shapes = {trainer.shape.name: trainer.shape for trainer in self.trainers if isinstance(trainer, Trainer)}
        for trainer in self.trainers:
            if isinstance(trainer, Fleet):
                shapes |= {setting.name: setting for setting in trainer.settings}
        durability = shapes[name].durability if name in shapes else Churn.durability_of(name)
        return durability == "SNAPSHOT"

    # --- one life ----------------------------------------------------------------------------------------------------

    def _start(self, life: Life | None = None) -> ForkedServer:
        """A server is running afterwards, or was killed while it started."""
        if self._server is not None and not self._server.dead:
            return self._server
        control = self.disk.control
        control.full = control.kill_kind = control.delay_us = 0
        points = [] if life is None else list(filter(None, [life.failpoints]))
        if life is not None:
            control.delay_us = life.slow_flush_us
            if life.end.startswith("flush."):
                moment, _, kind = life.end.removeprefix("flush.").partition("-")
                control.kill_after, control.kill_countdown = int(moment == "after"), life.hit
                control.kill_kind = FileKind[kind.upper()].value
            elif life.at_point:
                points.append(f"{life.end}=kill@{life.hit}")
        self.world.lives += 1
        self._note(f"{SERVER_MARK.removeprefix('--- ')}{self.world.lives}")
        self._server = server = ForkedServer(
            self._zygote,
            *self._command,
            *self._flags,
            log=self._log,
            shadowed=self.disk,
            failpoints=";".join(points),
            bug=self._bug,
            life=self.world.lives,
        )
        if life is not None and life.end == "start":
            return server
        if not server.wait_ready():
            assert server.wait_dead(30)
            if server.exit_status != -signal.SIGKILL and not self.world.damaged:
                raise Violation(f"the server does not start: it ended with {server.exit_status}")
        return server

    def _live(self, life: Life) -> None:
        before = self._acknowledged()
        for worker in self._workers:
            worker.resume()
        if self._server is not None and not self._server.dead:
            self._stop(self._server)  # of the last check; it had no failpoints
        self.world.life_begins_at = self._log.stat().st_size
        self._note(f"begins: {life}")
        server = self._start(life)
        ready = time.monotonic()
        if life.end == "start":
            time.sleep(life.after_seconds)
            server.kill()
        else:
            for trouble in life.troubles:
                time.sleep(max(0.0, ready + trouble.at_seconds - time.monotonic()))
                if server.dead:
                    break
                self._make(trouble, server)
            if not life.at_point:
                self._wait_for_traffic(before, ready + life.after_seconds)
            self._end(life, server)
        if server.exit_status == -signal.SIGKILL:
            self.tally.kills += 1
            self.tally.ends[life.end] += 1
        elif life.end not in ("term", "drain"):  # whose end may come before the kill
            raise Violation(f"the server ended with {server.exit_status} and not by {life.end}")
        self._note(f"ended with {server.exit_status}")
        for worker in self._workers:
            self._raise(worker)
        self.disk.control.full = 0
        self.disk.lose(life.loss, self._chance)
        self.world.power_cuts += life.loss is not Loss.NOTHING
        if life.damage:
            self._damage(life.damage)
        self.tally.losses[life.loss.value] += 1
        self._proxy.resume()

    def _damage(self, kind: str) -> None:
        runs = [trainer.shape.name for trainer in self.trainers if isinstance(trainer, Trainer)]
        run = self._chance.choice(runs)
        done = KINDS[kind](self.disk.root / "data", run, self._chance)
        self.disk._trust()  # to look into the database is to empty its log, and the server's library has not seen that
        self._note(f"damage: {kind}, {run}, {done}")
        self.world.damaged = True
        self.tally.damages[kind] += done

    def _end(self, life: Life, server: ForkedServer) -> None:
        if life.at_point:
            deadline = time.monotonic() + LIFE_SECONDS
            while not server.wait_dead(0.2):
                for worker in self._workers:
                    self._raise(worker)
                if time.monotonic() > deadline:
                    raise TooLittleTraffic(f"nothing has come to {life.end} {life.hit} times in {LIFE_SECONDS:.0f} s")
        elif life.end == "term":
            self._stop(server)
        elif life.end == "drain":
            server.send(signal.SIGTERM)
            time.sleep(life.after_seconds)
            if not server.dead:
                server.kill()
        else:
            server.kill()

    def _wait_for_traffic(self, before: int, not_before: float) -> None:
        """Until every client could have been answered once, workers of shared runs more often, and ``not_before``."""
        deadline = time.monotonic() + LIFE_SECONDS
        while self._acknowledged() < before + self._traffic or time.monotonic() < not_before:
            for worker in self._workers:
                self._raise(worker)
            if time.monotonic() > deadline:
                raise TooLittleTraffic(f"{self._acknowledged() - before} answers in {LIFE_SECONDS:.0f} s")
            time.sleep(0.01)

    def _make(self, trouble: Trouble, server: ForkedServer) -> None:
        direction = Direction.UP if trouble.up else Direction.DOWN
        self.tally.troubles[trouble.kind] += 1
        self._note(f"{trouble}")
        if trouble.kind == "cut":
            self._proxy.cut()
        elif trouble.kind == "cut-after":
            self._proxy.cut_after(direction, trouble.size_bytes)
            self._proxy.was_cut.wait(1.0)
        elif trouble.kind == "half-close":
            self._proxy.half_close(direction)
        elif trouble.kind == "stall":
            self._proxy.stall(direction)
            time.sleep(trouble.seconds)
            self._proxy.cut() if trouble.up else self._proxy.resume()
        elif trouble.kind == "delay":
            self._proxy.delay(direction, trouble.seconds / 10)
            time.sleep(trouble.seconds)
            self._proxy.delay(direction, 0)
        elif trouble.kind == "stop":
            server.send(signal.SIGSTOP)
            time.sleep(trouble.seconds)
            server.send(signal.SIGCONT)
        elif trouble.kind == "client":
            self._chance.choice(self.trainers).die()
        elif trouble.kind == "full":
            self.disk.control.full = 1
            time.sleep(trouble.seconds)
            self.disk.control.full = 0

    def _raise(self, worker: Worker) -> None:
        if worker.failure is not None:
            raise worker.failure

    def _acknowledged(self) -> int:
        return sum(trainer.counts.acknowledged for trainer in self.trainers)

    def _count(self) -> None:
        tally = self.tally
        tally.cuts, tally.cut_connections = self._proxy.cuts, self._proxy.cut_connections
        for trainer in self.trainers:
            tally.acknowledged += trainer.counts.acknowledged
            tally.by_lane += trainer.counts.by_lane
            tally.unknown += trainer.counts.unknown
            tally.rolled_back += trainer.counts.rolled_back
            tally.client_restarts += trainer.counts.restarts
            if isinstance(trainer, Fleet):
                tally.workers.update(trainer.kinds)
                for verdict in trainer.verdicts:
                    tally.outcomes.update(verdict.outcomes)
                    tally.rounds += verdict.rounds
                    tally.compared += verdict.compared

    def __enter__(self) -> Episode:
        return self

    def _note(self, event: str) -> None:
        """Puts it into the log, among what the servers say."""
        with self._log.open("a") as log:
            now = time.time()
            log.write(f"{time.strftime('%Y-%m-%d %H:%M:%S', time.localtime(now))},{now % 1 * 1000:03.0f} --- {event}\n")

    def _report(self) -> None:
        """What can be said about a failure; pytest shows it with the test."""
        for trainer in self.trainers:
            print(trainer.story)
        print("--- server", self._log.read_text(errors="replace")[-40000:], sep="\n")

    def __exit__(self, kind: type[BaseException] | None, *failure: object) -> None:
        if kind is not None:
            self._report()
        for worker in self._workers:
            worker.end()
        if self._server is not None and not self._server.dead:
            self._server.kill()
        for trainer in self.trainers:
            trainer.die()
        for worker in self._workers:
            worker.join(SETTLE_SECONDS)
        for trainer in self.trainers:
            for one in trainer.trainers if isinstance(trainer, (Churn, Branches)) else [trainer]:
                one._drop()
        self._stack.close()
