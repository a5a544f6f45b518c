"""The client's token: with every call, through renewals, and to nobody whom it is not for."""

from __future__ import annotations

import logging
import traceback
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from gradwire.client import (
    TLS,
    AMSGrad,
    ConnectionLost,
    PermissionDenied,
    PermissionRevoked,
    RetryPolicy,
    Run,
    Server,
    ServerStatus,
    Unauthenticated,
    WhoAmI,
    connect,
)
from gradwire.client.transport import channels, discovery, link
from gradwire.v1 import service_pb2
from gradwire.wire import tokens
from gradwire.wire.tls import Pem
from tests.integration.certificates import Files
from tests.integration.guarded import Guarded

OLD, NEW, WRONG = "0ld-secret-of-the-test", "n3w-secret-of-the-test", "wr0ng-secret-of-the-test"
ONES = {"w": np.ones(2, np.float32)}
NEVER_AGAIN = RetryPolicy(deadline_seconds=0)


@pytest.fixture(autouse=True)
def environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """In which nobody has said anything."""
    for name in ("GRADWIRE_TARGET", "GRADWIRE_TOKEN", "GRADWIRE_TOKEN_FILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    return monkeypatch


@pytest.fixture
def guarded() -> Iterator[Guarded]:
    with Guarded(OLD) as server:
        yield server


class TokenFile:
    """What GRADWIRE_TOKEN_FILE names."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def put(self, token: str) -> None:
        """Another file in its place, as whoever hands out tokens does."""
        new = self.path.with_name(".new")
        new.write_text(f"{token}\n")
        new.replace(self.path)


@pytest.fixture
def token_file(tmp_path: Path, environment: pytest.MonkeyPatch) -> TokenFile:
    environment.setenv("GRADWIRE_TOKEN_FILE", str(tmp_path / "token"))
    file = TokenFile(tmp_path / "token")
    file.put(OLD)
    return file


def a_run(server: Server, retry: RetryPolicy | None = None) -> Run:
    return server.create_run("x", {"w": np.zeros(2, np.float32)}, AMSGrad(), retry=retry)


# --- every call ------------------------------------------------------------------------------------------------------


def test_every_call_carries_it_and_a_health_check_does_not(guarded: Guarded, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"file")
    with connect(guarded.target, token=OLD) as server:
        run = a_run(server)
        run.step(ONES)
        run.step_many({"w": np.ones((1, 2), np.float32)})
        run.load_state_dict(run.state_dict())
        run.write(ONES)
        assert run.read()["w"].tolist() == [1, 1]
        run.save_snapshot()
        run.roll_back(run.list_snapshots()[0])
        run.export(tmp_path / "exported")
        run.fork("y").close()
        assert run.digest()
        run.describe()
        run.workers()
        run.series_names()
        run.log(loss=1.0)
        next(server.watch_series("x"))
        run.close()
        server.attach("x").close()
        server.import_run("z", file).close()
        server.list_runs()
        server.who_am_i()
        server.status()
        server.delete_run("x")
    methods = service_pb2.DESCRIPTOR.services_by_name["OptimizerService"].methods
    of_the_contract = {method.name for method in methods}
    assert {method for method, _ in guarded.calls} == {"Check", *of_the_contract}
    assert set(guarded.tokens()) == {OLD}
    assert set(guarded.tokens("Check")) == {None}


def test_the_doctor_carries_it_as_well(guarded: Guarded) -> None:
    """It has a stream of its own."""
    from gradwire.v1 import train_pb2

    with connect(guarded.target, token=OLD) as server:
        a_run(server).close()
        attached = next(server._link.stub.Train(iter([train_pb2.TrainRequest(attach=train_pb2.Attach(run="runs/x"))])))
        assert attached.HasField("attached")
    assert set(guarded.tokens("Train")) == {OLD}


def test_an_optimizer_of_torch_takes_it(guarded: Guarded) -> None:
    torch = pytest.importorskip("torch")
    from gradwire.client.torch import RemoteOptimizer

    param = torch.nn.Parameter(torch.zeros(2))
    with RemoteOptimizer([param], target=guarded.target, run="torch", token=OLD, amsgrad=True) as optimizer:
        param.grad = torch.ones(2)
        optimizer.step()
        assert param.tolist() == [-1, -1]
        with pytest.raises(TypeError, match="token is of no use with a Server"):
            RemoteOptimizer([param], target=optimizer._bound.server, run="other", token=OLD)
    with pytest.raises(TypeError, match="token is of type bytes; expected a string"):
        RemoteOptimizer([param], target=guarded.target, run="other", token=OLD.encode())  # type: ignore[arg-type]
    assert set(guarded.tokens()) == {OLD}


def test_over_a_unix_socket_and_from_the_user_s_file(tmp_path: Path) -> None:
    target = f"unix:{tmp_path}/socket"
    file = tmp_path / "config" / "gradwire" / "tokens.toml"
    file.parent.mkdir(parents=True)
    file.write_text(f'[targets]\n"host:50051" = "{WRONG}"\n"{target}" = "{OLD}"\n')
    with Guarded(OLD, listen=target) as guarded, connect(target) as server:
        assert server.who_am_i().tenant == "vision"
        assert set(guarded.tokens()) == {OLD}


def test_without_one_nothing_is_sent(guarded: Guarded) -> None:
    with connect(guarded.target) as server, pytest.raises(Unauthenticated, match="this token is not known here"):
        server.list_runs()
    assert guarded.tokens() == [None]


def test_who_am_i_and_status(guarded: Guarded) -> None:
    with connect(guarded.target, token=OLD) as server:
        expires = datetime(2027, 1, 15, 8, 0, 0, 500_000, UTC)
        assert server.who_am_i() == WhoAmI("vision", "train", "ci", expires, ("ci-*",), ("w?",), {})
        found = server.status()
        assert isinstance(found, ServerStatus)
        assert (found.version, found.recovered, found.runs, found.damaged_runs) == ("1.2.3", True, 3, 1)
        assert (found.uptime_seconds, found.certificate_error) == (61.25, "")
        assert set(vars(found)) == {field.name for field in service_pb2.GetServerStatusResponse.DESCRIPTOR.fields}


# --- renewals --------------------------------------------------------------------------------------------------------


def test_a_renewed_file_counts_from_the_next_call_on(guarded: Guarded, token_file: TokenFile) -> None:
    with connect(guarded.target) as server:
        server.who_am_i()
        guarded.known = {NEW}
        token_file.put(NEW)
        server.who_am_i()
    assert guarded.tokens() == [OLD, NEW]


CALLS: list[Callable[[Server, Run], object]] = [
    lambda server, run: server.who_am_i(),
    lambda server, run: server.create_run("y", {"w": np.zeros(2, np.float32)}, AMSGrad(), retry=NEVER_AGAIN),
    lambda server, run: run.read(),
    lambda server, run: run.write(ONES),
    lambda server, run: server.delete_run("x"),
]


@pytest.mark.parametrize("call", CALLS)
def test_a_call_that_is_refused_while_the_token_is_renewed_is_tried_once_more(
    guarded: Guarded, token_file: TokenFile, call: Callable[[Server, Run], object]
) -> None:
    """Of each kind: unary, an upload, an answer in parts, one that is never tried again else."""
    with connect(guarded.target) as server:
        run = a_run(server, NEVER_AGAIN)
        run.close()
        begun = len(guarded.tokens())
        guarded.known = {NEW}
        guarded.when_refused = lambda: token_file.put(NEW)
        call(server, run)
        assert guarded.tokens()[begun : begun + 2] == [OLD, NEW]
        assert OLD not in guarded.tokens()[begun + 1 :]


def test_without_another_token_a_refusal_is_raised_at_once(guarded: Guarded, token_file: TokenFile) -> None:
    token_file.put(WRONG)
    guarded.when_refused = lambda: token_file.put(WRONG)
    with connect(guarded.target) as server, pytest.raises(Unauthenticated) as caught:
        server.who_am_i()
    assert guarded.tokens() == [WRONG]
    assert caught.value.applied is False


def test_each_token_is_tried_once(guarded: Guarded, token_file: TokenFile) -> None:
    others = iter(["second", "third"])
    guarded.known = set()
    guarded.when_refused = lambda: token_file.put(next(others, "third"))
    with connect(guarded.target) as server, pytest.raises(Unauthenticated):
        server.who_am_i()
    assert guarded.tokens() == [OLD, "second", "third"]


def test_what_is_denied_stays_denied(guarded: Guarded, token_file: TokenFile) -> None:
    guarded.known = {OLD, NEW}
    guarded.denial = PermissionDenied("this needs more", needs="admin")
    guarded.when_refused = lambda: token_file.put(NEW)
    with connect(guarded.target) as server, pytest.raises(PermissionDenied) as caught:
        server.status()
    assert guarded.tokens() == [OLD]
    assert caught.value.metadata == {"needs": "admin"}


def test_what_cannot_be_done_twice_is_not(guarded: Guarded, token_file: TokenFile) -> None:
    """What a stream has been given stays given."""
    with connect(guarded.target) as server:
        run = a_run(server)
        guarded.known = {NEW}
        guarded.when_refused = lambda: token_file.put(NEW)
        with pytest.raises(Unauthenticated):
            run.export("/dev/null")
        assert guarded.tokens("ExportRun") == [OLD]
        assert run.export("/dev/null") == 0


@pytest.mark.parametrize("retry", [None, NEVER_AGAIN])
@pytest.mark.parametrize("when", ["before", "after"])
def test_a_stream_whose_token_is_revoked_goes_on_with_another_within_the_step(
    guarded: Guarded, token_file: TokenFile, when: str, retry: RetryPolicy | None
) -> None:
    """No block is lost, and none is applied twice."""
    with connect(guarded.target) as server:
        run = a_run(server, retry)
        assert run.step(ONES).step == 1
        token_file.put(NEW)  # what a stream that stands was opened with does not change
        guarded.known = {NEW}
        guarded.run.revoke = when
        assert run.step(ONES).step == 2
        assert run.step(ONES).step == 3
        assert run.params["w"].tolist() == guarded.run.values.tolist() == [-3, -3]
        assert guarded.run.blocks == 3
    assert guarded.tokens("Train") == [OLD, NEW]


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_stream_whose_token_is_revoked_for_good_ends_and_may_go_on_later(
    guarded: Guarded, token_file: TokenFile, when: str
) -> None:
    with connect(guarded.target) as server:
        run = a_run(server)
        guarded.known = {NEW}
        guarded.run.revoke = when
        with pytest.raises(PermissionRevoked) as caught:
            run.step(ONES)
        assert caught.value.applied is (when == "after")
        with pytest.raises(Unauthenticated):
            run.step(ONES)
        token_file.put(NEW)
        run.step(ONES)
        assert run.params["w"].tolist() == guarded.run.values.tolist()
        assert guarded.run.blocks == run.step_count == (2 if when == "after" else 1)
    assert guarded.tokens("Train") == [OLD, OLD, NEW]


def test_an_attachment_that_is_refused_while_the_token_is_renewed_is_tried_once_more(
    guarded: Guarded, token_file: TokenFile
) -> None:
    with connect(guarded.target) as server:
        run = a_run(server, NEVER_AGAIN)
        run.step(ONES)
        run.close()
        guarded.known = {NEW}
        guarded.when_refused = lambda: token_file.put(NEW)
        assert run.step(ONES).step == 2
    assert guarded.tokens("Train") == [OLD, OLD, NEW]


# --- for whom it is not ----------------------------------------------------------------------------------------------


def test_a_target_that_nobody_has_named_gets_none(
    guarded: Guarded, environment: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    environment.setenv("GRADWIRE_TOKEN", OLD)
    environment.setattr(discovery, "DEFAULT_TARGET", guarded.target)
    with connect() as server, pytest.raises(Unauthenticated):
        server.who_am_i()
    assert {token for _, token in guarded.calls} == {None}
    assert f"GRADWIRE_TOKEN is not sent: nobody has named {guarded.target}" in caplog.text
    environment.setenv("GRADWIRE_TARGET", guarded.target)
    with connect() as server:
        server.who_am_i()
    assert guarded.tokens() == [None, OLD]


@pytest.mark.parametrize(("target", "variable"), [(None, ""), ("embedded", ""), (None, "embedded")])
def test_a_token_needs_a_target_that_is_named(
    guarded: Guarded, environment: pytest.MonkeyPatch, target: str | None, variable: str
) -> None:
    environment.setattr(discovery, "DEFAULT_TARGET", guarded.target)
    environment.setattr(discovery, "EmbeddedServer", None)
    environment.setenv("GRADWIRE_TARGET", variable)
    with pytest.raises(ValueError, match="a token needs a target that is named"):
        connect(target, token=OLD)
    assert not guarded.calls


def test_an_embedded_server_gets_none(environment: pytest.MonkeyPatch) -> None:
    environment.setenv("GRADWIRE_TOKEN", OLD)
    with connect("embedded") as server:
        assert server._link._tokens is None
        assert server.list_runs() == []


@pytest.fixture
def far(environment: pytest.MonkeyPatch) -> None:
    """Loopback counts as another host."""
    for module in (tokens, link):
        environment.setattr(module, "is_loopback", lambda target: False)


def test_to_another_host_tls_is_spoken_by_itself(far: None, tmp_path: Path, environment: pytest.MonkeyPatch) -> None:
    files = Files(tmp_path / "files")
    read = {name: Path(files.path(name)).read_bytes() for name in ("ca.pem", "server.key", "server.pem")}
    credentials = grpc.ssl_server_credentials([(read["server.key"], read["server.pem"])])
    asked: list[TLS] = []

    def known_to_the_machine(tls: TLS) -> Pem:
        asked.append(tls)
        return Pem(read["ca.pem"], None, None)

    environment.setattr(channels, "checked", known_to_the_machine)
    with Guarded(OLD, credentials=credentials) as guarded, connect(guarded.target, token=OLD) as server:
        assert server.who_am_i().role == "train"
        assert guarded.tokens() == [OLD]
    assert set(asked) == {TLS()}


def test_another_host_that_speaks_no_tls_never_hears_of_it(far: None, guarded: Guarded) -> None:
    with pytest.raises(ConnectionLost) as caught:
        connect(guarded.target, token=OLD)
    assert str(caught.value) == (
        f"TLS is spoken because there is a token: the server at {guarded.target} cannot be spoken with: "
        "it does not speak TLS, and this client does"
    )
    assert not guarded.calls
    with pytest.raises(ValueError, match="without TLS"):
        Server(guarded.target, "named", tokens=tokens.TokenSource(guarded.target, OLD))
    assert not guarded.calls


def test_one_that_comes_later_stays_here_where_tls_is_not_spoken(
    far: None, guarded: Guarded, environment: pytest.MonkeyPatch
) -> None:
    with connect(guarded.target) as server:
        environment.setenv("GRADWIRE_TOKEN", OLD)
        with pytest.raises(Unauthenticated):
            server.who_am_i()
    assert guarded.tokens() == [None]


# --- what others can read --------------------------------------------------------------------------------------------


def test_no_secret_in_logs_words_and_exceptions(
    guarded: Guarded, token_file: TokenFile, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    failures: list[BaseException] = []
    words: list[str] = []

    def tried(call: Callable[[], Any]) -> None:
        try:
            words.append(repr(call()))
        except Exception as error:
            failures.append(error)

    with connect(guarded.target) as server:
        run = a_run(server, NEVER_AGAIN)
        words += map(repr, (server, server._link, server._link._tokens, run, run._attachment, vars(run._attachment)))
        guarded.run.revoke = "after"
        tried(lambda: run.step(ONES))
        guarded.denial = PermissionDenied("this needs more")
        tried(server.status)
        token_file.put(WRONG)
        tried(server.who_am_i)
        tried(lambda: run.step(ONES))
    for token in (OLD + " x", ""):
        tried(lambda token=token: connect(guarded.target, token=token))  # type: ignore[misc]
    tried(lambda: connect(guarded.target, token=OLD.encode()))  # type: ignore[arg-type]
    tried(lambda: connect("embedded", token=OLD))
    token_file.put(f"{OLD} {WRONG}")
    tried(lambda: connect(guarded.target))
    assert len(failures) == 9
    for failure in failures:
        words += [repr(failure), repr(vars(failure)), *traceback.format_exception(failure)]
    said = "".join([*words, *(f"{record.getMessage()}{vars(record)}" for record in caplog.records)])
    assert "PermissionRevoked" in said
    for part in (OLD, WRONG):
        assert part not in said
