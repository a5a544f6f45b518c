"""Tokens are renewed while a run is trained, as `docs/security.md` says: create, hand out, revoke. No step is lost."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from gradwire.client import AMSGrad, PermissionRevoked, RetryPolicy, Run, Unauthenticated, connect
from tests.faults.hosted import HostedServer, eventually
from tests.integration.access import AccessFile, secret_of

SIZE = 50


def gradient(step: int) -> dict[str, np.ndarray]:
    return {"w": np.random.default_rng(step).normal(size=SIZE)}


class Renewal:
    """A server's access file, and the file of a client that it lets in."""

    def __init__(self, folder: Path, patch: pytest.MonkeyPatch) -> None:
        patch.setattr("gradwire.server.rpc.calls.LOOK_SECONDS", 0.02)
        patch.delenv("GRADWIRE_TOKEN", raising=False)
        patch.setenv("GRADWIRE_TOKEN_FILE", str(folder / "token"))
        self.access = AccessFile(folder / "access.toml")
        self._file = folder / "token"
        self.access.add("twin")
        self.create("0")
        self.hand_out("0")

    def create(self, name: str) -> None:
        self.access.add(name, "lab", "train")

    def hand_out(self, name: str) -> None:
        new = self._file.with_name(".token")
        new.write_text(secret_of(name))
        new.replace(self._file)


@pytest.fixture
def renewal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Renewal:
    return Renewal(tmp_path, monkeypatch)


@pytest.fixture(params=["127.0.0.1:0", "unix:SOCKET"])
def hosted(renewal: Renewal, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[HostedServer]:
    listen = request.param.replace("SOCKET", str(tmp_path / "socket"))
    with HostedServer(access=str(renewal.access.path), listen=(listen,)) as server:
        yield server


def known(target: str, name: str) -> None:
    """Returns once the server has taken the token into account."""

    def answers() -> bool:
        with connect(target, token=secret_of(name)) as server:
            try:
                return server.who_am_i().id == name
            except Unauthenticated:
                return False

    eventually(answers, f"the server knows the token {name}")


def trained(run: Run, first: int, steps: int) -> None:
    for step in range(first, first + steps):
        assert run.step(gradient(step)).step == step + 1


def until_revoked(run: Run) -> tuple[int, PermissionRevoked]:
    """The steps that were answered before, and what the one after them was refused with."""
    for step in itertools.count():
        try:
            trained(run, step, 1)
        except PermissionRevoked as refusal:
            return step, refusal
    raise AssertionError


def test_every_token_is_renewed_and_no_step_is_lost(hosted: HostedServer, renewal: Renewal) -> None:
    """With a policy that allows no further attempt: a token that was renewed is no failure."""
    with connect(hosted.target) as server:
        run = server.create_run(
            "x", {"w": np.zeros(SIZE)}, AMSGrad(lr=0.1), durability="MEMORY", retry=RetryPolicy(deadline_seconds=0)
        )
        steps = 0
        for number in range(1, 6):
            stream = run._attachment.stream
            renewal.create(f"{number}")
            known(hosted.target, f"{number}")
            renewal.hand_out(f"{number}")
            renewal.access.remove(f"{number - 1}")
            while run._attachment.stream is stream:  # until it is revoked
                trained(run, steps, 1)
                steps += 1
            assert server.who_am_i().id == f"{number}"
        digest, values = run.digest(), run.read()["w"]
        assert np.array_equal(run.params["w"], values)
        assert steps >= 5
    with connect(hosted.target, token=secret_of("twin")) as server:
        twin = server.create_run("twin", {"w": np.zeros(SIZE)}, AMSGrad(lr=0.1), durability="MEMORY")
        trained(twin, 0, steps)
        assert twin.digest() == digest


def test_who_gets_no_other_token_may_go_on_once_it_has_one(hosted: HostedServer, renewal: Renewal) -> None:
    with connect(hosted.target) as server:
        run = server.create_run("x", {"w": np.zeros(SIZE)}, AMSGrad(lr=0.1), durability="MEMORY")
        renewal.access.remove("0")
        done, refusal = until_revoked(run)
        with pytest.raises(Unauthenticated):
            run.step(gradient(done))
        renewal.create("1")
        known(hosted.target, "1")
        renewal.hand_out("1")
        done += refusal.applied is True
        trained(run, done, 3)
    with connect(hosted.target, token=secret_of("twin")) as server:
        twin = server.create_run("twin", {"w": np.zeros(SIZE)}, AMSGrad(lr=0.1), durability="MEMORY")
        trained(twin, 0, done + 3)
        assert twin.digest() == server.attach("x").digest()
