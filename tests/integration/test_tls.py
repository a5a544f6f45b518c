"""TLS between client and server: numbers as ever, faults by their causes, certificates renewed under traffic."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import trustme
from click.testing import CliRunner
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from gradwire.client import TLS, AMSGrad, ConnectionLost, RetryPolicy, Server, connect
from gradwire.client.transport import discovery
from gradwire.server.cli.commands import cli
from gradwire.server.config import ConfigError
from tests.faults.hosted import WAIT_SECONDS, HostedServer
from tests.faults.proxy import Proxy
from tests.integration.certificates import Files

SIZE = 50


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    return Files(tmp_path_factory.mktemp("tls"))


@pytest.fixture(scope="module")
def plain() -> Iterator[HostedServer]:
    with HostedServer() as server:
        yield server


@pytest.fixture(scope="module")
def encrypted(files: Files) -> Iterator[HostedServer]:
    with HostedServer(**files.server) as server:
        yield server


@pytest.fixture(scope="module")
def mutual(files: Files) -> Iterator[HostedServer]:
    with HostedServer(**files.mutual) as server:
        yield server


def gradient(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=SIZE)


def digest_after(server: Server, name: str, steps: int) -> str:
    run = server.create_run(name, {"w": gradient(0)}, AMSGrad(lr=0.1), durability="MEMORY", on_existing="replace")
    for step in range(steps):
        run.step({"w": gradient(step)})
    return run.digest()


def test_the_same_numbers_as_without(
    plain: HostedServer, encrypted: HostedServer, mutual: HostedServer, files: Files
) -> None:
    with (
        connect(plain.target) as first,
        connect(encrypted.target, tls=files.trusting) as second,
        connect(mutual.target, tls=files.known) as third,
    ):
        assert len({digest_after(server, "same", 5) for server in (first, second, third)}) == 1


def test_an_optimizer_of_torch_takes_them(mutual: HostedServer, files: Files) -> None:
    torch = pytest.importorskip("torch")
    from gradwire.client.torch import RemoteOptimizer

    param = torch.nn.Parameter(torch.ones(3))
    with RemoteOptimizer([param], target=mutual.target, run="torch", tls=files.known, lr=0.1) as optimizer:
        param.grad = torch.ones(3)
        optimizer.step()
        with pytest.raises(TypeError, match="tls is of no use with a Server"):
            RemoteOptimizer([param], target=optimizer._bound.server, run="other", tls=files.known)
    assert param.tolist() == pytest.approx([0.9] * 3)
    with pytest.raises(TypeError, match=r"expected TLS\(ca=...\)"):
        connect(mutual.target, tls=True)  # type: ignore[arg-type]


@pytest.mark.parametrize("listen", ["127.0.0.1:0", "unix:socket"])
def test_memory_is_shared_over_a_unix_socket_only(files: Files, tmp_path: Path, listen: str) -> None:
    """Who comes over loopback may be a proxy."""
    address = listen.replace("socket", str(tmp_path / "socket"))
    with (
        HostedServer(listen=(address,), **files.mutual) as server,
        connect(server.target, tls=files.known) as connection,
    ):
        run = connection.create_run("x", {"w": np.zeros(200_000)}, AMSGrad(), shared_memory=True)
        stream = run._attachment.stream
        assert stream is not None
        assert (stream.memory is not None) == listen.startswith("unix:")
        run.close()


def test_a_unix_socket_needs_none(files: Files, tmp_path: Path) -> None:
    with HostedServer(listen=(f"unix:{tmp_path / 'socket'}",), **files.mutual) as server:
        for tls in (None, files.known):
            with connect(server.target, tls=tls) as connection:
                assert digest_after(connection, "unix", 1)


@pytest.fixture(scope="module")
def others(tmp_path_factory: pytest.TempPathFactory) -> Files:
    """By an authority that nobody knows."""
    return Files(tmp_path_factory.mktemp("others"))


@pytest.fixture(scope="module")
def misnamed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[HostedServer, Files]]:
    files = Files(tmp_path_factory.mktemp("misnamed"), "elsewhere.example")
    with HostedServer(**files.server) as server:
        yield server, files


@pytest.fixture(scope="module")
def expired(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[HostedServer, Files]]:
    files = Files(tmp_path_factory.mktemp("expired"))
    files.renew("server", expired=True)
    with HostedServer(**files.server) as server:
        yield server, files


def why(target: str, tls: TLS | None) -> str:
    """It is known at once: nothing is waited for."""
    with pytest.raises(ConnectionLost) as caught:
        connect(target, tls=tls, timeout_seconds=3 * WAIT_SECONDS)
    assert caught.value.applied is False
    return str(caught.value)


def test_causes_are_named(
    plain: HostedServer,
    encrypted: HostedServer,
    mutual: HostedServer,
    misnamed: tuple[HostedServer, Files],
    expired: tuple[HostedServer, Files],
    files: Files,
    others: Files,
) -> None:
    assert "it speaks TLS, and this client does not; expected tls=TLS(ca=...)" in why(encrypted.target, None)
    assert "it does not speak TLS, and this client does" in why(plain.target, files.trusting)
    assert f"its certificate is by no authority in {others.path('ca.pem')}" in why(encrypted.target, others.trusting)
    assert "its certificate is by no authority in those that this machine trusts" in why(encrypted.target, TLS())
    assert "its certificate is not for '127.0.0.1'; TLS(server_name=...)" in why(
        misnamed[0].target, misnamed[1].trusting
    )
    assert "its certificate has expired" in why(expired[0].target, expired[1].trusting)
    assert "it wants to know this client by a certificate; expected TLS(cert=" in why(mutual.target, files.trusting)
    stranger = TLS(files.path("ca.pem"), others.path("client.pem"), others.path("client.key"))
    assert f"it does not accept the client certificate {others.path('client.pem')}" in why(mutual.target, stranger)


def test_a_tunnel_whose_end_is_not_there_yet_is_waited_for(encrypted: HostedServer, files: Files) -> None:
    """It accepts, and hangs up."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        target = f"127.0.0.1:{listener.getsockname()[1]}"
        hung_up = threading.Semaphore(0)

        def hang_up() -> None:
            with contextlib.suppress(OSError):
                while True:
                    listener.accept()[0].close()
                    hung_up.release()

        threading.Thread(target=hang_up, daemon=True).start()
        with pytest.raises(ConnectionLost, match="after 1 s: something listens there that does not answer as one"):
            connect(target, tls=files.trusting, timeout_seconds=1)
        assert hung_up.acquire(timeout=WAIT_SECONDS)


