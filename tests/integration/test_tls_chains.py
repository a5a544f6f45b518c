"""Certificates that an authority vouches for by another one in between: who trusts the root has only the root."""

from __future__ import annotations

from pathlib import Path

import pytest
import trustme

from gradwire.client import TLS, AMSGrad, ConnectionLost, connect
from gradwire.server.access.certificates import BadCertificate, CertificateFiles
from gradwire.wire.tls_handshake import checked, tls_fault
from tests.faults.hosted import HostedServer
from tests.integration.access import AccessFile
from tests.integration.certificates import Files


@pytest.fixture
def root() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def files(tmp_path: Path, root: trustme.CA) -> Files:
    """Both certificates lie two authorities below the root."""
    files = Files(tmp_path / "tls")
    files.authority = root.create_child_ca().create_child_ca()
    files.trust(root)
    files.renew("server")
    files.renew("client")
    return files


def pem_count(path: str) -> int:
    return Path(path).read_text().count("BEGIN CERTIFICATE")


def test_who_has_the_root_alone_is_served(files: Files, tmp_path: Path) -> None:
    assert [pem_count(files.path(name)) for name in ("ca.pem", "server.pem", "client.pem")] == [1, 3, 3]
    access = AccessFile(tmp_path / "access.toml")
    access.add_certificate("worker", "lab", "train")
    with HostedServer(**files.mutual, access=str(access.path)) as hosted:
        assert tls_fault(hosted.target, files.known) is None
        with connect(hosted.target, tls=files.known) as server:
            assert server.who_am_i().id == "worker"
            run = server.create_run("x", {"w": [0.0]}, AMSGrad())
            assert run.step({"w": [1.0]}).step == 1


def test_one_of_several_authorities_is_enough(files: Files, root: trustme.CA) -> None:
    """A file of authorities may have more than one, wherever it is."""
    files.trust(trustme.CA(), root, trustme.CA())
    with HostedServer(**files.mutual) as hosted, connect(hosted.target, tls=files.known) as server:
        assert server.list_runs() == []


@pytest.mark.parametrize("who", ["server", "client"])
def test_a_chain_that_lacks_what_is_in_between_is_named(files: Files, who: str) -> None:
    whole = Path(files.path(f"{who}.pem"))
    leaf = whole.read_text().partition("-----END CERTIFICATE-----\n")
    whole.write_text(leaf[0] + leaf[1])
    with HostedServer(**files.mutual) as hosted, pytest.raises(ConnectionLost) as caught:
        connect(hosted.target, tls=files.known)
    expected = {
        "server": f"its certificate is by no authority in {files.path('ca.pem')}",
        "client": f"it does not accept the client certificate {files.path('client.pem')}",
    }
    assert expected[who] in str(caught.value)


def test_a_chain_in_the_wrong_order_is_refused_by_name(files: Files) -> None:
    for who in ("server", "client"):
        path = Path(files.path(f"{who}.pem"))
        end = "-----END CERTIFICATE-----\n"
        path.write_text("".join(part + end for part in reversed(path.read_text().split(end)[:-1])))
    with pytest.raises(BadCertificate, match=r"server\.key is not the key of .*server\.pem"):
        CertificateFiles(Path(files.path("server.pem")), Path(files.path("server.key"))).read()
    with pytest.raises(ValueError, match="are no certificate and its private key"):
        checked(TLS(files.path("ca.pem"), files.path("client.pem"), files.path("client.key")))


def test_a_chain_is_renewed_under_another_authority_in_between(files: Files, root: trustme.CA) -> None:
    with HostedServer(**files.mutual) as hosted:
        files.authority = root.create_child_ca()
        files.renew("server")
        files.renew("client")
        with connect(hosted.target, tls=files.known) as server:
            assert server.list_runs() == []
        assert pem_count(files.path("server.pem")) == 2