@pytest.mark.parametrize("who", ["client.pem", "client.key", "ca.pem"])
def test_a_file_that_is_half_written_leaves_the_connection_as_it_was(tmp_path: Path, who: str) -> None:
    """gRPC ends the process of a client whose certificate is empty."""
    files = Files(tmp_path / "files")
    with HostedServer(**files.mutual) as server, connect(server.target, tls=files.known) as connection:
        run = connection.create_run("x", {"w": gradient(0)}, AMSGrad(), durability="MEMORY")
        whole = Path(files.path(who)).read_bytes()
        Path(files.path(who)).write_bytes(b"")
        assert run.step({"w": gradient(1)}).step == 1
        assert [found.name for found in connection.list_runs()] == ["x"]
        for command in (["health"], ["runs", "list"]):
            at = [*command, "--target", server.target, "--tls-ca", files.path("ca.pem")]
            known = ["--tls-cert", files.path("client.pem"), "--tls-key", files.path("client.key")]
            assert CliRunner().invoke(cli, [*at, *known]).exit_code == 1
        Path(files.path(who)).write_bytes(whole)
        assert run.step({"w": gradient(2)}).step == 2
        assert connection.list_runs()


def test_all_addresses_of_a_server_renew_their_certificate(tmp_path: Path) -> None:
    files = Files(tmp_path / "files")
    with HostedServer(listen=("127.0.0.1:0", "127.0.0.1:0"), **files.server) as server:
        old, files.authority = files.authority, trustme.CA()
        for renewed in (False, True):
            if renewed:
                files.trust(files.authority)
                files.renew("server")
            for target in server.server.addresses:
                with connect(target, tls=files.trusting) as connection:
                    assert connection.list_runs() == []
        files.trust(old)
        for target in server.server.addresses:
            assert "by no authority" in why(target, files.trusting)


@pytest.mark.parametrize("kind", ["ed25519", "p521", "p384", "rsa"])
def test_keys_that_grpc_does_not_speak_are_refused_by_name(files: Files, tmp_path: Path, kind: str) -> None:
    kinds: dict[str, Callable[[], Any]] = {
        "ed25519": ed25519.Ed25519PrivateKey.generate,
        "p521": lambda: ec.generate_private_key(ec.SECP521R1()),
        "p384": lambda: ec.generate_private_key(ec.SECP384R1()),
        "rsa": lambda: rsa.generate_private_key(65537, 2048),
    }
    key = kinds[kind]()
    now = datetime.now(UTC)
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=90))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .sign(key, None if kind == "ed25519" else hashes.SHA256())
    )
    pem, private = tmp_path / "server.pem", tmp_path / "server.key"
    pem.write_bytes(certificate.public_bytes(Encoding.PEM))
    private.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    settings: dict[str, Any] = {"tls_cert": str(pem), "tls_key": str(private)}
    if kind in ("ed25519", "p521"):
        with pytest.raises(ConfigError, match="of a kind that gRPC does not speak; expected RSA, or EC on P-256"):
            HostedServer(**settings)
        return
    with (
        HostedServer(**settings) as server,
        connect(server.target, tls=TLS(ca=pem, server_name="localhost")) as connection,
    ):
        assert connection.list_runs() == []


def test_the_name_to_expect_can_be_said(misnamed: tuple[HostedServer, Files]) -> None:
    server, files = misnamed
    with connect(server.target, tls=TLS(files.path("ca.pem"), server_name="elsewhere.example")) as connection:
        assert digest_after(connection, "named", 1)


def test_files_that_are_none_are_refused(files: Files, others: Files, tmp_path: Path) -> None:
    nonsense = tmp_path / "nonsense"
    nonsense.write_text("nonsense")
    refusals: list[tuple[TLS, type[Exception], str]] = [
        (TLS(ca=tmp_path / "none"), FileNotFoundError, "none"),
        (TLS(ca=nonsense), ValueError, "nonsense holds no certificate in PEM format"),
        (TLS(cert=nonsense, key=nonsense), ValueError, "are no certificate and its private key"),
        (TLS(cert=files.path("client.pem"), key=others.path("client.key")), ValueError, "KEY_VALUES_MISMATCH"),
    ]
    for tls, kind, message in refusals:
        with pytest.raises(kind, match=message):
            connect("127.0.0.1:1", tls=tls)
    with pytest.raises(ValueError, match="expected both, or neither"):
        TLS(cert="a")


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"tls_key": ""}, "expected both, or neither"),
        ({"tls_cert": "", "tls_key": "", "tls_client_ca": "x"}, "expected a certificate and its key with it"),
        ({"tls_cert": "/none/there"}, "/none/there"),
        ({"tls_key": "OTHER"}, "is not the key of"),
        ({"tls_key": "ca.pem"}, "is no private key in PEM format"),
        ({"tls_cert": "server.key"}, "holds no certificate in PEM format"),
        ({"tls_client_ca": "server.key"}, "holds no certificate in PEM format"),
    ],
)
def test_a_server_does_not_start_with_files_that_do_not_fit(
    files: Files, others: Files, changed: dict[str, str], message: str
) -> None:
    named = {
        key: others.path("server.key")
        if name == "OTHER"
        else files.path(name)
        if name[-4:] in (".pem", ".key")
        else name
        for key, name in changed.items()
    }
    with pytest.raises(ConfigError, match=message):
        HostedServer(**{**files.server, **named})


def test_beyond_loopback_clients_must_be_known(files: Files) -> None:
    with pytest.raises(
        ConfigError, match=r"does not ask who comes. Pass --tls-cert and --tls-key, and --access or --tls-cl"
    ):
        HostedServer(listen=("0.0.0.0:0",), **files.server)
    with HostedServer(listen=("0.0.0.0:0",), **files.mutual) as server:
        port = server.target.rpartition(":")[2]
        with connect(f"127.0.0.1:{port}", tls=files.known) as connection:
            assert connection.list_runs() == []


def test_a_server_of_tls_on_localhost_is_not_replaced_in_silence(
    encrypted: HostedServer, files: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("GRADWIRE_TARGET", raising=False)
    monkeypatch.setattr(discovery, "DEFAULT_TARGET", encrypted.target)
    with pytest.raises(ConnectionLost, match="it speaks TLS"):
        connect()
    monkeypatch.setenv("GRADWIRE_TLS_CA", files.path("ca.pem"))
    with connect() as connection:
        assert (connection.target, connection.embedded) == (encrypted.target, None)
    with connect("embedded") as connection:
        assert connection.list_runs() == []


def test_commands_take_the_same_files(mutual: HostedServer, files: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    known = [
        "--tls-ca",
        files.path("ca.pem"),
        "--tls-cert",
        files.path("client.pem"),
        "--tls-key",
        files.path("client.key"),
    ]
    for command in (["health"], ["runs", "list"]):
        at = [*command, "--target", mutual.target]
        assert CliRunner().invoke(cli, [*at, *known]).exit_code == 0
        without = CliRunner().invoke(cli, at)
        assert (without.exit_code, "it speaks TLS, and this client does not" in without.output) == (1, True)
        half = CliRunner().invoke(cli, [*at, *known[:4]])
        assert (half.exit_code, "expected both, or neither" in half.output) == (2, True)
        with monkeypatch.context() as patch:
            for option, value in zip(known[::2], known[1::2], strict=True):
                patch.setenv(f"GRADWIRE_{option[2:].replace('-', '_').upper()}", value)
            assert CliRunner().invoke(cli, at).exit_code == 0


def test_certificates_for_trying_out(tmp_path: Path) -> None:
    made = CliRunner().invoke(cli, ["certs", "dev", "localhost", "127.0.0.1", "--out", str(tmp_path / "certs")])
    assert made.exit_code == 0, made.output
    folder = tmp_path / "certs"
    names = {f"{who}.{kind}" for who in ("ca", "server", "client") for kind in ("pem", "key")}
    assert {path.name for path in folder.iterdir()} == names
    assert {path.stat().st_mode & 0o777 for path in folder.glob("*.key")} == {0o600}
    names_of = {"tls_cert": "server.pem", "tls_key": "server.key", "tls_client_ca": "ca.pem"}
    settings: dict[str, Any] = {key: str(folder / name) for key, name in names_of.items()}
    with HostedServer(**settings) as server:
        tls = TLS(folder / "ca.pem", folder / "client.pem", folder / "client.key")
        with connect(server.target, tls=tls) as connection:
            assert connection.list_runs() == []
    for name in ("localhost:50051", "[::1]", "a\nb", "-x", "a" * 64, ""):
        wrong = CliRunner().invoke(cli, ["certs", "dev", "--out", str(tmp_path / "wrong"), "--", name])
        assert (wrong.exit_code, "is no host name and no address" in wrong.output) == (1, True), name
    assert not (tmp_path / "wrong").exists()
    again = CliRunner().invoke(cli, ["certs", "dev", "localhost", "--out", str(folder)])
    assert (again.exit_code, "exist already" in again.output) == (1, True)


# --- renewal ---------------------------------------------------------------------------------------------------------


class Training:
    """Steps in a thread of its own, as fast as it can."""

    def __init__(self, target: str, tls: TLS) -> None:
        self.steps = 0
        self.error: BaseException | None = None
        self._over = threading.Event()
        self._stepped = threading.Condition()
        self._connection = connect(target, tls=tls)
        retry = RetryPolicy(deadline_seconds=WAIT_SECONDS, initial_backoff_seconds=0.01)
        self.run = self._connection.create_run(
            "rotated", {"w": gradient(0)}, AMSGrad(lr=0.1), durability="MEMORY", retry=retry
        )
        self._thread = threading.Thread(target=self._train)
        self._thread.start()

    def _train(self) -> None:
        try:
            while not self._over.is_set():
                assert self.run.step({"w": gradient(self.steps)}).step == self.steps + 1
                with self._stepped:
                    self.steps += 1
                    self._stepped.notify_all()
        except BaseException as error:
            self.error = error
            with self._stepped:
                self._stepped.notify_all()

    def goes_on(self) -> None:
        """Waits for some more steps."""
        wanted = self.steps + 5
        with self._stepped:
            assert self._stepped.wait_for(lambda: self.error or self.steps >= wanted, WAIT_SECONDS)
        assert self.error is None, repr(self.error)

    def end(self) -> str:
        """The digest after the last step."""
        self._over.set()
        self._thread.join()
        assert self.error is None
        digest = self.run.digest()
        self._connection.close()
        return digest


def test_everything_is_renewed_under_traffic_and_no_step_is_lost(tmp_path: Path) -> None:
    """Both pairs and the authority itself; each time the connection that stands is cut."""
    files = Files(tmp_path / "files")
    with HostedServer(**files.mutual) as server, Proxy(server.target) as proxy:
        training = Training(proxy.target, files.known)
        old, new = files.authority, trustme.CA()

        def renewed(what: str) -> None:
            if what in ("server", "client"):
                files.renew(what)
            proxy.cut()
            training.goes_on()

        training.goes_on()
        renewed("server")
        renewed("client")
        files.trust(old, new)
        renewed("the authorities")
        files.authority = new
        renewed("server")
        renewed("client")
        files.trust(new)
        renewed("the authorities")
        stranger = Files(tmp_path / "stranger")
        tls = TLS(files.path("ca.pem"), stranger.path("client.pem"), stranger.path("client.key"))
        assert "it does not accept the client certificate" in why(server.target, tls)
        steps, digest = training.steps, training.end()
        with connect(server.target, tls=files.known) as connection:
            assert digest == digest_after(connection, "twin", training.steps)
        assert training.steps >= steps >= 35


def test_a_pair_that_does_not_match_leaves_the_old_one(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    files = Files(tmp_path / "files")
    with HostedServer(**files.server) as server:
        with connect(server.target, tls=files.trusting) as connection:
            assert connection.list_runs() == []
        kept = Path(files.path("server.key")).read_bytes()
        other = Files(tmp_path / "other")
        shutil.copy(other.path("server.key"), files.path("server.key"))
        for _ in range(3):
            with connect(server.target, tls=files.trusting) as connection:
                assert connection.list_runs() == []
        assert caplog.text.count("the certificate stays as it was") == 1
        assert "is not the key of" in caplog.text
        Path(files.path("server.key")).unlink()
        os.mkfifo(files.path("server.key"))
        with connect(server.target, tls=files.trusting) as connection:
            assert connection.list_runs() == []
        assert "is no file any more" in caplog.text
        with connect(server.target, tls=files.trusting) as connection:
            status = connection.status()
        assert status.certificate_refusals == 2
        assert status.certificate_error.endswith("is no file any more")
        Path(files.path("server.key")).unlink()
        Path(files.path("server.key")).write_bytes(kept)
        with connect(server.target, tls=files.trusting) as connection:
            assert connection.list_runs() == []


def test_a_certificate_that_expires_soon_is_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    files = Files(tmp_path / "files")
    files.renew("server", expired=True)
    with HostedServer(**files.server):
        assert "the certificate has expired" in caplog.text


def test_handshakes_that_lead_to_nothing_are_counted(
    files: Files, others: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By plaintext, by another authority's certificate, by silence; those that are used are not among them."""
    monkeypatch.setattr("gradwire.server.rpc.handshakes.SETTLED_SECONDS", 1e9)
    with HostedServer(**files.mutual) as hosted:
        counted = hosted.server.servicer.handshakes
        host, port = hosted.target.rsplit(":", 1)
        for data in (b"GET / HTTP/1.1\r\n\r\n", b""):
            with socket.create_connection((host, int(port)), WAIT_SECONDS) as stranger:
                stranger.sendall(data)
        why(hosted.target, others.known)
        for _ in range(3):
            with connect(hosted.target, tls=files.known) as server:
                server.list_runs()
        with connect(hosted.target, tls=files.known) as server:
            assert server.status().unused_handshakes == 0
            monkeypatch.setattr("gradwire.server.rpc.handshakes.SETTLED_SECONDS", 0.0)
            found = server.status().unused_handshakes
        assert found == counted.unused >= 2
